"""The fault matrix in its short form: every row once, on each of its destinations."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults import rows  # noqa: F401  # enters them into the matrix
from tests.faults.matrix import ROWS, attempt
from tests.faults.table import line
from tests.faults.trial import KAFKA

SHORT_MINUTES = 0.25
"""Each row does what it does as seldom as it may."""

LONGEST_SECONDS = 900

CELLS = [
    pytest.param(row.name, on, id=f"{row.name} on {on}", marks=pytest.mark.timeout(LONGEST_SECONDS))
    for row in sorted(ROWS.values(), key=lambda row: not row.long)
    for on in row.on
]


@pytest.mark.parametrize(("name", "destination"), CELLS)
def test_row(name: str, destination: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    bootstrap = request.getfixturevalue("kafka") if destination == KAFKA else ""
    seed = random.randrange(2**31)
    outcome = attempt(ROWS[name], destination, tmp_path, seed, SHORT_MINUTES, bootstrap)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    print(line(outcome))  # noqa: T201
    again = (
        f"./scripts/faults --only {name} --on {destination} --seed {seed} --minutes {SHORT_MINUTES}"
    )
    assert outcome.ok, f"{line(outcome)}\n{outcome.error}\nAgain: {again}"
