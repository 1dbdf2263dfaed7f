"""`pleiades check`: tries configuration, upstream and destination, and writes nothing.

All parts are looked at at the same time, each in a thread of its own: a name server, a file system or
a library may hang for longer than any timeout that it is given.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import FrameType
from urllib.parse import urlsplit

from pleiades import PROJECT_URL
from pleiades.core.framing import Framer, ids_in
from pleiades.core.units import rough_duration
from pleiades.core.wire import MalformedId, parse_id
from pleiades.runtime import findings, logs
from pleiades.runtime.arguments import ingest_parser, settings_from
from pleiades.runtime.errors import EXIT_FAILED, EXIT_STOPPED, Fatal, Transient, UsageError
from pleiades.runtime.findings import Finding, Kind, note, ok, problem, warning
from pleiades.runtime.flags import joined_negatives
from pleiades.runtime.health import refuse_if_taken
from pleiades.runtime.settings import Settings
from pleiades.upstream.http import Connection, Upstream

log = logging.getLogger(__name__)

CONFIGURATION = "configuration"
UPSTREAM = "upstream"
DESTINATION = "destination"
METRICS = "metrics"

LOOK_SECONDS = 17.0
"""For all parts together; with the start of the program a check takes less than 20 s."""
SILENCE_SECONDS = 5.0
"""How long the upstream may take for its answer, and then for a first event."""
CLOCK_SECONDS = 10.0
"""A difference to the upstream's clock that is worth a line. Its own has whole seconds."""

CLOCK_WARNING_SECONDS = 60.0
KAFKA_CLOCK_SECONDS = 3600.0
"""Beyond that a broker refuses what is dated ahead, by its default."""

_WAITED_FOR = " (ingest would try again until it works)"


