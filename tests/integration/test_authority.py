"""The tests' certificate authority leaves nothing in the temporary folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
from tests.harness.authority import authority

ca = authority().ca
if os.fork() == 0:
    sys.exit()
assert os.wait()[1] == 0
assert ca.exists()
"""
TEST = """
from tests.harness.authority import authority

def test_it():
    assert authority().ca.exists()
"""
UNDER_PYTEST = ("-m", "pytest", "--numprocesses=1", "-p", "no:cacheprovider", "--basetemp={tests}")
TIMEOUT_SECONDS = 60


@pytest.mark.parametrize(
    ("arguments", "program"),
    [
        pytest.param((), SCRIPT, id="after a forked child"),
        pytest.param(UNDER_PYTEST, TEST, id="in a worker of pytest"),
    ],
)
def test_its_file_is_removed_when_the_process_ends(
    tmp_path: Path, arguments: tuple[str, ...], program: str
) -> None:
    temporary, file = tmp_path / "temporary", tmp_path / "test_program.py"
    temporary.mkdir()
    file.write_text(program)
    done = subprocess.run(
        [sys.executable, *(each.format(tests=tmp_path / "tests") for each in arguments), str(file)],
        cwd=Path(__file__).parents[2],
        env={
            **{name: text for name, text in os.environ.items() if not name.startswith("PYTEST")},
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "TMPDIR": str(temporary),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert not list(temporary.iterdir())
