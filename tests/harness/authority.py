"""A certificate authority for tests, and its certificates for this machine."""

from __future__ import annotations

import atexit
import os
import shutil
import ssl
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pleiades.simulator.tls import server_context


class Authority(NamedTuple):
    """The authority for clients, and the certificate for servers."""

    ca: Path
    """PEM file of the authority, for `--upstream.ca`."""
    server: ssl.SSLContext
    """For a server at 127.0.0.1, ::1 or localhost."""


@cache
def authority() -> Authority:
    """The authority of this test process; created once, because generating keys is slow.

    Its file is removed when the process ends.
    """
    folder = Path(tempfile.mkdtemp(prefix="pleiades-test-ca-"))
    atexit.register(_remove, folder, os.getpid())
    ca = folder / "ca.pem"
    return Authority(ca, server_context("127.0.0.1", ca))


def _remove(folder: Path, owner: int) -> None:
    # A forked child inherits the file, and must leave it to its parent.
    if os.getpid() == owner:
        shutil.rmtree(folder)
