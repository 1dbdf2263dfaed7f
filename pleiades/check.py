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
from types import FrameType
from urllib.parse import urlsplit

from pleiades import PROJECT_URL
from pleiades.runtime import findings, logs
from pleiades.runtime.arguments import ingest_parser, settings_from
from pleiades.runtime.errors import EXIT_FAILED, EXIT_STOPPED, Fatal, UsageError
from pleiades.runtime.findings import Finding, Kind, note, ok, problem
from pleiades.runtime.flags import joined_negatives
from pleiades.runtime.http import refuse_if_taken
from pleiades.runtime.settings import Settings
from pleiades.upstream.inspect import UPSTREAM, look_at_upstream

log = logging.getLogger(__name__)

CONFIGURATION = "configuration"
DESTINATION = "destination"
METRICS = "metrics"

LOOK_SECONDS = 17.0
"""For all parts together; with the start of the program a check takes less than 20 s."""


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
