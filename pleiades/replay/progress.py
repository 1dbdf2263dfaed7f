"""Shows the progress of a replay: a line that is redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pleiades.core.checkpoint import Checkpoint
from pleiades.core.range import Range
from pleiades.core.sse_id import TopicPartition
from pleiades.core.units import iso_time, rough_duration
from pleiades.replay.report import Report, name_of
from pleiades.runtime import metric_store
from pleiades.runtime.liveline import LiveLine, Status
from pleiades.runtime.output import Output

log = logging.getLogger(__name__)

PLAIN_SECONDS = 10.0  # between two plain lines
MAX_TOPICS = 3  # only the topics furthest behind are named; the others are counted
BAR_WIDTH = 24
WIDTH_WITH_BAR = 80  # a narrower terminal has room for the text only
DAY_MS = 86_400_000


class State(NamedTuple):
    """The progress of a replay."""

    part: float
    """The completed part of the range by upstream time, from 0 to 1."""
    events: int
    """Published in all runs."""
    rate: float
    """Events per second, smoothed."""
    reached: tuple[tuple[str, int], ...]
    """Topic and upstream time (ms since 1970; 0: nothing yet), those furthest behind first."""
    left_seconds: float | None
    """None: not known yet."""


def fraction(span: Range, source: TopicPartition, checkpoint: Checkpoint) -> float:
    """The part of a topic-partition's range that has come, from 0 to 1."""
    begin_ms, end_ms = span.begin.of(source), span.end.of(source)
    finished = checkpoint.done is not None and source in checkpoint.done.finished
    if finished or begin_ms >= end_ms:
        return 1.0
    reached_ms = checkpoint.position.get(source, 0)
    return min(max(reached_ms - begin_ms, 0) / (end_ms - begin_ms), 1.0)


def plain_line(state: State) -> str:
    """The progress for a pipe."""
    times = [f"{name} {iso_time(at) if at else 'not begun'}" for name, at in state.reached]
    shown = ", ".join(times[:MAX_TOPICS]) or "the end"
    if len(times) > MAX_TOPICS:
        shown += f" and {len(times) - MAX_TOPICS} more"
    left = "unknown"
    if state.left_seconds is not None:
        left = f"about {rough_duration(state.left_seconds)}"
    return (
        f"{state.part * 100:.1f} %, {state.events:,} events, {state.rate:,.0f} events/s, "
        f"reached {shown}, left {left}"
    )


def live_line(state: State, with_dates: bool) -> str:
    """The progress for a terminal."""
    pieces = [f"{state.part * 100:3.0f} %", f"{state.events:,} events", f"{state.rate:,.0f}/s"]
    if state.left_seconds is not None:
        pieces.append(f"{timedelta(seconds=int(state.left_seconds))} left")
    for name, at_ms in state.reached[:MAX_TOPICS]:
        at = datetime.fromtimestamp(at_ms / 1000, UTC)
        time_of_day = f"{at:%m-%d %H:%M:%S}" if with_dates else f"{at:%H:%M:%S}"
        pieces.append(f"{name.partition('.')[0]} {time_of_day if at_ms else '-'}")
    if len(state.reached) > MAX_TOPICS:
        pieces.append(f"+{len(state.reached) - MAX_TOPICS}")
    text = " · ".join(pieces)
    if shutil.get_terminal_size().columns < WIDTH_WITH_BAR:
        return text
    full = round(BAR_WIDTH * state.part)
    return f"{'━' * full}{'─' * (BAR_WIDTH - full)} {text}"


class ProgressLine(LiveLine):
    """Shows the progress on standard error, and keeps the report up to date.

    Args:
        quiet: only plain lines, also on a terminal. They are records of the log, whatever its level.
    """

    def __init__(
        self,
        report: Report,
        quiet: bool,
        now: Callable[[], float] = time.monotonic,
        terminal: Output | None = None,
    ) -> None:
        super().__init__(quiet, now, terminal)
        self._report = report
        self._span = span = report.span
        self._with_dates = span.end.default_ms - span.begin.default_ms > DAY_MS
        self._begun: tuple[float, float] | None = None
        """When this run first knew its progress, and that progress."""
        self._plain_at = now()
        log.setLevel(logging.INFO)

    def state(self, checkpoint: Checkpoint) -> State:
        """The progress that a checkpoint stands for."""
        now, position = self._now(), checkpoint.position
        parts = {source: fraction(self._span, source, checkpoint) for source in position}
        part = sum(parts.values()) / max(len(parts), 1)
        events = 0 if checkpoint.done is None else checkpoint.done.total
        self._begun = self._begun or (now, part)
        begun_at, begun_part = self._begun
        left = None
        if part > begun_part and now > begun_at:
            left = (1.0 - part) * (now - begun_at) / (part - begun_part)
        behind = sorted((done, source) for source, done in parts.items() if done < 1.0)
        # An id's timestamp is that of its event + 1.
        reached = tuple((name_of(source), max(position[source] - 1, 0)) for _, source in behind)
        return State(part, events, self.rate(events), reached, left)

    def show(self, status: Status) -> None:
        """See `LiveLine`."""
        self._report.learn(status.published, status.restarts, status.details)
        checkpoint = self._report.checkpoint
        if status.problem and self._on_terminal:
            super().show(status)
            return
        if checkpoint is None or not self._is_due():
            return
        state = self.state(checkpoint)
        if self._on_terminal:
            self.draw(live_line(state, self._with_dates))
        elif self._now() - self._plain_at >= PLAIN_SECONDS:
            self._plain_at = self._now()
            log.info("%s", plain_line(state))

    def close(self, published: int, restarts: int, details: object) -> None:
        """See `LiveLine`."""
        self.draw("")
        self._report.learn(published, restarts, details)
        self._report.count(metric_store.collected())
