"""`./scripts/faults`: the whole matrix, each cell in a separate process, and a table at the end."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import psutil
from rich.console import Console

from tests.faults import rows  # noqa: F401  # enters them into the matrix
from tests.faults.matrix import ROWS, Row
from tests.faults.table import LEAST_WIDTH, line, markdown, result, table, total
from tests.faults.trial import ARCHIVE, FILES, FULL_MINUTES, KAFKA, NO_KAFKA, Outcome
from tests.harness import prerequisites
from tests.harness.broker import Broker

FOLDER = Path(__file__).parents[2] / ".faults"
"""Logs and files of failed cells; not in the temporary folder, which may be in memory."""
LONGEST_SECONDS = 1200.0
"""A cell is killed and fails if it exceeds its own duration by this much."""

Cell = tuple[Row, str]


class Cells:
    """Runs cells, each in its own session, so that none leaves processes behind."""

    def __init__(self, seed: int, minutes: float, bootstrap: str) -> None:
        self._seed = seed
        self._minutes = minutes
        self._bootstrap = bootstrap
        self._guard = threading.Lock()
        self._running: set[int] = set()
        self._over = False

    def run(self, row: Row, destination: str) -> Outcome:
        """Try one cell; there is an outcome whatever happens to its process."""
        folder = FOLDER / f"{row.name}-{destination}"
        clear(folder)
        folder.mkdir(parents=True)
        command = [sys.executable, "-m", "tests.faults.cell", row.name, destination, str(folder)]
        command += [f"--seed={self._seed}", f"--minutes={self._minutes}"]
        command.append(f"--kafka={self._bootstrap}")
        with (folder / "out").open("wb") as out:
            with self._guard:
                if self._over:
                    return Outcome(row.name, destination, self._seed, skipped="interrupted")
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
                self._running.add(process.pid)
            longest = LONGEST_SECONDS + (self._minutes * 60 if row.alone else 0)
            try:
                process.wait(longest)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            with self._guard:
                self._running.discard(process.pid)
        return self._outcome(row, destination, folder)

    def _outcome(self, row: Row, destination: str, folder: Path) -> Outcome:
        try:
            outcome = Outcome(**json.loads((folder / "outcome.json").read_text()))
        except (FileNotFoundError, ValueError):
            said = (folder / "out").read_text(errors="replace")
            error = f"the cell's process ended without an outcome\n{said}"
            return Outcome(row.name, destination, self._seed, error=error)
        if outcome.ok or outcome.skipped:
            clear(folder)
        return outcome

    def end(self) -> None:
        """Kill the running cells, and start no more."""
        with self._guard:
            self._over = True
            for pid in self._running:
                # The process may have ended in the meantime.
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)


def clear(folder: Path) -> None:
    """Remove a cell's folder, and unmount the file systems left in it by a killed cell."""
    mounts = [partition.mountpoint for partition in psutil.disk_partitions(all=True)]
    for mount in reversed(mounts):
        if Path(mount).is_relative_to(folder):
            subprocess.run(["umount", "--lazy", mount], check=False)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def kafka(needed: bool) -> Iterator[str]:
    """`host:port` of a broker for all cells that do not disturb it; `NO_KAFKA` if there is none."""
    if given := os.environ.get("KAFKA_BOOTSTRAP"):
        yield given
    elif not needed or not prerequisites.is_there(prerequisites.KAFKA):
        yield NO_KAFKA
    else:
        clear(FOLDER / "kafka")
        with Broker(FOLDER / "kafka") as broker:
            yield broker.bootstrap
        clear(FOLDER / "kafka")


def try_all(cells: list[Cell], runner: Cells, jobs: int, console: Console) -> list[Outcome]:
    """Run the cells side by side: first those whose recovery is measured against a promise, at most one
    per processor; then the others, which mostly wait; and those that cost nothing, beside all of these.
    """
    alone = [cell for cell in cells if cell[0].alone]
    measured = [cell for cell in cells if cell[0].within_seconds is not None]
    others = [cell for cell in cells if cell not in measured and cell not in alone]
    outcomes: dict[Cell, Outcome] = {}
    with ThreadPoolExecutor(max(len(alone), 1)) as beside:
        try:
            for group, width in ((measured, jobs), (others, 2 * jobs)):
                with ThreadPoolExecutor(width) as pool:
                    futures = {pool.submit(runner.run, *cell): cell for cell in by_length(group)}
                    if group is measured:
                        waiting = {beside.submit(runner.run, *cell): cell for cell in alone}
                    show(futures, outcomes, console)
            show(waiting, outcomes, console)
        except KeyboardInterrupt:
            runner.end()
            raise
    return [outcomes[cell] for cell in cells]


