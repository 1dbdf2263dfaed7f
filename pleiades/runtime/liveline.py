"""One live line on a terminal: rate, total, lag, restarts. Silent in a pipe."""

from __future__ import annotations

import logging
import shutil
import sys
import time

from pleiades.core.units import plural
from pleiades.runtime.logs import CLEAR_LINE

INTERVAL_SECONDS = 0.5


class LiveLine:
    """Redrawn in place; every log line clears it first."""

    def __init__(self, log_level: int) -> None:
        self._shown = sys.stderr.isatty() and log_level <= logging.INFO
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
        line = (
            f"{self._rate:,.0f} events/s · {published:,} published · lag {lag_seconds:.1f} s · "
            f"{plural(restarts, 'restart')}"
        )
        width = shutil.get_terminal_size().columns
        sys.stderr.write(CLEAR_LINE + line[: width - 1])
        sys.stderr.flush()

    def close(self, published: int, restarts: int, details: object) -> None:
        """Remove it."""
        if self._shown:
            sys.stderr.write(CLEAR_LINE)
            sys.stderr.flush()
