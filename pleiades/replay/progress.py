"""Shows the progress of a replay: a line that is redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from pleiades.core.checkpoint import Checkpoint
from pleiades.core.range import Range
from pleiades.core.sse_id import TopicPartition
from pleiades.core.units import iso_time, rough_duration

log = logging.getLogger(__name__)

DRAW_SECONDS = 0.5
PLAIN_SECONDS = 10.0
"""Between two plain lines."""
SMOOTHING = 0.3
"""The weight of the latest rate."""
MAX_TOPICS = 3
"""Only the topics furthest behind are named; the others are counted."""
BAR = "━"
BAR_WIDTH = 24
WIDTH_WITH_BAR = 80
"""A narrower terminal has room for the text only."""
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


def name_of(source: TopicPartition) -> str:
    """`eqiad.mediawiki.recentchange`, with the partition where it is not the first."""
    topic, partition = source
    return f"{topic}/{partition}" if partition else topic


class Progress:
    """Follows a replay. Pure but for the clock it is given."""

    def __init__(self, span: Range, now: Callable[[], float]) -> None:
        self._span = span
        self._now = now
        self._begun: tuple[float, float] | None = None
        """When this run first knew its progress, and that progress."""
        self._last: tuple[float, int] | None = None
        self._rate = 0.0

    def state(self, checkpoint: Checkpoint) -> State:
        """The progress that a checkpoint stands for."""
        now, position = self._now(), checkpoint.position
        parts = {source: fraction(self._span, source, checkpoint) for source in position}
        part = sum(parts.values()) / max(len(parts), 1)
        events = 0 if checkpoint.done is None else checkpoint.done.total
        self._follow(now, events)
        self._begun = self._begun or (now, part)
        begun_at, begun_part = self._begun
        left = None
        if part > begun_part and now > begun_at:
            left = (1.0 - part) * (now - begun_at) / (part - begun_part)
        behind = sorted((done, source) for source, done in parts.items() if done < 1.0)
        # An id's timestamp is that of its event + 1.
        reached = tuple((name_of(source), max(position[source] - 1, 0)) for _, source in behind)
        return State(part, events, self._rate, reached, left)

    def _follow(self, now: float, events: int) -> None:
        at, before = self._last or (now, events)
        if now - at >= DRAW_SECONDS:
            latest = (events - before) / (now - at)
            smoothed = (1 - SMOOTHING) * self._rate + SMOOTHING * latest
            self._rate = smoothed if self._rate else latest
            at, before = now, events
        self._last = at, before


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


def live_text(state: State, with_dates: bool) -> str:
    """The progress for a terminal, beside the bar."""
    pieces = [f"{state.part * 100:3.0f} %", f"{state.events:,} events", f"{state.rate:,.0f}/s"]
    if state.left_seconds is not None:
        pieces.append(f"{timedelta(seconds=int(state.left_seconds))} left")
    for name, at_ms in state.reached[:MAX_TOPICS]:
        at = datetime.fromtimestamp(at_ms / 1000, UTC)
        time_of_day = f"{at:%m-%d %H:%M:%S}" if with_dates else f"{at:%H:%M:%S}"
        pieces.append(f"{name.partition('.')[0]} {time_of_day if at_ms else '-'}")
    if len(state.reached) > MAX_TOPICS:
        pieces.append(f"+{len(state.reached) - MAX_TOPICS}")
    return " · ".join(pieces)


class ProgressLine:
    """Shows the progress on standard error.

    Args:
        quiet: only plain lines, also on a terminal. They are records of the log, whatever its level.
    """

    def __init__(
        self,
        span: Range,
        quiet: bool,
        now: Callable[[], float] = time.monotonic,
        console: Console | None = None,
    ) -> None:
        self._progress = Progress(span, now)
        self._now = now
        log.setLevel(logging.INFO)
        self._with_dates = span.end.default_ms - span.begin.default_ms > DAY_MS
        self._console = console or Console(file=sys.stderr, highlight=False)
        self._live = self._console.is_terminal and not quiet
        self._drawn_at = self._plain_at = now()

    def show(self, checkpoint: Checkpoint | None) -> None:
        """Show the last durable checkpoint, if it is time; None: there is none yet."""
        now = self._now()
        if checkpoint is None or now - self._drawn_at < DRAW_SECONDS:
            return
        self._drawn_at = now
        state = self._progress.state(checkpoint)
        if self._live:
            self._draw(state)
        elif now - self._plain_at >= PLAIN_SECONDS:
            self._plain_at = now
            log.info("%s", plain_line(state))

    def close(self) -> None:
        """Remove the line."""
        if self._live:
            erase = (ControlType.ERASE_IN_LINE, 2)
            self._console.control(Control(ControlType.CARRIAGE_RETURN, erase))

    def _draw(self, state: State) -> None:
        self.close()
        line = Text(no_wrap=True, overflow="ellipsis")
        if self._console.width >= WIDTH_WITH_BAR:
            full = round(BAR_WIDTH * state.part)
            line.append(BAR * full, "green").append(BAR * (BAR_WIDTH - full), "dim").append(" ")
        line.append(live_text(state, self._with_dates))
        self._console.print(line, end="", no_wrap=True, overflow="ellipsis", crop=True)
