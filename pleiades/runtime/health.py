"""The parent's HTTP server: `/metrics`, `/healthz`, `/readyz`; nothing else, and GET only."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from pleiades.runtime import metrics
from pleiades.runtime.errors import MetricsUnavailable
from pleiades.runtime.logs import printable

log = logging.getLogger(__name__)

MAX_REQUESTS = 16
"""Requests answered at the same time; further connections are closed."""
REQUEST_TIMEOUT_SECONDS = 5.0

Check = Callable[[], list[str]]
"""Returns what is wrong; nothing means well."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    healthy: Check
    ready: Check

    def __init__(self, host: str, port: int, serves: bool = True) -> None:
        self._free = threading.BoundedSemaphore(MAX_REQUESTS)
        if not host and socket.has_dualstack_ipv6():
            host = "::"
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        self.address_family, _, _, _, address = found[0]
        super().__init__((str(address[0]), port), _Request, bind_and_activate=serves)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            # All addresses means those of IPv4 too.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            # No thread could be started: its place is free again.
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a client of the metrics server went away: %s", client_address, exc_info=True)


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_TIMEOUT_SECONDS
    server_version = "Pleiades"
    sys_version = ""

    def do_GET(self) -> None:  # the name that http.server asks for
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._metrics()
        elif path == "/healthz":
            self._state(self.server.healthy())
        elif path == "/readyz":
            self._state(self.server.ready())
        else:
            self._answer(404, b"not found: /metrics, /healthz and /readyz are here\n")

    def _metrics(self) -> None:
        try:
            page = generate_latest(metrics.collected())
        except Exception as error:  # a damaged file raises whatever its bytes lead to
            log.warning(
                "the metrics can't be read (%s); the relay itself goes on. Is the folder named by "
                "%s full or damaged?",
                printable(repr(error)),
                metrics.FOLDER_VARIABLE,
            )
            self._answer(500, b"the metrics files can't be read; the relay itself goes on\n")
            return
        self._answer(200, page, CONTENT_TYPE_LATEST)

    def _state(self, wrong: list[str]) -> None:
        if wrong:
            self._answer(503, ("\n".join(wrong) + "\n").encode())
        else:
            self._answer(200, b"ok\n")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002  # as in the base
        log.debug("%s %s", self.address_string(), printable(format % arguments))


class HealthServer:
    """Serves from threads of the parent until closed."""

    def __init__(self, host: str, port: int, healthy: Check, ready: Check) -> None:
        try:
            self._server = _Server(host, port)
        except OSError as error:
            raise _unavailable(host, port, error) from None
        self._server.healthy = healthy
        self._server.ready = ready
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def refuse_if_taken(host: str, port: int) -> None:
    """Look whether there could be a `HealthServer`; nobody can connect meanwhile.

    Raises:
        MetricsUnavailable: there could not.
    """
    try:
        server = _Server(host, port, serves=False)
        try:
            # Without listen(): it keeps nobody else from doing so.
            server.server_bind()
        finally:
            server.server_close()
    except OSError as error:
        raise _unavailable(host, port, error) from None


def _unavailable(host: str, port: int, error: OSError) -> MetricsUnavailable:
    return MetricsUnavailable(
        f"can't serve metrics on {host or '*'}:{port}: {error}. Nothing was read or "
        "written. Perhaps another Pleiades runs here; else choose another --metricsPort "
        "(0: any free one) or --metricsHost"
    )
