"""`pleiades` with the memory destination: `python -m tests.harness.with_memory COMMAND …`."""

from __future__ import annotations

import sys

from pleiades.cli import main
from pleiades.sinks.registry import DESTINATIONS
from tests.harness.memory import MemoryDestination

DESTINATIONS.append(MemoryDestination)

if __name__ == "__main__":
    sys.exit(main())
