"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.authority import authority
from tests.harness.kafka import kafka, own_broker, secure, topic
from tests.harness.relay import ingest_flags, kafka_flags, since_ms

__all__ = ["flags", "folder", "kafka", "own_broker", "secure", "simulate", "to_topic", "topic"]

NO_CUTS = Faults(cut_every_seconds=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The relay's publish directory."""
    return tmp_path / "events"


@pytest.fixture
def simulate() -> Iterator[Callable[[SimulatorSettings], Simulator]]:
    """Starts local upstreams that end with the test; with TLS, as the public service."""
    with ExitStack() as stack:
        yield lambda settings: stack.enter_context(
            Simulator(replace(settings, tls=authority().server))
        )


@pytest.fixture
def flags(folder: Path) -> Callable[[Simulator], list[str]]:
    """The usual arguments: files, this upstream, all its events from a minute before its start."""

    def arguments(upstream: Simulator) -> list[str]:
        return [
            *ingest_flags(upstream.url, since_ms(upstream)),
            "--file.enable",
            f"--file.publishDir={folder}",
        ]

    return arguments


@pytest.fixture
def to_topic(kafka: str, topic: str) -> Callable[[Simulator], list[str]]:
    """The same arguments with this test's topic as destination."""
    return lambda upstream: [
        *ingest_flags(upstream.url, since_ms(upstream)),
        *kafka_flags(kafka, topic),
    ]
