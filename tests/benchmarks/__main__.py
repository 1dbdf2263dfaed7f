"""`./scripts/bench`: the relay's speed, compared with other programs for the same job."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from tests.benchmarks.pictures import PICTURES
from tests.benchmarks.report import as_json, markdown, page, table
from tests.benchmarks.trials import TRIALS, Bench, Row
from tests.harness.broker import Broker
from tests.harness.prerequisites import KAFKA, is_there

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".bench"
PICTURES_FOLDER = ROOT / "docs" / "performance"
EVENTS = 300_000
RUNS = 5
SECONDS = 30.0
QUICK_EVENTS = 2_000
QUICK_SECONDS = 1.0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="./scripts/bench",
        description="Measures the relay against its rivals: pairs of runs on one machine, their medians "
        "and ratios. KAFKA_BOOTSTRAP=host:port selects an existing broker instead of a private one.",
    )
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help=f"one of {', '.join(TRIALS)} (default: all of these); or a picture to draw: "
        f"{', '.join(PICTURES)}",
    )
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each (default %(default)s)")
    parser.add_argument(
        "--events", type=int, default=EVENTS, help="events in one run (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--markdown", action="store_true", help="print the result as Markdown")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one small run of each, to check that it works; its figures mean nothing",
    )
    parser.add_argument(
        "--report", metavar="FOLDER", type=Path, help="write a page with a picture into this folder"
    )
    parser.add_argument(
        "--against",
        metavar="CHECKOUT",
        type=Path,
        help="another checkout of Pleiades: the trial `against` compares its relay with this one",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=FOLDER,
        help="for input and files, on the file system to measure (default .bench)",
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        default=PICTURES_FOLDER,
        help="folder for the pictures (default docs/performance)",
    )
    given = parser.parse_args()
    there = [*TRIALS, *PICTURES]
    unknown = set(given.names) - set(there)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    if given.runs < 1 or given.events < 1000:
        parser.error("--runs must be at least 1, --events at least 1000")
    return given


@contextmanager
def kafka(folder: Path) -> Iterator[str]:
    """`host:port` of a broker."""
    if bootstrap := os.environ.get("KAFKA_BOOTSTRAP"):
        yield bootstrap
        return
    if not is_there(KAFKA):
        sys.exit(f"bench: needs {KAFKA.name}, or KAFKA_BOOTSTRAP=host:port: {KAFKA.remedy}")
    with Broker(folder / "kafka") as broker:
        yield broker.bootstrap


def main() -> int:
    """Run the chosen trials; returns 0 if all targets are met, else 1."""
    given = arguments()
    progress, out = Console(stderr=True, highlight=False), Console(highlight=False)
    rows: list[Row] = []
    with kafka(given.dir) as bootstrap:
        bench = Bench(
            bootstrap,
            given.dir.absolute(),
            QUICK_EVENTS if given.quick else given.events,
            1 if given.quick else given.runs,
            QUICK_SECONDS if given.quick else SECONDS,
            lambda text: progress.print(f"[dim]{text}"),
            given.quick,
            other=given.against and given.against.absolute(),
        )
        for name in given.names or TRIALS:
            if name in PICTURES:
                progress.print(f"{name}: {PICTURES[name].__doc__}")
                PICTURES[name](bench, given.pictures)
            else:
                progress.print(f"{name}: {TRIALS[name].__doc__}")
                rows += TRIALS[name](bench)
    if not rows:
        progress.print(f"the pictures are in {given.pictures}")
    elif given.json:
        sys.stdout.write(as_json(rows) + "\n")
    elif given.markdown:
        sys.stdout.write(markdown(rows) + "\n")
    else:
        out.print(table(rows))
    if rows and given.report is not None:
        progress.print(f"the report is {page(rows, given.report)}")
    missed = any(row.met is False for row in rows)
    return 1 if missed and not given.quick else 0


if __name__ == "__main__":
    sys.exit(main())
