"""The rows of the fault matrix, and how one of them is tried on one destination."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tests.faults.trial import FILES, KAFKA, NO_KAFKA, Outcome, Trial
from tests.harness import prerequisites

BOTH = (FILES, KAFKA)

Scenario = Callable[[Trial], None]


@dataclass(frozen=True)
class Row:
    """One fault, and how it is brought about."""

    name: str
    what: str
    on: tuple[str, ...]
    scenario: Scenario
    long: bool
    """It takes minutes in a full run: to be begun first."""
    alone: bool
    """It lasts as long as the run and costs no processor time: it goes on beside all others."""
    within_seconds: float | None
    """What is promised of the worst recovery, on a machine that is not overloaded."""


ROWS: dict[str, Row] = {}


def row(
    what: str,
    on: tuple[str, ...] = BOTH,
    *,
    long: bool = False,
    alone: bool = False,
    within_seconds: float | None = None,
) -> Callable[[Scenario], Scenario]:
    """Enter a function into the matrix; its name, with hyphens, is the row's."""

    def enter(scenario: Scenario) -> Scenario:
        name = scenario.__name__.replace("_", "-")
        assert name not in ROWS, name
        ROWS[name] = Row(name, what, on, scenario, long, alone, within_seconds)
        return scenario

    return enter


def in_order(*modules: ModuleType) -> None:
    """Sort the rows by the modules that they stand in; within one they stay as they stand there."""
    places = {module.__name__: place for place, module in enumerate(modules)}
    ordered = sorted(ROWS.items(), key=lambda entry: places[entry[1].scenario.__module__])
    ROWS.clear()
    ROWS.update(ordered)


def attempt(
    row: Row, destination: str, folder: Path, seed: int, minutes: float, bootstrap: str
) -> Outcome:
    """Try a row; whatever goes wrong is in the outcome."""
    begun = time.monotonic()
    trial = Trial(row.name, destination, folder, seed, minutes, bootstrap)
    outcome = trial.outcome
    try:
        if bootstrap == NO_KAFKA and destination == KAFKA:
            prerequisites.require(prerequisites.KAFKA)
        with trial:
            row.scenario(trial)
        outcome.ok = True
    except pytest.skip.Exception as reason:
        outcome.skipped = str(reason)
    except Exception:  # anything at all is a failed row, and the others go on
        outcome.error = traceback.format_exc()
    outcome.seconds = time.monotonic() - begun
    return outcome
