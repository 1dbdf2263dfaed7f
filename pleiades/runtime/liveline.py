"""One live line on a terminal: rate, total, lag, restarts. Silent in a pipe."""

from __future__ import annotations

import logging
import sys
import time

from pleiades.core.units import plural

INTERVAL_SECONDS = 0.5


class LiveLine:
    """Drawn over itself; every log line clears it first (see `logs`)."""

    def __init__(self, log_level: int) -> None:
        self._shown = False
        if sys.stderr.isatty() and log_level <= logging.INFO:
            # Only here: nobody else should wait for its import.
            from rich.console import Console

            self._console = Console(file=sys.stderr, highlight=False)
            self._shown = self._console.is_terminal
        self._at = time.monotonic()
        self._published = 0
        self._rate = 0.0

    def show(self, published: int, lag_seconds: float, restarts: int, details: object) -> None:
        """Draw it, at most twice a second."""
        now = time.monotonic()
        if not self._shown or now - self._at < INTERVAL_SECONDS:
            return
        rate = (published - self._published) / (now - self._at)
        self._rate = 0.7 * self._rate + 0.3 * rate
        self._at, self._published = now, published
        self._clear()
        self._console.print(
            f"{self._rate:,.0f} events/s · {published:,} published · lag {lag_seconds:.1f} s · "
            f"{plural(restarts, 'restart')}",
            end="",
            overflow="ellipsis",
            no_wrap=True,
        )

    def close(self, published: int, restarts: int, details: object) -> None:
        """Remove it."""
        if self._shown:
            self._clear()

    def _clear(self) -> None:
        from rich.control import Control
        from rich.segment import ControlType

        self._console.control(
            Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)),
        )
