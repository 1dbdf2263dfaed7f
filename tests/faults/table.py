"""The matrix as a reader sees it: one line a cell while it runs, a table at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from tests.faults.matrix import ROWS
from tests.faults.trial import Outcome

NUMBERS = ("faults", "events", "lost", "doubled", "out of order", "half-written", "set apart")
COLUMNS = ("fault", "on", *NUMBERS, "recovery, median / worst", "result")
"""Of the document."""
LEAST_WIDTH = 120
"""Where nobody says how wide a line may be."""


def result(outcome: Outcome) -> str:
    """In one word, and why it did not run."""
    if outcome.skipped:
        # The detail after the colon is in the JSON; the end of the run says what to install.
        return f"not run: {outcome.skipped.partition(': ')[0]}"
    if not outcome.ok:
        return "FAILED"
    return "late" if is_late(outcome) else "ok"


def is_late(outcome: Outcome) -> bool:
    """Whether a recovery took longer than is promised."""
    within = ROWS[outcome.row].within_seconds
    worst = outcome.worst_seconds
    return within is not None and worst is not None and worst > within


def recovery(outcome: Outcome) -> str:
    """Median and worst, in seconds."""
    median, worst = outcome.median_seconds, outcome.worst_seconds
    return "" if median is None or worst is None else f"{median:.1f} s / {worst:.1f} s"


def numbers(outcome: Outcome) -> list[str]:
    """In the order of `NUMBERS`."""
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
    """What is said when a cell is done."""
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
    """For a terminal: the rows by their short names."""
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
    """For a document: the rows by what they do, with what they noted."""
    lines: list[Sequence[str]] = [COLUMNS, ["---", "---", *["--:"] * (len(NUMBERS) + 1), "---"]]
    for outcome in outcomes:
        what = "; ".join([f"{ROWS[outcome.row].what} (`{outcome.row}`)", *outcome.notes])
        counted = [""] * len(NUMBERS) if outcome.skipped else numbers(outcome)
        lines.append([what, outcome.destination, *counted, recovery(outcome), result(outcome)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def total(outcomes: Iterable[Outcome]) -> str:
    """The last line."""
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
