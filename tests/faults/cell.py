"""`python -m tests.faults.cell`: one row on one destination, in a separate process.

Whatever a row does to its memory and its processes cannot affect other rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.faults import rows  # noqa: F401  # enters them into the matrix
from tests.faults.matrix import ROWS, attempt


def main() -> int:
    """Try the row and write the outcome as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("destination")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--kafka", required=True)
    given = parser.parse_args()
    outcome = attempt(
        ROWS[given.row], given.destination, given.folder, given.seed, given.minutes, given.kafka
    )
    (given.folder / "outcome.json").write_text(json.dumps(asdict(outcome)))
    return 0 if outcome.ok or outcome.skipped else 1


if __name__ == "__main__":
    sys.exit(main())
