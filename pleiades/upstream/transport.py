"""Additions to requests for a stream from a server that may be slow or hostile.

Laws:
- The head of an answer has a deadline as a whole. A timeout for each read bounds nothing where bytes
  trickle.
- Interim responses (RFC 9110, section 15.2) come before the answer and are skipped.
- A request depends on the settings and on `upstream.environment`, never on an earlier answer: cookies
  are not kept.
"""

from __future__ import annotations

import http.client
import http.cookiejar
import io
import socket
import time
from functools import cache
from typing import Any

import requests
import requests.adapters
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from pleiades.upstream.environment import Authorities, Proxy

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


@cache
def _socks_pools() -> dict[str, type[urllib3.HTTPConnectionPool]]:
    from urllib3.contrib import socks

    class Connection(socks.SOCKSConnection):
        response_class = Answer

    class TLSConnection(socks.SOCKSHTTPSConnection):
        response_class = Answer

    class Pool(socks.SOCKSHTTPConnectionPool):
        ConnectionCls = Connection

    class TLSPool(socks.SOCKSHTTPSConnectionPool):
        ConnectionCls = TLSConnection

    return {"http": Pool, "https": TLSPool}


class _Adapter(requests.adapters.HTTPAdapter):
    def __init__(self, authorities: Authorities) -> None:
        super().__init__()
        self._authorities = authorities

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        is_socks = proxy.lower().startswith("socks")
        manager.pool_classes_by_scheme = _socks_pools() if is_socks else _POOLS
        return manager

    def cert_verify(self, conn: Any, *_: Any, **__: Any) -> None:
        """Every certificate is verified; requests would trust a proxy's that leads to a plain URL."""
        conn.cert_reqs = "CERT_REQUIRED"
        conn.ca_certs, conn.ca_cert_dir = self._authorities.file, self._authorities.folder


class StreamSession(requests.Session):
    """Leaves redirects to its caller: requests reads what a redirect says to its end, decompressed, even
    if it is not to follow it.
    """

    def __init__(self, authorities: Authorities) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=()))
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(authorities))

    def open(self, url: str, proxy: Proxy | None, **options: Any) -> requests.Response:
        """Ask for a stream; the answer is not read."""
        proxies = {} if proxy is None else {"all": proxy.url}
        return self.get(url, proxies=proxies, stream=True, **options)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: there is nowhere to go."""