def run(arguments: Sequence[str], description: str) -> int:
    """Look at everything and print what was found; returns the exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    parsed = ingest_parser("check", description).parse_args(joined_negatives(arguments))
    try:
        settings = settings_from(parsed)
    except UsageError as error:
        return _show(
            iter([findings.of(CONFIGURATION, error)]), logging.INFO, vars(parsed)["log.format"]
        )
    # What is found is told by findings. The rest is for whoever wants to know everything.
    level = settings.log_level if settings.log_level == logging.DEBUG else logging.CRITICAL
    logs.configure(level, settings.log_format, "check")
    return _show(_all(settings), settings.log_level, settings.log_format)


def _leave(_number: int, _frame: FrameType | None) -> None:
    # Not all was looked at, so not all is well.
    os._exit(EXIT_FAILED)


def _show(found: Iterator[Finding], level: int, log_format: str) -> int:
    status = EXIT_STOPPED
    for finding in found:
        if finding.level >= level:
            print(finding.line(log_format), flush=True)  # noqa: T201  # what was asked for
        if finding.kind is Kind.PROBLEM:
            status = status or finding.exit_status
    return status


def _all(settings: Settings) -> Iterator[Finding]:
    deadline = time.monotonic() + LOOK_SECONDS
    looks = [
        Look(UPSTREAM, look_at_upstream(settings)),
        Look(DESTINATION, _look_at_destination(settings)),
        Look(METRICS, _look_at_metrics(settings)),
    ]
    yield from _look_at_configuration(settings)
    for look in looks:
        yield from look.findings(deadline)


class Look:
    """One part, looked at in a thread."""

    def __init__(self, part: str, found: Iterator[Finding]) -> None:
        self._part = part
        self._found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()
        # A daemon: one that hangs must not keep the program from ending.
        threading.Thread(target=self._run, args=(found,), name=part, daemon=True).start()

    def findings(self, deadline: float) -> Iterator[Finding]:
        """What is found, as it comes, until the deadline (monotonic)."""
        while True:
            try:
                finding = self._found.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                yield problem(
                    self._part,
                    f"no answer within {LOOK_SECONDS:.0f} s: something hangs. Check the network, the "
                    "name server (DNS) and the file system",
                )
                return
            if finding is None:
                return
            yield finding

    def _run(self, found: Iterator[Finding]) -> None:
        try:
            for finding in found:
                self._found.put(finding)
        except Fatal as error:
            self._found.put(findings.of(self._part, error))
        except Exception as error:
            # Without its text, which may quote a secret.
            log.debug("looking at the %s", self._part, exc_info=True)
            name = type(error).__name__
            self._found.put(problem(self._part, f"this is a bug ({name}): --verbose tells where"))
        self._found.put(None)


def _look_at_configuration(settings: Settings) -> Iterator[Finding]:
    where = ""
    if settings.files is not None:
        where = f"files in {settings.files.publish_dir.absolute()}"
    if settings.kafka is not None:
        where = f"the topic {settings.kafka.topic} of Kafka at {settings.kafka.brokers}"
    streams = ", ".join(settings.upstream.streams)
    yield ok(CONFIGURATION, f"relays {streams} into {where}")
    host = urlsplit(settings.upstream.url).hostname or ""
    if settings.upstream.contact == PROJECT_URL and host.endswith(".wikimedia.org"):
        yield note(
            CONFIGURATION,
            "Wikimedia's operators could not reach you: give a URL or mail address of yours as "
            "--upstream.contact",
        )


def look_at_upstream(settings: Settings) -> Iterator[Finding]:
    """Ask once, as `ingest` would for what comes from now on, and wait for the first event."""
    patient = min(settings.upstream.idle_timeout_seconds, SILENCE_SECONDS)
    upstream = Upstream(replace(settings.upstream, idle_timeout_seconds=patient))
    started = time.monotonic()
    try:
        connection = upstream.connect(None, time.time_ns() // 1_000_000)
        try:
            yield _first_event(upstream.address, connection, started)
        finally:
            connection.close()
    except Transient as error:
        yield problem(UPSTREAM, f"{error}{_afterwards(error)}")
        return
    yield from _clock(connection.server_ms, settings.kafka is not None)


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
        UPSTREAM,
        f"{address} answers; no event within {SILENCE_SECONDS:.0f} s, which is normal for a stream "
        "with few of them",
    )


def _event(address: str, blob: bytes, seconds: float) -> Finding:
    if b"\nevent: error\n" in b"\n" + blob and not ids_in(blob):
        said = logs.printable(blob.partition(b"data:")[2].strip(), 300)
        raise Transient(
            f"{address} answers, and then tells of an error of its own: {said}", "error"
        )
    try:
        topics = sorted({source[0] for source, _ in parse_id(ids_in(blob)[0])})
    except (MalformedId, IndexError):
        return warning(
            UPSTREAM,
            f"{address} answers, but its events have no id that tells where they come from: after a "
            "cut nothing could be resumed. Is this EventStreams? Check --upstream.url",
        )
    return ok(
        UPSTREAM, f"{address} answers; first event after {seconds:.1f} s, of {', '.join(topics)}"
    )


def _clock(server_ms: int | None, to_kafka: bool) -> Iterator[Finding]:
    if server_ms is None:
        return
    ahead_seconds = (time.time_ns() // 1_000_000 - server_ms) / 1000
    apart_seconds = abs(ahead_seconds)
    if apart_seconds <= CLOCK_SECONDS:
        return
    apart = f"{apart_seconds:.0f} s" if apart_seconds < 2 * 60 else rough_duration(apart_seconds)
    side = "ahead of" if ahead_seconds > 0 else "behind"
    said = f"this machine's clock is {apart} {side} the upstream's"
    if to_kafka and apart_seconds > KAFKA_CLOCK_SECONDS:
        yield problem(
            UPSTREAM,
            f"{said}. Kafka refuses records that are dated too far from the broker's time "
            "(message.timestamp.after.max.ms, 1 hour by default): nothing could be published. Set the "
            "clock right (NTP)",
        )
    elif apart_seconds > CLOCK_WARNING_SECONDS:
        yield warning(
            UPSTREAM,
            f"{said}: lags look wrong, and a start without a position begins too early or too late. Set "
            "the clock right (NTP)",
        )
    else:
        yield note(
            UPSTREAM,
            f"{said}: lags will look wrong. Set this one's clock (NTP) if it is the wrong one",
        )


def _look_at_destination(settings: Settings) -> Iterator[Finding]:
    if settings.kafka is not None:
        # Only here: librdkafka is not for those who publish to files.
        from pleiades.sinks.kafka.check import look as look_at_kafka

        yield from look_at_kafka(settings, settings.kafka)
    if settings.files is not None:
        from pleiades.sinks.files.check import look as look_at_files

        yield from look_at_files(settings, settings.files)


def _look_at_metrics(settings: Settings) -> Iterator[Finding]:
    refuse_if_taken(settings.metrics_host, settings.metrics_port)
    where = f"{settings.metrics_host or '*'}:{settings.metrics_port}"
    yield ok(
        METRICS,
        f"{where} is free for /metrics"
        if settings.metrics_port
        else "a start takes any free port for /metrics (--metricsPort=0)",
    )
