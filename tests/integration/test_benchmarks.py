"""The benchmark works; what it measures in this small form means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.trials import TRIALS

TIMEOUT_SECONDS = 240


def bench(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *arguments],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def test_every_trial_runs_and_is_reported(kafka: str, tmp_path: Path) -> None:
    done = bench("--quick", "--json", f"--dir={tmp_path}", environment={"KAFKA_BOOTSTRAP": kafka})
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["name"] for row in rows} == set(TRIALS)
    assert all(row["ours"]["median"] > 0 for row in rows)
    assert all(row["met"] is not None for row in rows if row["target"])
    # The input is kept for the next time; what was published is not.
    assert [left.name for left in tmp_path.iterdir()] == ["input"]


def test_an_unknown_name_is_told(tmp_path: Path) -> None:
    done = bench("nosuch", f"--dir={tmp_path}", environment={})
    assert done.returncode == 2
    assert "there is no nosuch; there are kafka, plain," in done.stderr
    assert not list(tmp_path.iterdir())
