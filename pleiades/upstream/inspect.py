"""`pleiades check`: one request, as `ingest` would make it for events from now on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from pleiades.config.settings import UpstreamSettings
from pleiades.core.framing import Framer, ids_in
from pleiades.core.units import rough_duration
from pleiades.core.wire import MalformedId, parse_id
from pleiades.runtime.errors import Transient
from pleiades.runtime.findings import Finding, note, ok, problem, warning
from pleiades.runtime.logs import printable
from pleiades.upstream.http import Connection, Upstream

SILENCE_SECONDS = 5.0
"""The longest wait for the answer, and then for a first event."""
CLOCK_SECONDS = 10.0
"""Differences from the upstream's clock below this are not reported; an HTTP date has whole seconds."""
CLOCK_WARNING_SECONDS = 60.0

_WAITED_FOR = " (ingest would try again until it works)"


def look_at_upstream(
    settings: UpstreamSettings, clock_refusal: Callable[[float], str]
) -> Iterator[Finding]:
    """Ask once, as `ingest` would for what comes from now on, and wait for the first event.

    Args:
        clock_refusal: see `Destination.clock_refusal`.
    """
    patient = min(settings.idle_timeout_seconds, SILENCE_SECONDS)
    upstream = Upstream(replace(settings, idle_timeout_seconds=patient))
    started = time.monotonic()
    try:
        connection = upstream.connect(None, time.time_ns() // 1_000_000)
        try:
            yield _first_event(upstream.address, connection, started)
        finally:
            connection.close()
    except Transient as error:
        yield problem(f"{error}{_afterwards(error)}")
        return
    yield from _clock(connection.server_ms, clock_refusal)


def _afterwards(error: Transient) -> str:
    if error.retry_after_seconds:
        return f"; it wants to be left alone for {error.retry_after_seconds:.0f} s{_WAITED_FOR}"
    return _WAITED_FOR


def _first_event(address: str, connection: Connection, started: float) -> Finding:
    framer = Framer()
    chunks = connection.chunks()
    deadline = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            chunk = next(chunks, None)
        except Transient as error:
            if error.kind == "idle":
                break
            raise
        if chunk is None:
            raise Transient(f"{address} ended the connection before any event", "empty")
        blob = framer.feed(chunk)
        if b"\ndata:" in b"\n" + blob:
            return _event(address, blob, time.monotonic() - started)
    return ok(
        f"{address} answers; no event within {SILENCE_SECONDS:.0f} s, which is normal for a stream "
        "with few of them",
    )


def _event(address: str, blob: bytes, seconds: float) -> Finding:
    if b"\nevent: error\n" in b"\n" + blob and not ids_in(blob):
        said = printable(blob.partition(b"data:")[2].strip(), 300)
        raise Transient(
            f"{address} answers, and then tells of an error of its own: {said}", "error"
        )
    try:
        topics = sorted({source[0] for source, _ in parse_id(ids_in(blob)[0])})
    except (MalformedId, IndexError):
        return warning(
            f"{address} answers, but its events have no id that tells where they come from: after a "
            "cut nothing could be resumed. Is this EventStreams? Check --upstream.url",
        )
    return ok(f"{address} answers; first event after {seconds:.1f} s, of {', '.join(topics)}")


def _clock(server_ms: int | None, clock_refusal: Callable[[float], str]) -> Iterator[Finding]:
    if server_ms is None:
        return
    ahead_seconds = (time.time_ns() // 1_000_000 - server_ms) / 1000
    apart_seconds = abs(ahead_seconds)
    if apart_seconds <= CLOCK_SECONDS:
        return
    apart = f"{apart_seconds:.0f} s" if apart_seconds < 2 * 60 else rough_duration(apart_seconds)
    side = "ahead of" if ahead_seconds > 0 else "behind"
    said = f"this machine's clock is {apart} {side} the upstream's"
    if refusal := clock_refusal(apart_seconds):
        yield problem(f"{said}. {refusal}: nothing could be published. Set the clock right (NTP)")
    elif apart_seconds > CLOCK_WARNING_SECONDS:
        yield warning(
            f"{said}: lags look wrong, and a start without a position begins too early or too late. Set "
            "the clock right (NTP)",
        )
    else:
        yield note(
            f"{said}: lags will look wrong. Set this one's clock (NTP) if it is the wrong one",
        )
