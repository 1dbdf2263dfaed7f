"""What requests needs for a stream from a server that is slow, or hostile.

Laws:
- An answer has a deadline as a whole. A timeout for each read bounds nothing where bytes trickle.
- Interim responses (RFC 9110, section 15.2) come before the answer and are skipped.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import requests
import requests.adapters
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

MAX_INTERIM_RESPONSES = 32
"""So many `1xx` before an answer; a server that sends more never answers."""

_deadline: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


class Deadline:
    """Within it, every connection that is made is shut down once its time is up.

    Attributes:
        expired: the time was up.
    """

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        self._token = _deadline.set(self)
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        _deadline.reset(self._token)
        with self._lock:
            for own in self._sockets:
                own.close()
            self._sockets.clear()

    def watch(self, connected: socket.socket) -> None:
        """Shut this connection down when the time is up.

        A duplicate is kept: TLS takes the socket over, and to shut down an `SSLSocket` from another
        thread would make the reading one take ciphertext for the answer.
        """
        with self._lock:
            self._sockets.append(connected.dup())
        if self.expired:
            self._shut_down()

    def _expire(self) -> None:
        self.expired = True
        self._shut_down()

    def _shut_down(self) -> None:
        with self._lock:
            for own in self._sockets:
                # The connection may have ended by itself.
                with contextlib.suppress(OSError):
                    own.shutdown(socket.SHUT_RDWR)


class Answer(http.client.HTTPResponse):
    """The final response to a request.

    Attributes:
        sock: what its body comes from; after the headers `fp` may hold the body's first bytes.
    """

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.sock = sock

    def _read_status(self) -> tuple[str, int, str]:
        # http.client skips 100 alone, and any number of those.
        for _ in range(MAX_INTERIM_RESPONSES + 1):
            version, status, reason = super()._read_status()  # type: ignore[misc]  # not in typeshed
            if not 100 <= status < 200:  # noqa: PLR2004  # RFC 9110, section 15.2
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException(f"more than {MAX_INTERIM_RESPONSES} interim responses")


class _Watched:
    """A connection of urllib3 that a `Deadline` knows of."""

    def _new_conn(self) -> socket.socket:
        connected: socket.socket = super()._new_conn()  # type: ignore[misc]  # of the class beside it
        deadline = _deadline.get()
        if deadline is not None:
            deadline.watch(connected)
        return connected


class _PlainConnection(_Watched, HTTPConnection):
    response_class = Answer


class _TLSConnection(_Watched, HTTPSConnection):
    response_class = Answer


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


_POOLS = {"http": _PlainPool, "https": _TLSPool}


class _Adapter(requests.adapters.HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager


class Session(requests.Session):
    """Leaves redirects to its caller: requests reads what a redirect says to its end, decompressed, even
    if it is not to follow it.
    """

    def __init__(self) -> None:
        super().__init__()
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter())

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: there is nowhere to go."""
