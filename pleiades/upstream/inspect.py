"""`pleiades check`: one request, as `ingest` would make it for events from now on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

from pleiades.config.settings import UpstreamSettings
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.framing import ids_in
from pleiades.core.resume_cursor import ResumeCursor
from pleiades.core.sse_id import compose_id
from pleiades.core.units import rough_duration
from pleiades.runtime.errors import Fatal, RefusedByUpstream, Transient
from pleiades.runtime.findings import Finding, note, now_ms, ok, problem, warning
from pleiades.runtime.logs import printable
from pleiades.upstream.frames import IDLE, Received, read
from pleiades.upstream.http import Upstream
from pleiades.upstream.refusals import TopicsNotAvailable, named

SILENCE_SECONDS = 5.0
"""The longest wait for the answer, and then for a first event."""
CLOCK_SECONDS = 10.0
"""Differences from the upstream's clock below this are not reported; an HTTP date has whole seconds."""
CLOCK_WARNING_SECONDS = 60.0


def look_at_upstream(
    settings: UpstreamSettings,
    clock_refusal: Callable[[float], str],
    stored: Callable[[], Checkpoint | None] = lambda: None,
) -> Iterator[Finding]:
    """Ask once, and wait for the first event.

    Args:
        clock_refusal: see `Destination.clock_refusal`.
        stored: the position that a start would resume from.
    """
    idle_seconds = min(settings.idle_timeout_seconds, SILENCE_SECONDS)
    upstream = Upstream(replace(settings, idle_timeout_seconds=idle_seconds))
    address = upstream.address
    started = time.monotonic()
    try:
        with closing(upstream.connect(None, time.time_ns() // 1_000_000)) as connection:
            for item in read(connection, idle_seconds):
                if isinstance(item, Received):
                    if item.has_events:
                        yield _first_event(address, item, time.monotonic() - started)
                        break
                elif item.reason == IDLE:
                    yield ok(
                        f"{address} answers; no event within {SILENCE_SECONDS:.0f} s, which is normal "
                        "for a stream with few of them"
                    )
                else:
                    raise item.error or Transient(
                        f"{address} ended the connection before any event", "empty"
                    )
    except RefusedByUpstream:
        missing = _missing_topics(settings, upstream, stored)
        if not missing:
            raise
        yield warning(
            f"the upstream does not have {named(missing)} at present: a start goes on with the other "
            "topics from the stored position, and asks again at each connection. A start without a "
            "stored position would be refused"
        )
        return
    except Transient as error:
        wait = error.retry_after_seconds
        asks = f"; it asks to be left alone for {wait:.0f} s" if wait else ""
        yield problem(f"{error}{asks} (ingest would try again until it works)")
        return
    yield from _clock(connection.server_ms, clock_refusal)


def _missing_topics(
    settings: UpstreamSettings, upstream: Upstream, stored: Callable[[], Checkpoint | None]
) -> frozenset[str]:
    """Topics without which a start would go on from the stored position."""
    # What is wrong with the destination is its own finding.
    with contextlib.suppress(Fatal, Transient):
        checkpoint = stored()
        if checkpoint is None or not checkpoint.position:
            return frozenset()
        overlap_ms = int(settings.overlap_seconds * 1000)
        cursor = ResumeCursor(checkpoint.started_ms, overlap_ms, checkpoint.position)
        asked = cursor.request(max(checkpoint.clock_ms, now_ms()))
        try:
            upstream.connect(compose_id(asked), checkpoint.started_ms).close()
        except TopicsNotAvailable as error:
            return error.topics if {topic for topic, _ in asked} - error.topics else frozenset()
    return frozenset()


def _first_event(address: str, received: Received, seconds: float) -> Finding:
    if b"\nevent: error\n" in b"\n" + received.blob and not ids_in(received.blob):
        said = printable(received.blob.partition(b"data:")[2].strip(), 300)
        raise Transient(f"{address} answers, and then reports an error of its own: {said}", "error")
    topics = sorted({topic for topic, _ in received.ids.timestamps_ms} if received.ids else ())
    if not topics:
        return warning(
            f"{address} answers, but its events have no id that tells where they come from: after a "
            "cut nothing could be resumed. Is this EventStreams? Check --upstream.url"
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
    if apart_seconds > CLOCK_WARNING_SECONDS and (refusal := clock_refusal(ahead_seconds)):
        yield problem(f"{said}. {refusal}: nothing could be published. Set the clock right (NTP)")
    elif apart_seconds > CLOCK_WARNING_SECONDS:
        yield warning(
            f"{said}: lags look wrong, and a start without a position begins too early or too late. Set "
            "the clock right (NTP)"
        )
    else:
        yield note(
            f"{said}: lags will look wrong. Set this one's clock (NTP) if it is the wrong one"
        )
