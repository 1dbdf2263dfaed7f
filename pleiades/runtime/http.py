"""The parent's pages, and a small HTTP server for them, built on the standard library.

Law: a client costs bounded memory for a bounded time, whatever it sends, reads or leaves undone. A new
client is always let in: when all places are taken, the oldest connection is closed. Therefore slow or
silent clients lock nobody out.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.client import LineTooLong
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, NamedTuple

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from pleiades.runtime.errors import MetricsUnavailable
from pleiades.runtime.logs import Throttle, printable
from pleiades.runtime.metric_store import ComponentCollector, Processes, collected

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64  # each has a thread
MAX_HEAD_BYTES = 16 << 10  # request line and headers; Prometheus sends about 300 bytes
CONNECTION_SECONDS = 5.0  # from accepting a connection to the end of the answer
LINGER_SECONDS = 1.0
"""The time for which to read after the answer. If a socket is closed with unread input, the kernel
resets the connection, and the client may lose the answer."""
ACCEPT_PAUSE_SECONDS = 0.05
CHUNK_BYTES = 64 << 10

TEXT = "text/plain; charset=utf-8"

# RFC 9112 §3: a method, a target in origin or absolute form, a version; a line may end without CR.
_REQUEST_LINE = re.compile(
    rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ (?:(?i:https?)://[^/?#\s]+)?([\x21-\x7e]*) HTTP/[1-9]\.\d\r?\n"
)
_WARNINGS = Throttle(60.0)


class Answer(NamedTuple):
    """The response to a request."""

    status: int
    body: bytes
    content_type: str = TEXT


Page = Callable[[], Answer]
Check = Callable[[], list[str]]
"""Returns what is wrong; an empty list means that all is well."""


def pages(healthy: Check, ready: Check, processes: Processes) -> dict[str, Page]:
    """The pages of the parent, by path. A new page is one more line here."""
    registry = collected()
    registry.register(ComponentCollector(processes))
    # The parent's own, under the names that every Prometheus user expects.
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return {
        "/metrics": lambda: Answer(200, generate_latest(registry), CONTENT_TYPE_LATEST),
        "/healthz": lambda: _state(healthy()),
        "/readyz": lambda: _state(ready()),
    }


def _state(wrong: list[str]) -> Answer:
    return Answer(503 if wrong else 200, "".join(f"{line}\n" for line in wrong or ["ok"]).encode())


class HttpServer(ThreadingTCPServer):
    """Serves pages until closed, from threads of its own. Pages are called one at a time.

    Args:
        host: a name or address; empty: all addresses, IPv4 and IPv6.
        port: 0: any free port.
        pages: by path.
        serve: False: only check that the address is free.

    Raises:
        MetricsUnavailable: the address can't be used.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, pages: Mapping[str, Page], serve: bool = True) -> None:
        self.pages = pages
        self.calling = threading.Lock()
        self._lock = threading.Lock()
        self.deadlines: dict[socket.socket, float] = {}
        """The deadlines of open connections, oldest first."""
        all_addresses = "::" if socket.has_dualstack_ipv6() else None
        try:
            found = socket.getaddrinfo(
                host or all_addresses, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            address: Any
            self.address_family, *_, address = found[0]
            super().__init__(address, _Handler, bind_and_activate=serve)
            if not serve:
                with self:
                    # Without listening, which would keep others from it.
                    self.server_bind()
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise MetricsUnavailable(
                f"can't serve metrics on {host or '*'}:{port}: {error.strerror or error}. Nothing was "
                f"read or written. {'Another Pleiades may be running here. ' if taken else ''}Choose "
                "another --metricsPort (0: any free port) or --metricsHost"
            ) from None
        self.port: int = self.server_address[1]
        if serve:
            threading.Thread(target=self.serve_forever, name="http", daemon=True).start()

    def close(self) -> None:
        """Close the listener and all connections. No page is called afterwards."""
        # Wakes the thread that waits for clients.
        self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self.server_close()
        with self.calling, self._lock:
            for connection in list(self.deadlines):
                self._hang_up(connection)

    def server_bind(self) -> None:
        """See `TCPServer`."""
        if self.address_family == socket.AF_INET6:
            # The wildcard address includes IPv4.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        """See `TCPServer`."""
        try:
            return super().get_request()
        except OSError:
            # For example, no descriptor is free. Without a pause the loop would spin.
            threading.Event().wait(ACCEPT_PAUSE_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """See `ThreadingMixIn`."""
        with self._lock:
            if len(self.deadlines) >= MAX_CONNECTIONS:
                self._hang_up(next(iter(self.deadlines)))
            self.deadlines[request] = time.monotonic() + CONNECTION_SECONDS
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Close connections that have lasted too long. The loop calls it about twice a second."""
        now = time.monotonic()
        with self._lock:
            for connection, deadline in list(self.deadlines.items()):
                if deadline <= now:
                    self._hang_up(connection)

    def _hang_up(self, connection: socket.socket) -> None:
        """End whatever the connection's thread waits for, and thereby the thread."""
        del self.deadlines[connection]
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection whose thread is done."""
        with self._lock:
            self.deadlines.pop(request, None)
            self.close_request(request)

    def handle_error(self, _: Any, client_address: Any) -> None:
        """See `BaseServer`. Usually the client left, or was too slow."""
        log.debug("the connection of %s ended early", client_address[0], exc_info=True)


class _Head(io.BufferedReader):
    """Reads the lines of a request's head, which are bounded together."""

    left = MAX_HEAD_BYTES

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(self.left)
        self.left -= len(line)
        if line.endswith(b"\n"):
            return line
        if self.left:
            raise ConnectionAbortedError("a request without an end")
        raise LineTooLong("head")


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: HttpServer
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"
    raw_requestline = b""
    request_version = default_request_version = "HTTP/1.1"
    command = ""
    route = ""

    def setup(self) -> None:
        super().setup()
        self.rfile = _Head(self.rfile.detach())

    def handle(self) -> None:
        try:
            self.handle_one_request()
        except LineTooLong:
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)

    def parse_request(self) -> bool:
        request = _REQUEST_LINE.fullmatch(self.raw_requestline)
        if request is None:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return False
        self.route = request[1].decode().partition("?")[0]
        return super().parse_request()

    def do_GET(self) -> None:
        page = self.server.pages.get(self.route)
        if page is None:
            there = ", ".join(self.server.pages)
            self._answer(Answer(HTTPStatus.NOT_FOUND, f"not found; pages: {there}\n".encode()))
            return
        with self.server.calling:
            # Clients that were sent away while they waited for this lock must not pile up.
            if self.connection not in self.server.deadlines:
                return
            try:
                answer = page()
            except Exception:
                if _WARNINGS.due():
                    log.exception(
                        "a bug: %s can't be answered. The relay continues and no event is lost. "
                        "Please report it",
                        self.route,
                    )
                answer = Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"a bug; see the log\n")
        self._answer(answer)

    do_HEAD = do_GET  # noqa: N815

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with an error that repeats nothing of the request."""
        # The library knows no methods but those of `do_…`.
        unknown = code == HTTPStatus.NOT_IMPLEMENTED
        status = HTTPStatus.METHOD_NOT_ALLOWED if unknown else HTTPStatus(code)
        self._answer(Answer(status, f"{status.phrase}\n".encode()))

    def _answer(self, answer: Answer) -> None:
        line = printable(self.raw_requestline.rstrip(b"\r\n"))
        log.debug("%s: %s: %d", self.client_address[0], line, answer.status)
        self.send_response_only(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Connection", "close")
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def finish(self) -> None:
        super().finish()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER_SECONDS)
            while self.connection.recv(CHUNK_BYTES):
                pass


def refuse_if_taken(host: str, port: int) -> None:
    """Raise `MetricsUnavailable` if no `HttpServer` can use this address."""
    HttpServer(host, port, {}, serve=False)
