"""A wall clock that a test can set; see `clock.c`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.harness.preload import preload


class Clock:
    """The clock of the processes that get its environment."""

    def __init__(self, folder: Path) -> None:
        self._ahead = folder / "ahead"
        self.set_ahead(0)
        self.environment = preload("clock", folder) | {"CLOCK_AHEAD_FILE": str(self._ahead)}

    def set_ahead(self, seconds: int) -> None:
        """Set the clock of all these processes at once."""
        # Written in place, because the processes have the file mapped.
        with self._ahead.open("r+b" if self._ahead.exists() else "wb") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))
