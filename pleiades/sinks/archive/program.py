"""Starts the programs that work beside the publisher: the finisher and the uploader."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

_CODE = Path(__file__).resolve().parents[3]
"""The folder of the package `pleiades`: a program runs the same code, wherever it is installed."""


def start_program(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a program of this package, with pipes for its input and its output.

    It ends with the thread that starts it; see `startup.die_with_parent`.

    Raises:
        OSError: there is no process for it.
    """
    path = os.pathsep.join(filter(None, (str(_CODE), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(  # noqa: S603  # our own program
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        env={**os.environ, "PYTHONPATH": path},
    )