def by_length(cells: list[Cell]) -> list[Cell]:
    """Sort the cells, long ones first."""
    return sorted(cells, key=lambda cell: not cell[0].long)


def show(
    futures: dict[Future[Outcome], Cell], outcomes: dict[Cell, Outcome], console: Console
) -> None:
    """Show each outcome as soon as it is known."""
    for future in as_completed(futures):
        outcome = outcomes[futures[future]] = future.result()
        console.print(line(outcome), highlight=False)


def chosen(names: list[str], destination: str | None) -> list[Cell]:
    """The cells in the order of the table."""
    return [
        (row, on)
        for row in ROWS.values()
        for on in row.on
        if (not names or row.name in names) and destination in (None, on)
    ]


def explain(outcome: Outcome, minutes: float, console: Console) -> None:
    """Explain why a cell failed, and how to reproduce it."""
    console.rule(f"{outcome.row} on {outcome.destination}: {result(outcome)}")
    console.print(outcome.error, markup=False, highlight=False)
    console.print(
        f"Again: ./scripts/faults --only {outcome.row} --on {outcome.destination} "
        f"--seed {outcome.seed} --minutes {minutes:g}   Logs: "
        f"{FOLDER.name}/{outcome.row}-{outcome.destination}",
        highlight=False,
        soft_wrap=True,
    )


def arguments() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="./scripts/faults",
        description="Injects every fault of the matrix into the real relay, and compares the published "
        "events, read from scratch, with the upstream's.",
    )
    add = parser.add_argument
    add(
        "--minutes",
        type=float,
        default=FULL_MINUTES,
        help="approximate length of the run on two cores: repetitions and waits scale with it "
        f"(default: {FULL_MINUTES:g})",
    )
    add("--seed", type=int, help="repeat the victims and moments of another run (default: random)")
    add(
        "--only",
        action="append",
        choices=ROWS,
        metavar="NAME",
        help="run only this row; may be repeated",
    )
    add("--on", choices=(FILES, ARCHIVE, KAFKA), help="run only on this destination (default: all)")
    add(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="concurrent cells with measured recovery; twice as many others (default: cores)",
    )
    add("--json", type=Path, metavar="FILE", help="write the outcomes there")
    add("--markdown", type=Path, metavar="FILE", help="write the table there")
    add("--list", action="store_true", help="list the rows")
    return parser


def main() -> int:
    """Return 1 if a cell failed or was late, else 0. Cells that can't run here do not count."""
    given = arguments().parse_args()
    # Terminating this process by SIGTERM ends its cells too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    if not console.is_terminal:
        console = Console(width=LEAST_WIDTH)
    if given.list:
        for row in ROWS.values():
            console.print(f"{row.name:28} {', '.join(row.on):14} {row.what}", highlight=False)
        return 0
    seed = random.randrange(2**31) if given.seed is None else given.seed
    cells = chosen(given.only or [], given.on)
    console.print(
        f"{len(cells)} cells, seed {seed}, {given.minutes:g} minutes, {given.jobs} at a time; "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}",
        highlight=False,
    )
    with kafka(needed=any(on == KAFKA for _, on in cells)) as bootstrap:
        outcomes = try_all(cells, Cells(seed, given.minutes, bootstrap), given.jobs, console)
    console.print(table(outcomes))
    console.print(total(outcomes), highlight=False)
    if given.json:
        given.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    if given.markdown:
        given.markdown.write_text(markdown(outcomes))
    bad = [outcome for outcome in outcomes if not outcome.skipped and result(outcome) != "ok"]
    for outcome in bad:
        explain(outcome, given.minutes, console)
    skipped = [outcome.skipped for outcome in outcomes if outcome.skipped]
    if skipped:
        console.rule("not tested")
        for text in prerequisites.not_tested(skipped, "cell"):
            console.print(text, markup=False, highlight=False)
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
