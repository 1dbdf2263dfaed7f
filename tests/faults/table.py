"""Prints the matrix: one line per cell during the run, a table at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from tests.faults.matrix import ROWS
from tests.faults.trial import Outcome

NUMBERS = ("faults", "events", "lost", "doubled", "out of order", "half-written", "set apart")
COLUMNS = ("fault", "on", *NUMBERS, "recovery, median / worst", "result")
"""The columns of the document."""
LEAST_WIDTH = 120
"""The table's width if the terminal's is unknown."""


def result(outcome: Outcome) -> str:
    """The result in one word, or the reason why it did not run."""
    if outcome.skipped:
        # The JSON has the detail after the colon; the end of the run says what to install.
        return f"not run: {outcome.skipped.partition(': ')[0]}"
    if not outcome.ok:
        return "FAILED"
    return "late" if is_late(outcome) else "ok"


def is_late(outcome: Outcome) -> bool:
    """True if a recovery took longer than promised."""
    within = ROWS[outcome.row].within_seconds
    worst = outcome.worst_seconds
    return within is not None and worst is not None and worst > within


def recovery(outcome: Outcome) -> str:
    """Median and worst recovery, in seconds."""
    median, worst = outcome.median_seconds, outcome.worst_seconds
    return "" if median is None or worst is None else f"{median:.1f} s / {worst:.1f} s"


def numbers(outcome: Outcome) -> list[str]:
    """The numbers in the order of `NUMBERS`."""
    counts = (
        outcome.faults,
        outcome.published,
        outcome.lost,
        outcome.doubled,
        outcome.disordered,
        outcome.broken,
        outcome.dead_letters,
    )
    return [f"{count:,}" for count in counts]


def line(outcome: Outcome) -> str:
    """The line for a finished cell."""
    said = f"{result(outcome):6} {outcome.row} on {outcome.destination}: "
    if outcome.skipped:
        return said.rstrip(": ")
    said += (
        f"{outcome.faults} faults, {outcome.published:,} events, lost {outcome.lost}, "
        f"doubled {outcome.doubled}, out of order {outcome.disordered}, "
        f"half-written {outcome.broken}"
    )
    if outcome.recoveries:
        said += f"; recovery {recovery(outcome)}"
    return "; ".join([said, *outcome.notes, f"{outcome.seconds:.0f} s"])


def table(outcomes: Iterable[Outcome]) -> Table:
    """The table for a terminal, with the rows' short names."""
    made = Table(box=None, pad_edge=False)
    for name in ("row", "on"):
        made.add_column(name, no_wrap=True)
    for name in (*(name.replace(" ", "\n") for name in NUMBERS), "recovery,\nmedian / worst"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("result")
    for outcome in outcomes:
        bad = not outcome.skipped and result(outcome) != "ok"
        made.add_row(
            outcome.row,
            outcome.destination,
            *(numbers(outcome) if not outcome.skipped else [""] * len(NUMBERS)),
            recovery(outcome),
            result(outcome),
            style="red" if bad else None,
        )
    return made


def markdown(outcomes: Iterable[Outcome]) -> str:
    """The table for a document, with the rows' descriptions and notes."""
    lines: list[Sequence[str]] = [COLUMNS, ["---", "---", *["--:"] * (len(NUMBERS) + 1), "---"]]
    for outcome in outcomes:
        what = "; ".join([f"{ROWS[outcome.row].what} (`{outcome.row}`)", *outcome.notes])
        counted = [""] * len(NUMBERS) if outcome.skipped else numbers(outcome)
        lines.append([what, outcome.destination, *counted, recovery(outcome), result(outcome)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def total(outcomes: Iterable[Outcome]) -> str:
    """The summary line."""
    outcomes = list(outcomes)
    ran = [outcome for outcome in outcomes if not outcome.skipped]
    sums = {
        name: sum(getattr(outcome, name) for outcome in ran)
        for name in ("faults", "published", "lost", "doubled", "disordered", "broken")
    }
    failed = sum(not outcome.ok for outcome in ran)
    late = sum(outcome.ok and is_late(outcome) for outcome in ran)
    return (
        f"{sums['faults']:,} faults, {sums['published']:,} events: lost {sums['lost']}, "
        f"doubled {sums['doubled']}, out of order {sums['disordered']}, "
        f"half-written {sums['broken']}; {len(ran)} cells, {failed} failed, {late} late, "
        f"{len(outcomes) - len(ran)} not run"
    )
