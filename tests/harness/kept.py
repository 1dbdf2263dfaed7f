"""A server that ends with the process that started it, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

STOP_SECONDS = 10

# Ends the server when the owner ends, or when its own input is closed.
KEEPER = """
import os, select, subprocess, sys
try:
    owner = [os.pidfd_open(int(sys.argv[1]))]
except ProcessLookupError:
    sys.exit()
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
select.select([sys.stdin, os.pidfd_open(server.pid), *owner], [], [])
server.kill()
"""


def start_kept(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a server; returns its keeper, which ends with it.

    Args:
        log: gets the output, after that of earlier starts.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-c", KEEPER, str(os.getpid()), *command],
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        )


def end_kept(keeper: subprocess.Popen[bytes]) -> None:
    """End a server and its keeper."""
    assert keeper.stdin is not None
    keeper.stdin.close()
    keeper.wait(STOP_SECONDS)
