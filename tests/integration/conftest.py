"""What the end-to-end tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator

NO_CUTS = Faults(cut_every_seconds=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the relay publishes to."""
    return tmp_path / "events"


@pytest.fixture
def simulate() -> Iterator[Callable[[SimulatorSettings], Simulator]]:
    """Starts local upstreams that end with the test."""
    with ExitStack() as stack:
        yield lambda settings: stack.enter_context(Simulator(settings))


@pytest.fixture
def flags(folder: Path) -> Callable[[Simulator], list[str]]:
    """The usual arguments: files, this upstream, everything it has from a minute before its start."""

    def arguments(upstream: Simulator) -> list[str]:
        return [
            "ingest",
            "--file.enable",
            f"--file.publishDir={folder}",
            f"--upstream.url={upstream.url}",
            f"--since={upstream.started_ms - 60_000}",
            "--metricsHost=127.0.0.1",
            "--metricsPort=0",
        ]

    return arguments
