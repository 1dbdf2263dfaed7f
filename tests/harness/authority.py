"""A certificate authority for tests, and certificates of it for this machine."""

from __future__ import annotations

import ssl
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pleiades.simulator.tls import server_context


class Authority(NamedTuple):
    """Whom a client must trust, and how a server shows that it may be trusted."""

    ca: Path
    """PEM file of the authority, for `--upstream.ca`."""
    server: ssl.SSLContext
    """For a server at 127.0.0.1, ::1 or localhost."""


@cache
def authority() -> Authority:
    """The authority of this test process; made once, for keys take time."""
    ca = Path(tempfile.mkdtemp(prefix="pleiades-test-ca-")) / "ca.pem"
    return Authority(ca, server_context("127.0.0.1", ca))
