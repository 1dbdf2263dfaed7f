"""Additions to requests for a stream from a server that may be slow or hostile.

Laws:
- The head of an answer has a deadline as a whole. A timeout for each read bounds nothing where bytes
  trickle.
- Interim responses (RFC 9110, section 15.2) come before the answer and are skipped.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any

import requests
import requests.adapters
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

MAX_INTERIM_RESPONSES = 32
"""The most `1xx` responses before an answer; a server that sends more never answers."""


class Answer(http.client.HTTPResponse):
    """The final response to a request.

    Attributes:
        sock: the body's source; after the headers `fp` may hold the body's first bytes.
    """

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.sock = sock
        self.fp = io.BufferedReader(_Head(sock, self.fp))

    def _read_status(self) -> tuple[str, int, str]:
        # http.client skips 100 alone, and any number of those.
        for _ in range(MAX_INTERIM_RESPONSES + 1):
            version, status, reason = super()._read_status()  # type: ignore[misc]  # not in typeshed
            if not 100 <= status < 200:  # noqa: PLR2004  # RFC 9110, section 15.2
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException(f"more than {MAX_INTERIM_RESPONSES} interim responses")


class _Head(io.RawIOBase):
    """Makes a socket's timeout that of all reads together, for as long as it has one."""

    def __init__(self, sock: socket.socket, file: io.BufferedReader) -> None:
        self._sock = sock
        self._file = file
        self._deadline = time.monotonic() + (sock.gettimeout() or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._sock.gettimeout():
            # 0 would mean: do not wait at all.
            self._sock.settimeout(max(self._deadline - time.monotonic(), 0.001))
        return self._file.raw.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


class _PlainPool(urllib3.HTTPConnectionPool):
    class ConnectionCls(HTTPConnection):
        response_class = Answer


class _TLSPool(urllib3.HTTPSConnectionPool):
    class ConnectionCls(HTTPSConnection):
        response_class = Answer


_POOLS = {"http": _PlainPool, "https": _TLSPool}


class _Adapter(requests.adapters.HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager


class StreamSession(requests.Session):
    """Leaves redirects to its caller: requests reads what a redirect says to its end, decompressed, even
    if it is not to follow it.
    """

    def __init__(self) -> None:
        super().__init__()
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter())

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: there is nowhere to go."""
