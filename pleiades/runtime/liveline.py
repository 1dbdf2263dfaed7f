"""A line on a terminal that is redrawn in place; every log line clears it first. Silent in a pipe."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import NamedTuple

from pleiades.core.units import plural
from pleiades.runtime.logs import CLEAR_LINE, printable
from pleiades.runtime.output import Output, standard_error

DRAW_SECONDS = 0.5
MAX_PROBLEM = 200  # characters
SILENT_SECONDS = 10.0
"""After so long without an event, the line says so: the last event's lag means nothing any more."""
SMOOTHING = 0.3  # the weight of the latest rate


class Status(NamedTuple):
    """The state of a relay, as the supervisor sees it."""

    published: int
    lag_seconds: float
    restarts: int
    details: object
    """See `Beat`; so is `problem`."""
    problem: str = ""


class LiveLine:
    """Shows a relay that has no end: rate, total, lag, restarts."""

    def __init__(
        self,
        quiet: bool,
        now: Callable[[], float] = time.monotonic,
        terminal: Output | None = None,
    ) -> None:
        self._terminal = terminal or standard_error()
        self._on_terminal = self._terminal.isatty() and not quiet
        self._now = now
        self._drawn_at = now()
        self._last: tuple[float, int] | None = None
        self._rate = 0.0
        self._published = 0
        self._published_at = self._drawn_at

    def show(self, status: Status) -> None:
        """Called by the supervisor about twice a second."""
        if not self._is_due():
            return
        published = f"{status.published:,} published"
        silent_seconds = self._silent_seconds(status.published)
        if status.problem:
            self._last = None
            self.draw(f"{printable(status.problem, MAX_PROBLEM)} · {published}")
        else:
            is_silent = silent_seconds >= SILENT_SECONDS
            latest = "no event for" if is_silent else "lag"
            seconds = f"{silent_seconds:.0f}" if is_silent else f"{status.lag_seconds:.1f}"
            self.draw(
                f"{self.rate(status.published):,.0f} events/s · {published} · "
                f"{latest} {seconds} s · {plural(status.restarts, 'restart')}"
            )

    def close(self, published: int, restarts: int, details: object) -> None:
        """Called when all processes have ended and their metrics can still be read."""
        self.draw("")

    def rate(self, events: int) -> float:
        """Events per second, smoothed; `events`: the present total."""
        now = self._now()
        at, before = self._last or (now, events)
        if now > at:
            latest = (events - before) / (now - at)
            smoothed = (1 - SMOOTHING) * self._rate + SMOOTHING * latest
            self._rate = smoothed if self._rate else latest
        self._last = now, events
        return self._rate

    def draw(self, line: str) -> None:
        """Replace what stands there."""
        if self._on_terminal:
            width = shutil.get_terminal_size().columns
            self._terminal.draw(CLEAR_LINE + line[: width - 1])

    def _silent_seconds(self, published: int) -> float:
        now = self._now()
        if published != self._published:
            self._published, self._published_at = published, now
        return now - self._published_at

    def _is_due(self) -> bool:
        now = self._now()
        if now - self._drawn_at < DRAW_SECONDS:
            return False
        self._drawn_at = now
        return True
