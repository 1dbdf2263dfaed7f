"""Programs that tests need and the project does not: a script of ours prints where they are."""

from __future__ import annotations

import subprocess
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"

# The scripts', where there is neither the program nor what would make it.
NOT_THERE = 3
# The first call of all builds or installs.
LONGEST_SECONDS = 300


class NotThere(Exception):
    """The program is not here, and can't be made; the message says what is missing."""


def programs(script: str) -> list[str]:
    """What `scripts/…` prints: paths, one a line.

    Raises:
        NotThere: skip what needs it.
    """
    done = subprocess.run(
        [SCRIPTS / script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    if done.returncode == NOT_THERE:
        raise NotThere(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
