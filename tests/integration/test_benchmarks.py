"""The benchmark works; what it measures in this small form means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.pictures import Curve, Point, draw
from tests.benchmarks.trials import TRIALS, Spread

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
    # `parsers` does what `growth` does.
    names = [name for name in TRIALS if name != "parsers"]
    done = bench(
        *names,
        "--quick",
        "--json",
        f"--dir={tmp_path}",
        environment={"KAFKA_BOOTSTRAP": kafka},
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["name"] for row in rows} == set(names)
    assert all(row["ours"]["median"] > 0 for row in rows)
    assert all(row["met"] is not None for row in rows if row["target"])
    # The input is kept for the next time; what was published is not.
    assert [left.name for left in tmp_path.iterdir()] == ["input"]


def test_each_stage_is_profiled(kafka: str, tmp_path: Path) -> None:
    done = bench(
        "profile",
        "--quick",
        f"--dir={tmp_path}/bench",
        f"--pictures={tmp_path}/drawn",
        environment={"KAFKA_BOOTSTRAP": kafka},
    )
    assert done.returncode == 0, done.stderr
    drawn = {file.name: file.read_text() for file in (tmp_path / "drawn").iterdir()}
    for stage in ("reader", "parser", "publisher"):
        assert f"(pleiades/{stage}.py:" in drawn.pop(f"{stage}.svg")
    assert not drawn


def test_curves_are_drawn(tmp_path: Path) -> None:
    points = [Point(1, Spread(5, 4, 6)), Point(64, Spread(1234, 1000, 1300))]
    for name in ("rates.svg", "again.svg"):
        draw(
            [Curve("parsers", "events/s", points), Curve("bytes", "MB/s", points)], tmp_path / name
        )
    drawn = (tmp_path / "rates.svg").read_text()
    for text in ("parsers", "events/s", "bytes", "MB/s", "64", "1,200"):
        assert f">{text}</text>" in drawn
    assert drawn == (tmp_path / "again.svg").read_text()


def test_an_unknown_name_is_told(tmp_path: Path) -> None:
    done = bench("nosuch", f"--dir={tmp_path}", environment={})
    assert done.returncode == 2
    assert "there is no nosuch; there are kafka, plain," in done.stderr
    assert not list(tmp_path.iterdir())
