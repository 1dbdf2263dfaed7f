"""Starts the command from a process that first does something to itself."""

from __future__ import annotations

import sys

from tests.harness.relay import COMMAND

_LAUNCHER = """\
import ctypes, fcntl, os, resource, signal, sys, time
sys.path.insert(0, {root!r})
from tests.harness.permissions import drop_overrides_for_good
{before}
os.execv(sys.argv[1], sys.argv[1:])
"""

ROOT = __file__.removesuffix("tests/harness/launcher.py")


def launched(before: str, command: tuple[str, ...] = COMMAND) -> tuple[str, ...]:
    """The command, started by a process that has run `before` first."""
    return sys.executable, "-c", _LAUNCHER.format(root=ROOT, before=before), *command


def with_full_pipe(descriptor: int, path: object) -> str:
    """For `launched`: make a descriptor a pipe that is full, and that nobody reads.

    Args:
        path: of the pipe, which is created. Whoever opens it later can read it.
    """
    return f"""\
os.mkfifo({str(path)!r})
pipe = os.open({str(path)!r}, os.O_RDWR | os.O_NONBLOCK)
fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
os.write(pipe, b"x" * 4095 + b"\\n")
os.set_blocking(pipe, True)
os.dup2(pipe, {descriptor})
"""
