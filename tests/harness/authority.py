"""A certificate authority for tests, and certificates of it for this machine."""

from __future__ import annotations

import ssl
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import trustme


class Authority(NamedTuple):
    """Whom a client must trust, and how a server shows that it may be trusted."""

    ca: Path
    """PEM file of the authority, for `--upstream.ca`."""
    server: ssl.SSLContext
    """For a server at 127.0.0.1, ::1 or localhost."""


@cache
def authority() -> Authority:
    """The authority of this test process; made once, for keys take time."""
    own = trustme.CA()
    folder = Path(tempfile.mkdtemp(prefix="pleiades-test-ca-"))
    ca = folder / "ca.pem"
    own.cert_pem.write_to_path(ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.issue_cert("127.0.0.1", "::1", "localhost").configure_cert(context)
    return Authority(ca, context)
