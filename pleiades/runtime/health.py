"""What the parent's web server says: `/metrics`, `/healthz`, `/readyz`; nothing else, and GET only."""

from __future__ import annotations

import socket
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from pleiades.runtime import metrics
from pleiades.runtime.errors import MetricsUnavailable
from pleiades.runtime.process_metrics import ProcessCollector, Processes
from pleiades.runtime.web import Answer, WebServer

Check = Callable[[], list[str]]
"""Returns what is wrong; nothing means well."""


class HealthServer:
    """Serves from a thread of the parent until closed.

    Raises:
        MetricsUnavailable: there can be no server at this address.
    """

    def __init__(
        self, host: str, port: int, healthy: Check, ready: Check, processes: Processes
    ) -> None:
        self._healthy = healthy
        self._ready = ready
        self._processes = ProcessCollector(processes)
        listener = None
        try:
            listener = _bound(host, port)
            self.port: int = listener.getsockname()[1]
            self._server = WebServer(listener, self._answer)
        except OSError as error:
            if listener is not None:
                listener.close()
            raise _unavailable(host, port, error) from None

    def close(self) -> None:
        """Stop serving."""
        self._server.close()

    def _answer(self, path: str) -> Answer:
        if path == "/metrics":
            registry = metrics.collected()
            registry.register(self._processes)
            return Answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
        if path == "/healthz":
            return _state(self._healthy())
        if path == "/readyz":
            return _state(self._ready())
        return Answer(404, b"not found: /metrics, /healthz and /readyz are here\n")


def _state(wrong: list[str]) -> Answer:
    if wrong:
        return Answer(503, ("\n".join(wrong) + "\n").encode())
    return Answer(200, b"ok\n")


def _bound(host: str, port: int) -> socket.socket:
    if not host and socket.has_dualstack_ipv6():
        host = "::"
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # All addresses means those of IPv4 too.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def refuse_if_taken(host: str, port: int) -> None:
    """Look whether there could be a `HealthServer`; nobody can connect meanwhile.

    Raises:
        MetricsUnavailable: there could not.
    """
    try:
        # Without listen(): it keeps nobody else from doing so.
        _bound(host, port).close()
    except OSError as error:
        raise _unavailable(host, port, error) from None


def _unavailable(host: str, port: int, error: OSError) -> MetricsUnavailable:
    return MetricsUnavailable(
        f"can't serve metrics on {host or '*'}:{port}: {error}. Nothing was read or "
        "written. Perhaps another Pleiades runs here; else choose another --metricsPort "
        "(0: any free one) or --metricsHost"
    )
