"""The fault matrix in its short form: nearly every row, as briefly as possible."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.matrix import ROWS, Row, attempt
from tests.faults.rows import answers, upstream
from tests.faults.table import line
from tests.faults.trial import ARCHIVE, FILES, KAFKA

SHORT_MINUTES = 0.25
"""Short enough that each row repeats its fault as rarely as it may."""

LONGEST_SECONDS = 900

FULL_ONLY = {
    "kills-keyed on kafka",
    "frozen-child on kafka",
    "stop-while-stalled on kafka",
    "network-kafka on kafka",
    "too-few-replicas on kafka",
    "two-of-three-killed on kafka",
    "clock on files",
    "network-upstream on files",
    "coordinator-moved on kafka",
    "memory on files",
    "broker-disk-full on kafka",
    "frozen-relay on files",
    "two-instances on files",
    "kills on files",
    "memory on kafka",
    # tests/integration/test_metrics_server.py tests more.
    "metrics-folder on files",
    "metrics-folder on kafka",
    # `files-taken` dies at the same points.
    "kill-points on files",
    # One row of each group of similar ones is enough here.
    "bad-gateway-502 on kafka",
    "timestamps-back-20-seconds on kafka",
    # tests/faults/test_kafka.py starts three at once.
    "two-instances on kafka",
    # tests/integration/test_kafka.py has dead letters of a small topic.
    "message-too-large on kafka",
    # The sinks' contract, tests/contract/test_sinks.py, covers these.
    "idle-topic on files",
    "idle-topic on kafka",
    "new-starts on files",
    "new-starts on kafka",
    # tests/integration/test_kafka_memory.py has records that the broker dates.
    "records-dated-by-the-broker on kafka",
    "real-service on files",
    "real-service on kafka",
}
"""Cells that only `./scripts/faults` runs: they take long, and similar cells run here."""

ARCHIVE_ROWS = {"kill-points", "disk-full", "checkpoint-damaged"}
"""The only ones that run into an archive here: it shares most of its code with files."""


def belongs_here(row: Row, on: str) -> bool:
    """Run the upstream's faults only into a topic: there a repeat must be recognised, while a file that
    is written twice exists once."""
    if on == ARCHIVE:
        return row.name in ARCHIVE_ROWS
    upstream_only = row.scenario.__module__ in (answers.__name__, upstream.__name__)
    return f"{row.name} on {on}" not in FULL_ONLY and not (upstream_only and on == FILES)


CELLS = [
    pytest.param(row.name, on, id=f"{row.name} on {on}", marks=pytest.mark.timeout(LONGEST_SECONDS))
    for row in sorted(ROWS.values(), key=lambda row: not row.long)
    for on in row.on
    if belongs_here(row, on)
]


@pytest.mark.parametrize(("name", "destination"), CELLS)
def test_row(
    name: str,
    destination: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    bootstrap = request.getfixturevalue("kafka") if destination == KAFKA else ""
    seed = random.randrange(2**31)
    outcome = attempt(ROWS[name], destination, tmp_path, seed, SHORT_MINUTES, bootstrap)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    record_property("faults", line(outcome))
    again = (
        f"./scripts/faults --only {name} --on {destination} --seed {seed} --minutes {SHORT_MINUTES}"
    )
    assert outcome.ok, f"{line(outcome)}\n{outcome.error}\nAgain: {again}"
