"""TLS for the local upstream, with a certificate authority of its own."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from pleiades.runtime.errors import UsageError


def server_context(host: str, ca: Path, record_bytes: int = 0) -> ssl.SSLContext:
    """A server's context; clients must trust the new authority whose certificate goes to `ca` (PEM).

    Args:
        host: also in the server's certificate, besides the names of this machine.
        record_bytes: most bytes in one TLS record; 0: no limit.

    Raises:
        UsageError: trustme is not installed, or the file can't be written.
    """
    try:
        import trustme
    except ModuleNotFoundError:
        raise UsageError(
            "the local upstream needs trustme for TLS, which is not installed; install it with: "
            "pip install 'pleiades[simulate]'"
        ) from None
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*{"127.0.0.1", "::1", "localhost", host}).configure_cert(context)
    if record_bytes:

        class CuttingSocket(ssl.SSLSocket):
            def send(self, data: Any, flags: int = 0) -> int:
                """Make one record; `sendall` calls this until everything is sent."""
                return super().send(memoryview(data)[:record_bytes], flags)

        context.sslsocket_class = CuttingSocket
    try:
        authority.cert_pem.write_to_path(ca)
    except OSError as error:
        raise UsageError(f"can't write the certificate {ca}: {error.strerror}") from None
    return context
