"""How far a replay is: one line over itself on a terminal, one plain line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from pleiades.core.position import Checkpoint
from pleiades.core.range import Range
from pleiades.core.units import iso_time, rough_duration
from pleiades.core.wire import TopicPartition

log = logging.getLogger(__name__)

DRAW_SECONDS = 0.5
PLAIN_SECONDS = 10.0
"""Between two plain lines."""
SMOOTHING = 0.3
"""The weight of the latest rate."""
MAX_TOPICS = 3
"""So many are shown, those that are furthest behind; of more it is said how many."""
BAR = "━"
BAR_WIDTH = 24
WIDTH_WITH_BAR = 80
"""A narrower terminal has room for the text only."""
DAY_MS = 86_400_000


def fraction(span: Range, source: TopicPartition, checkpoint: Checkpoint) -> float:
    """How much of its part of the range has come from a topic-partition, from 0 to 1."""
    begin_ms, end_ms = span.begin.of(source), span.end.of(source)
    finished = checkpoint.done is not None and source in checkpoint.done.finished
    if finished or begin_ms >= end_ms:
        return 1.0
    reached_ms = checkpoint.position.get(source, 0)
    return min(max(reached_ms - begin_ms, 0) / (end_ms - begin_ms), 1.0)


def fractions(span: Range, checkpoint: Checkpoint) -> Mapping[TopicPartition, float]:
    """Of all topic-partitions, the ones furthest behind first."""
    by_source = {source: fraction(span, source, checkpoint) for source in checkpoint.position}
    return dict(sorted(by_source.items(), key=lambda item: (item[1], item[0])))


def name_of(source: TopicPartition) -> str:
    """`eqiad.mediawiki.recentchange`, with the partition where it is not the first."""
    topic, partition = source
    return f"{topic}/{partition}" if partition else topic


class State(NamedTuple):
    """What is shown."""

    part: float
    """Of all that is to be read, by upstream time, from 0 to 1."""
    events: int
    """Published in all runs."""
    rate: float
    """Events per second, of late."""
    reached: tuple[tuple[str, int], ...]
    """Topic and upstream time (ms since 1970; 0: nothing yet), those furthest behind first."""
    left_seconds: float | None
    """None: not known yet."""


class Progress:
    """Follows a replay. Pure but for the clock it is given."""

    def __init__(self, span: Range, now: Callable[[], float]) -> None:
        self._span = span
        self._now = now
        self._begun: tuple[float, float] | None = None
        """When this run first knew how far it is, and how far that was."""
        self._last: tuple[float, int] | None = None
        self._rate = 0.0

    def state(self, checkpoint: Checkpoint) -> State:
        """What to show."""
        now = self._now()
        parts = fractions(self._span, checkpoint)
        part = sum(parts.values()) / max(len(parts), 1)
        events = 0 if checkpoint.done is None else checkpoint.done.total
        self._follow(now, events)
        if self._begun is None:
            self._begun = now, part
        begun_at, begun_part = self._begun
        left = None
        if part > begun_part and now > begun_at:
            left = (1.0 - part) * (now - begun_at) / (part - begun_part)
        unfinished = [source for source, done in parts.items() if done < 1.0]
        # An id's timestamp is that of its event + 1.
        reached = tuple(
            (name_of(source), max(checkpoint.position[source] - 1, 0)) for source in unfinished
        )
        return State(part, events, self._rate, reached, left)

    def _follow(self, now: float, events: int) -> None:
        if self._last is None:
            self._last = now, events
            return
        at, before = self._last
        if now - at < DRAW_SECONDS:
            return
        latest = (events - before) / (now - at)
        self._rate = latest if not self._rate else (1 - SMOOTHING) * self._rate + SMOOTHING * latest
        self._last = now, events


def plain_line(state: State) -> str:
    """For a pipe."""
    times = [f"{name} {iso_time(at) if at else 'not begun'}" for name, at in state.reached]
    shown = ", ".join(times[:MAX_TOPICS])
    if len(times) > MAX_TOPICS:
        shown += f" and {len(times) - MAX_TOPICS} more"
    left = (
        "unknown" if state.left_seconds is None else f"about {rough_duration(state.left_seconds)}"
    )
    return (
        f"{state.part * 100:.1f} %, {state.events:,} events, {state.rate:,.0f} events/s, "
        f"reached {shown or 'the end'}, left {left}"
    )


def live_text(state: State, with_dates: bool) -> str:
    """For a terminal, beside the bar."""
    pieces = [
        f"{state.part * 100:3.0f} %",
        f"{state.events:,} events",
        f"{state.rate:,.0f}/s",
    ]
    if state.left_seconds is not None:
        pieces.append(f"{_clock(state.left_seconds)} left")
    pieces += [f"{name.partition('.')[0]} {_time(at, with_dates)}" for name, at in state.reached]
    if len(state.reached) > MAX_TOPICS:
        del pieces[len(pieces) - len(state.reached) + MAX_TOPICS :]
        pieces.append(f"+{len(state.reached) - MAX_TOPICS}")
    return " · ".join(pieces)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _time(milliseconds: int, with_date: bool) -> str:
    if not milliseconds:
        return "-"
    when = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return f"{when:%m-%d %H:%M:%S}" if with_date else f"{when:%H:%M:%S}"


class ProgressLine:
    """Shows it on standard error.

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
        """Show it, if it is time; `checkpoint`: the last durable one, None before there is one."""
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
        """Remove it."""
        if self._live:
            self._clear()

    def _draw(self, state: State) -> None:
        self._clear()
        line = Text(no_wrap=True, overflow="ellipsis")
        if self._console.width >= WIDTH_WITH_BAR:
            full = round(BAR_WIDTH * state.part)
            line.append(BAR * full, "green").append(BAR * (BAR_WIDTH - full), "dim").append(" ")
        line.append(live_text(state, self._with_dates))
        self._console.print(line, end="", no_wrap=True, overflow="ellipsis", crop=True)

    def _clear(self) -> None:
        self._console.control(
            Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)),
        )
