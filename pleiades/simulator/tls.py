"""TLS for the local upstream: an authority of its own, and records of any size."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from pleiades.runtime.errors import UsageError

NAMES = ("127.0.0.1", "::1", "localhost")


def server_context(host: str, ca: Path, record_bytes: int) -> ssl.SSLContext:
    """What a server needs whose clients trust the authority in `ca`, which is made anew.

    Args:
        host: also in the certificate, beside those of this machine.
        ca: where to write the authority's certificate, in PEM form.
        record_bytes: a write makes records of at most so many bytes; 0: as large as they can be.

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
    if record_bytes:
        context.sslobject_class = _cutting(record_bytes)
    authority.issue_cert(*dict.fromkeys((*NAMES, host))).configure_cert(context)
    try:
        authority.cert_pem.write_to_path(ca)
    except OSError as error:
        raise UsageError(f"can't write the certificate {ca}: {error.strerror}") from None
    return context


def _cutting(record_bytes: int) -> type[ssl.SSLObject]:
    class CutObject(ssl.SSLObject):
        """Makes a record of each part of a write; all go into memory, so none of them blocks."""

        def write(self, data: Any) -> int:
            view = memoryview(data)
            return sum(
                super(CutObject, self).write(view[start : start + record_bytes])
                for start in range(0, len(view), record_bytes)
            )

    return CutObject
