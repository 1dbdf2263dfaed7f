"""The rows of the fault matrix, and the attempt at a row on one destination."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tests.faults.trial import ARCHIVE, FILES, KAFKA, NO_KAFKA, Outcome, Trial
from tests.harness import prerequisites

ALL = (FILES, ARCHIVE, KAFKA)
DISKS = (FILES, ARCHIVE)

Scenario = Callable[[Trial], None]


@dataclass(frozen=True)
class Row:
    """One fault, and the scenario that injects it."""

    name: str
    what: str
    on: tuple[str, ...]
    scenario: Scenario
    long: bool
    """It takes minutes in a full run, so it starts first."""
    alone: bool
    """It lasts as long as the run and needs no processor time: it runs beside all others."""
    within_seconds: float | None
    """The promised limit of the worst recovery, on a machine that is not overloaded."""


ROWS: dict[str, Row] = {}


def row(
    what: str,
    on: tuple[str, ...] = ALL,
    *,
    long: bool = False,
    alone: bool = False,
    within_seconds: float | None = None,
) -> Callable[[Scenario], Scenario]:
    """Register a function as a row of the matrix, named like the function, with hyphens."""

    def enter(scenario: Scenario) -> Scenario:
        name = scenario.__name__.replace("_", "-")
        assert name not in ROWS, name
        ROWS[name] = Row(name, what, on, scenario, long, alone, within_seconds)
        return scenario

    return enter


def in_order(*modules: ModuleType) -> None:
    """Sort the rows by module; the order within a module stays."""
    places = {module.__name__: place for place, module in enumerate(modules)}
    ordered = sorted(ROWS.items(), key=lambda entry: places[entry[1].scenario.__module__])
    ROWS.clear()
    ROWS.update(ordered)


def attempt(
    row: Row, destination: str, folder: Path, seed: int, minutes: float, bootstrap: str
) -> Outcome:
    """Try a row; the outcome records any failure."""
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
    except Exception:  # any exception fails the row, and the others continue
        outcome.error = traceback.format_exc()
    outcome.seconds = time.monotonic() - begun
    return outcome
