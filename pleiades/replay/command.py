"""`pleiades replay`: surveys the upstream, relays a range to its end, and reports."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pleiades.config.settings import ReplaySettings, Settings
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.range import Range
from pleiades.core.sse_id import TopicPartition
from pleiades.core.units import iso_time
from pleiades.replay.arguments import Arguments, arguments_from, replay_parser
from pleiades.replay.progress import ProgressLine
from pleiades.replay.report import Report
from pleiades.replay.survey import Found, Survey
from pleiades.runtime import logs
from pleiades.runtime.errors import (
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    Fatal,
    HistoryMissing,
    UsageError,
)
from pleiades.runtime.output import try_to_show
from pleiades.sinks.base import destination_of
from pleiades.upstream.environment import refuse_unusable

log = logging.getLogger(__name__)


def run(arguments: Sequence[str], description: str) -> int:
    """Replay a range; returns the exit status.

    Raises:
        UsageError: the arguments contradict each other, or the environment can't be obeyed.
        HistoryMissing: the upstream no longer has all of it; nothing was written.
        Fatal: the destination or the upstream can't be used.
    """
    told = arguments_from(vars(replay_parser(description).parse_args(arguments)))
    logs.configure(told.settings.log_level, told.settings.log_format, "parent")
    refuse_unusable(told.settings.upstream)
    stored = None
    if not (told.dry_run or told.restart):
        stored = destination_of(told.settings).stored_checkpoint()
    if stored is not None and stored.done is None:
        stored = None
    resume = not told.restart
    if _is_finished(stored) and (told.skip_existing or not told.absolute):
        # The destination may hold less than was published. And `-36h` means another range by now.
        stored, resume = None, False
    now_ms = time.time_ns() // 1_000_000 if stored is None else stored.clock_ms
    span = told.range(now_ms)
    started = time.monotonic()
    report = Report(told, span, stored)
    if _is_finished(stored):
        log.info("all of this is published already: --restart would begin again")
        return _conclude(report, EXIT_STOPPED, started)
    log.info(
        "replaying from %s to %s%s",
        iso_time(span.begin.default_ms),
        iso_time(span.end.default_ms),
        "" if stored is None else ", going on where an earlier run stopped",
    )
    settings = replace(_with_range(told, span, now_ms, stored), resume=resume)
    display = ProgressLine(report, quiet=settings.log_level >= logging.ERROR)

    from pleiades.pipeline import relay

    return _conclude(report, relay(settings, display), started)


def _is_finished(checkpoint: Checkpoint | None) -> bool:
    if checkpoint is None or checkpoint.done is None:
        return False
    return checkpoint.done.finished.issuperset(checkpoint.position)


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
    found = {
        source: survey.look(source, span)
        for source in sources
        if stored is None or not stored.position[source]
    }
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


def _tell_of_gaps(found: Mapping[TopicPartition, Found], allow_gap: bool) -> bool:
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


def _conclude(report: Report, status: int, started: float) -> int:
    """Print the summary and write the report; returns the exit status.

    Args:
        status: of the relay.
        started: monotonic.
    """
    checkpoint, path = report.checkpoint, report.told.report
    if status == EXIT_STOPPED and not _is_finished(checkpoint):
        status = EXIT_INTERRUPTED
    elif status == EXIT_STOPPED and checkpoint and checkpoint.done and checkpoint.done.incomplete:
        status = EXIT_INCOMPLETE
    report.status, report.seconds = status, time.monotonic() - started
    wrong = ""
    try:
        if path is not None:
            report.write(path)
    except OSError as error:
        wrong = (
            f"can't write the report {path}: {error.strerror}. The events are safe: the summary is "
            "right. Run the same command again for the report"
        )
    if unwritten := try_to_show(report.text()):
        log.warning("can't write the summary to standard output: %s", unwritten)
    if wrong:
        raise Fatal(wrong)
    return status
