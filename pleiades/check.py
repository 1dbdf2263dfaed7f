"""`pleiades check`: tries configuration, upstream and destination, and leaves nothing behind.

Each part is looked at in a thread of its own, all at the same time: a name server, a file system or a
library may hang for longer than any timeout that it is given.

Law: a printed finding is one line without control characters, whatever it quotes.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import orjson

from pleiades import PROJECT_URL
from pleiades.config.settings import Settings
from pleiades.runtime import logs, metric_store
from pleiades.runtime.errors import EXIT_STOPPED, Fatal, UsageError
from pleiades.runtime.findings import Finding, Kind, note, ok, problem
from pleiades.runtime.http import refuse_if_taken
from pleiades.runtime.output import show
from pleiades.sinks.base import destination_of
from pleiades.sinks.registry import relay_parser, relay_settings
from pleiades.upstream.environment import proxy_of, refuse_unusable
from pleiades.upstream.inspect import look_at_upstream

log = logging.getLogger(__name__)

LOOK_SECONDS = 17.0
"""For all parts together; with the start of the program a check takes less than 20 s."""
MAX_TEXT = 2000


def run(arguments: Sequence[str], description: str) -> int:
    """Look at everything and print the findings; returns the exit status."""
    flag = vars(relay_parser("check", description).parse_args(arguments))
    try:
        settings = relay_settings(flag)
        refuse_unusable(settings.upstream)
    except UsageError as error:
        wrong = problem(str(error), error.exit_status)
        return _show(iter([("configuration", wrong)]), logging.INFO, flag["log.format"])
    # The findings are the report. The log is for --verbose only.
    level = settings.log_level if settings.log_level == logging.DEBUG else logging.CRITICAL
    logs.configure(level, settings.log_format, "check")
    return _show(_all(settings), settings.log_level, settings.log_format)


def _show(found: Iterator[tuple[str, Finding]], level: int, log_format: str) -> int:
    """Print findings, each with the part of the relay that it is about."""
    levels = {Kind.WARNING: logging.WARNING, Kind.PROBLEM: logging.ERROR}
    status = EXIT_STOPPED
    for part, finding in found:
        text = logs.printable(finding.text, MAX_TEXT)
        line = f"{finding.kind:7} {part:13} {text}"
        if log_format == logs.JSON:
            line = orjson.dumps({"part": part, "kind": finding.kind, "text": text}).decode()
        if levels.get(finding.kind, logging.INFO) >= level:
            show(line)
        status = status or finding.exit_status
    return status


def _all(settings: Settings) -> Iterator[tuple[str, Finding]]:
    deadline = time.monotonic() + LOOK_SECONDS
    destination = destination_of(settings)
    parts = {
        "configuration": _look_at_configuration(settings),
        "upstream": look_at_upstream(
            settings.upstream,
            destination.clock_refusal,
            lambda: destination.stored_checkpoint(is_replay=False) if settings.resume else None,
        ),
        "destination": destination.inspect(settings),
        "metrics": _look_at_metrics(settings),
    }
    for look in [Look(part, found) for part, found in parts.items()]:
        for finding in look.findings(deadline):
            yield look.part, finding


class Look:
    """One part, looked at in a thread."""

    def __init__(self, part: str, found: Iterator[Finding]) -> None:
        self.part = part
        self._found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()
        # A daemon: one that hangs must not keep the program from ending.
        threading.Thread(target=self._run, args=(found,), name=part, daemon=True).start()

    def findings(self, deadline: float) -> Iterator[Finding]:
        """The findings as they come, until the deadline (monotonic)."""
        try:
            while finding := self._found.get(timeout=max(deadline - time.monotonic(), 0)):
                yield finding
        except queue.Empty:
            yield problem(
                f"no answer within {LOOK_SECONDS:.0f} s: something hangs. Check the network, the name "
                "server (DNS) and the file system"
            )

    def _run(self, found: Iterator[Finding]) -> None:
        try:
            for finding in found:
                self._found.put(finding)
        except Fatal as error:
            self._found.put(problem(str(error), error.exit_status))
        except Exception as error:
            log.debug("looking at the %s", self.part, exc_info=True)
            # Without its text, which may quote a secret.
            bug = f"this is a bug ({type(error).__name__}): --verbose tells where"
            self._found.put(problem(bug))
        self._found.put(None)


def _look_at_configuration(settings: Settings) -> Iterator[Finding]:
    streams = ", ".join(settings.upstream.streams)
    yield ok(f"relays {streams} into {destination_of(settings).place}")
    if proxy := proxy_of(settings.upstream.url):
        yield note(
            f"asks the upstream through the proxy {proxy.address}, which {proxy.variable} names"
        )
    host = urlsplit(settings.upstream.url).hostname or ""
    if settings.upstream.contact == PROJECT_URL and host.endswith(".wikimedia.org"):
        yield note(
            "Wikimedia's operators could not reach you: give a URL or mail address of yours as "
            "--upstream.contact"
        )


def _look_at_metrics(settings: Settings) -> Iterator[Finding]:
    metric_store.probe()
    host, port = settings.metrics_host, settings.metrics_port
    refuse_if_taken(host, port)
    where = (
        f"{host or '*'}:{port} is free" if port else "a start takes any free port (--metricsPort=0)"
    )
    yield ok(f"{where} for /metrics")
