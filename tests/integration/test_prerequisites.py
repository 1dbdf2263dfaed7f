"""A test with a missing prerequisite is skipped and listed, or fails with CI=true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.prerequisites import (
    KAFKA,
    NOT_THERE,
    SCRIPTS,
    SYSTEMD,
    NotThere,
    Prerequisite,
    not_tested,
    require,
)

TIMEOUT_SECONDS = 120
TOOLS = ("bash", "dirname", "mkdir", "flock", "id", "realpath", "uname", "env")


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with only Python and a few basic programs, without CI=true."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(
            next(path for path in (Path("/usr/bin") / tool, Path("/bin") / tool) if path.exists())
        )
    others = {
        name: text
        for name, text in os.environ.items()
        if name not in ("CI", "JAVA_HOME", "KAFKA_BOOTSTRAP") and not name.startswith("PYTEST")
    }
    return others | {"PATH": str(tools), "XDG_CACHE_HOME": str(tmp_path / "cache")}


def run(environment: dict[str, str], *command: str | Path) -> tuple[int, str]:
    done = subprocess.run(
        command,
        cwd=SCRIPTS.parent,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout


def run_pytest(environment: dict[str, str]) -> tuple[int, str]:
    """Run two tests: one needs a marker's prerequisite, the other a fixture's."""
    return run(
        environment,
        *(sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider"),
        "tests/integration/test_manifests.py::test_the_unit_is_valid_and_hardened",
        "tests/contract/test_kafka.py",
    )


def test_what_is_missing_is_skipped_and_listed_at_the_end(bare: dict[str, str]) -> None:
    status, said = run_pytest(bare)
    assert status == 0, said
    block = said.partition(" not tested ==")[2]
    assert f"missing: {SYSTEMD.name} (1 test)\n" in block, said
    assert f"    to test it: {SYSTEMD.remedy}\n" in block
    assert f"missing: {KAFKA.name} (" in block
    assert f"    not tested: {KAFKA.purpose}\n" in block


def test_in_ci_what_is_missing_is_a_failure(bare: dict[str, str]) -> None:
    status, said = run_pytest(bare | {"CI": "true"})
    assert status == 1, said
    assert f"needs {SYSTEMD.name}: systemd-analyze is not on the PATH. CI=true allows no" in said
    assert f"needs {KAFKA.name}: " in said
    assert "skipped" not in said


def faults(environment: dict[str, str], row: str) -> tuple[int, str]:
    """Run a row; each test uses a different one, because two at once would share the cell's folder."""
    only = ("--only", row, "--minutes", "0.25")
    return run(environment, sys.executable, "-m", "tests.faults", *only)


def test_rows_that_can_not_run_are_listed(bare: dict[str, str]) -> None:
    status, said = faults(bare, "message-too-large")
    assert status == 0, said
    assert "1 not run" in said
    block = said.partition("─ not tested ─")[2]
    assert f"missing: {KAFKA.name} (1 cell)\n" in block, said
    assert f"    to test it: {KAFKA.remedy}\n" in block


def test_in_ci_rows_that_can_not_run_have_failed(bare: dict[str, str]) -> None:
    status, said = faults(bare | {"CI": "true"}, "topic-deleted")
    assert status == 1, said
    assert f"needs {KAFKA.name}: " in said
    assert "1 failed" in said


def test_without_java_the_script_says_what_to_do(bare: dict[str, str]) -> None:
    status, said = run(bare, SCRIPTS / "kafka", "prepare")
    assert status == NOT_THERE, said
    assert "needs openjdk-17-jdk-headless" in said


def _nowhere() -> list[str]:
    raise NotThere("looked everywhere")


def test_one_that_is_there_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Prerequisite("there", "nothing", "nothing", lambda: ["/bin/there"])
    assert require(there) == ["/bin/there"]
    missing = Prerequisite("missing", "nothing", "nothing", _nowhere)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs missing: looked everywhere"):
        require(missing)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(AssertionError, match="needs missing: looked everywhere"):
        require(missing)


def test_nothing_skipped_nothing_said() -> None:
    assert list(not_tested([], "test")) == []


def test_other_reasons_are_listed_too() -> None:
    assert list(not_tested(["too hot", "too hot", "too cold"], "test")) == [
        "other: too hot (2 tests)",
        "other: too cold (1 test)",
    ]
