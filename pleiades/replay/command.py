"""`pleiades replay`: looks before it writes, relays a range to its end, and says what it did."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from types import FrameType

from pleiades.config.settings import ReplaySettings, Settings
from pleiades.core.position import Checkpoint
from pleiades.core.range import Range
from pleiades.core.units import iso_time
from pleiades.core.wire import TopicPartition
from pleiades.replay.arguments import Arguments, arguments_from, replay_parser
from pleiades.replay.progress import ProgressLine
from pleiades.replay.report import Report, Totals, totals, write_report
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
from pleiades.sinks.counting import Counted, Hours

log = logging.getLogger(__name__)


def run(arguments: Sequence[str], description: str) -> int:
    """Replay a range; returns the exit status.

    Raises:
        UsageError: the arguments contradict each other.
        HistoryMissing: the upstream no longer has all of it; nothing was written.
        Fatal: the destination or the upstream can't be used.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    parsed = replay_parser(description).parse_args(arguments)
    told = arguments_from(vars(parsed))
    logs.configure(told.settings.log_level, told.settings.log_format, "parent")
    restart = told.restart
    stored = None if told.dry_run or restart else _stored(told.settings)
    if stored is not None and _is_finished(stored) and (told.skip_existing or not told.absolute):
        # What the topic has may be less than what was published. And `-36h` means another range by now.
        stored = None
        told = replace(told, restart=True)
    now_ms = time.time_ns() // 1_000_000 if stored is None else stored.clock_ms
    span = told.range(now_ms)
    display = Display(told, span, stored, restart)
    if stored is not None and _is_finished(stored):
        log.info("all of this is published already: --restart would begin again")
        return display.conclude(EXIT_STOPPED)
    log.info(
        "replaying from %s to %s%s",
        iso_time(span.begin.default_ms),
        iso_time(span.end.default_ms),
        "" if stored is None else ", going on where an earlier run stopped",
    )
    settings = _with_range(told, span, now_ms, stored)

    from pleiades.pipeline import replay

    return display.conclude(replay(settings, display))


def _leave(_number: int, _frame: FrameType | None) -> None:
    # Nothing is under way that would have to be finished.
    os._exit(EXIT_INTERRUPTED)


def _stored(settings: Settings) -> Checkpoint | None:
    """The checkpoint that an earlier run with the same arguments left."""
    checkpoint = destination_of(settings).stored_checkpoint()
    return None if checkpoint is None or checkpoint.done is None else checkpoint


def _is_finished(checkpoint: Checkpoint) -> bool:
    done = checkpoint.done
    return done is not None and done.finished.issuperset(checkpoint.position)


def _with_range(told: Arguments, span: Range, now_ms: int, stored: Checkpoint | None) -> Settings:
    """The settings of all processes, after a look at what the upstream has.

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
        resume=not told.restart,
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
    """Whether something is missing."""
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
    """What is seen meanwhile, and what is said at the end."""

    def __init__(
        self, told: Arguments, span: Range, stored: Checkpoint | None, restart: bool
    ) -> None:
        self._restart = restart
        settings = told.settings
        self._told = told
        self._span = span
        self._line = ProgressLine(span, quiet=settings.log_level >= logging.ERROR)
        self._checkpoint = stored
        self._hours: Hours = {}
        self._published = self._restarts = 0
        self._totals = Totals()
        self._started = time.monotonic()

    def show(self, published: int, lag_seconds: float, restarts: int, details: object) -> None:
        """See `supervisor.Display`."""
        self._learn(published, restarts, details)
        self._line.show(self._checkpoint)

    def close(self, published: int, restarts: int, details: object) -> None:
        """See `supervisor.Display`."""
        self._learn(published, restarts, details)
        self._line.close()
        self._totals = totals(metric_store.collected())

    def _learn(self, published: int, restarts: int, details: object) -> None:
        self._published, self._restarts = published, restarts
        if isinstance(details, Counted):
            details, self._hours = details
        if isinstance(details, Checkpoint):
            self._checkpoint = details

    def conclude(self, status: int) -> int:
        """Print the summary and write the report; returns the exit status."""
        checkpoint = self._checkpoint
        if status == EXIT_STOPPED:
            if checkpoint is None or not _is_finished(checkpoint):
                status = EXIT_INTERRUPTED
            elif checkpoint.done is not None and checkpoint.done.incomplete:
                status = EXIT_INCOMPLETE
        told = self._told
        report = Report(
            streams=told.settings.upstream.streams,
            destination=destination_of(told.settings).place,
            span=self._span,
            part=told.part,
            checkpoint=checkpoint,
            totals=self._totals,
            published_now=self._published,
            seconds=time.monotonic() - self._started,
            restarts=self._restarts,
            status=status,
            dry_run=told.dry_run,
            hours=self._hours,
            restart=self._restart,
        )
        wrong = ""
        if told.report is not None:
            try:
                write_report(told.report, report)
            except OSError as error:
                wrong = (
                    f"can't write the report {told.report}: {error.strerror}. The events are not "
                    "concerned: what the summary says holds. Run the same command again for it"
                )
        try:
            print(report.text(), file=sys.stdout, flush=True)  # noqa: T201  # what was asked for
        except OSError as error:
            log.warning("can't write the summary to standard output: %s", error.strerror)
            # Or Python tries once more at its end, and complains.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        if wrong:
            raise Fatal(wrong)
        return status
