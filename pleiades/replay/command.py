"""`pleiades replay`: surveys the upstream, relays a range to its end, and reports."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from pleiades.config.settings import ReplaySettings, Settings
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.range import Range
from pleiades.core.sse_id import TopicPartition
from pleiades.core.units import iso_time
from pleiades.replay.arguments import Arguments, arguments_from, replay_parser
from pleiades.replay.progress import ProgressLine
from pleiades.replay.report import Report
from pleiades.replay.survey import Found, Survey, look_at_all
from pleiades.runtime import logs, metric_store
from pleiades.runtime.errors import (
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    Fatal,
    HistoryMissing,
    UsageError,
)
from pleiades.sinks.base import destination_of
from pleiades.sinks.counting import Counted

log = logging.getLogger(__name__)


def run(arguments: Sequence[str], description: str) -> int:
    """Replay a range; returns the exit status.

    Raises:
        UsageError: the arguments contradict each other.
        HistoryMissing: the upstream no longer has all of it; nothing was written.
        Fatal: the destination or the upstream can't be used.
    """
    told = arguments_from(vars(replay_parser(description).parse_args(arguments)))
    logs.configure(told.settings.log_level, told.settings.log_format, "parent")
    stored = None
    if not (told.dry_run or told.restart):
        stored = destination_of(told.settings).stored_checkpoint()
    if stored is not None and stored.done is None:
        stored = None
    resume = not told.restart
    if stored is not None and _is_finished(stored) and (told.skip_existing or not told.absolute):
        # The destination may hold less than was published. And `-36h` means another range by now.
        stored, resume = None, False
    now_ms = time.time_ns() // 1_000_000 if stored is None else stored.clock_ms
    span = told.range(now_ms)
    display = Display(told, span, stored)
    if stored is not None and _is_finished(stored):
        log.info("all of this is published already: --restart would begin again")
        return display.conclude(EXIT_STOPPED)
    log.info(
        "replaying from %s to %s%s",
        iso_time(span.begin.default_ms),
        iso_time(span.end.default_ms),
        "" if stored is None else ", going on where an earlier run stopped",
    )
    settings = replace(_with_range(told, span, now_ms, stored), resume=resume)

    from pleiades.pipeline import relay

    return display.conclude(relay(settings, display))


def _is_finished(checkpoint: Checkpoint) -> bool:
    done = checkpoint.done
    return done is not None and done.finished.issuperset(checkpoint.position)


def _with_range(told: Arguments, span: Range, now_ms: int, stored: Checkpoint | None) -> Settings:
    """The settings of all processes, after a survey of the upstream.

    Raises:
        UsageError: an id names a topic that the streams do not have.
        HistoryMissing: see `run`.
    """
    survey = Survey(told.settings.upstream)
    sources = survey.sources() if stored is None else sorted(stored.position)
    strangers = sorted(span.sources.difference(sources))
    if strangers:
        raise UsageError(
            f"the id in --from or --to names {strangers[0][0]}, which is no topic of "
            f"{', '.join(told.settings.upstream.streams)}: check --upstream.stream"
        )
    unread = [source for source in sources if stored is None or not stored.position[source]]
    found = look_at_all(survey, unread, span)
    incomplete = _tell_of_gaps(found, told.allow_gap)
    published = 0 if stored is None or stored.done is None else stored.done.total
    return replace(
        told.settings,
        replay=ReplaySettings(
            range=span,
            resolved_ms=now_ms,
            first_ms={
                source: found[source].first_ms if source in found else None for source in sources
            },
            connections=told.connections,
            rate=told.rate,
            until_total=None if told.limit is None else published + told.limit,
            allow_gap=told.allow_gap,
            incomplete=incomplete,
            skip_existing=told.skip_existing,
        ),
    )


def _tell_of_gaps(found: dict[TopicPartition, Found], allow_gap: bool) -> bool:
    """Report missing history; returns whether there is any."""
    missing = [
        f"{topic}/{partition} is gone"
        if at.missing_until_ms is None
        else f"{topic}/{partition} begins at {iso_time(at.missing_until_ms)}"
        for (topic, partition), at in sorted(found.items())
        if at.gone or at.missing_until_ms is not None
    ]
    if not missing:
        return False
    what = f"the upstream no longer has all of the range: {', '.join(missing)}"
    if not allow_gap:
        raise HistoryMissing(
            f"{what}. Nothing was written. Move --from behind that, or replay what there is with "
            "--allow-gap"
        )
    log.warning("%s. What lay before that is missing, the rest is replayed", what)
    return True


class Display:
    """Shows the progress, and a summary at the end."""

    def __init__(self, told: Arguments, span: Range, stored: Checkpoint | None) -> None:
        self._report = Report(told, span, stored)
        self._line = ProgressLine(span, quiet=told.settings.log_level >= logging.ERROR)
        self._started = time.monotonic()

    def show(self, published: int, lag_seconds: float, restarts: int, details: object) -> None:
        """See `supervisor.Display`."""
        self._learn(published, restarts, details)
        self._line.show(self._report.checkpoint)

    def close(self, published: int, restarts: int, details: object) -> None:
        """See `supervisor.Display`."""
        self._learn(published, restarts, details)
        self._line.close()
        self._report.count(metric_store.collected())

    def _learn(self, published: int, restarts: int, details: object) -> None:
        report = self._report
        report.published_now, report.restarts = published, restarts
        if isinstance(details, Counted):
            details, report.hours = details
        if isinstance(details, Checkpoint):
            report.checkpoint = details

    def conclude(self, status: int) -> int:
        """Print the summary and write the report; returns the exit status."""
        report, checkpoint = self._report, self._report.checkpoint
        if status == EXIT_STOPPED:
            if checkpoint is None or not _is_finished(checkpoint):
                status = EXIT_INTERRUPTED
            elif checkpoint.done is not None and checkpoint.done.incomplete:
                status = EXIT_INCOMPLETE
        report.status, report.seconds = status, time.monotonic() - self._started
        wrong, path = "", report.told.report
        if path is not None:
            try:
                report.write(path)
            except OSError as error:
                wrong = (
                    f"can't write the report {path}: {error.strerror}. The events are safe: the "
                    "summary is right. Run the same command again for the report"
                )
        try:
            print(report.text(), file=sys.stdout, flush=True)  # noqa: T201  # the summary
        except OSError as error:
            log.warning("can't write the summary to standard output: %s", error.strerror)
            # Or Python tries once more at its end, and complains.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        if wrong:
            raise Fatal(wrong)
        return status
