"""The local upstream over HTTP, in threads of this process: one accepts, one serves each connection.

Law: a slow client slows only itself down: a batch is composed after the previous one was sent.
"""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler
from math import inf
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from pleiades.simulator import request
from pleiades.simulator.body import LOOK_SECONDS, Body, CutShort, plan
from pleiades.simulator.feed import Feed
from pleiades.simulator.log import Cluster
from pleiades.simulator.settings import Cut, Faults, SimulatorSettings
from pleiades.simulator.upstream import LocalUpstream

STREAM_PATH = "/v2/stream"
MAX_HEADER_BYTES = 16 * 1024
"""As much as Node takes: a `Last-Event-ID` of many topics is long."""
TICK_SECONDS = 0.005
"""The time between two rounds of appending; at 1,000 events/s five events a round."""

_NO_LINGER = struct.pack("ii", 1, 0)
_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "private, max-age=0, s-maxage=0, must-revalidate, no-store",
    "Access-Control-Allow-Origin": "*",
    "Transfer-Encoding": "chunked",
}
_ERROR_EVENT = b"""event: error
%b
data: {"message":"Local: Broker transport failure","origin":"kafka","name":"Error","code":-195}

"""


class Simulator(LocalUpstream):
    """A local upstream. `start` and `stop` may alternate: the log, the clock and the port stay, as when
    the real service is down for a while. `close` gives the port back.

    Raises:
        UsageError: a file of the settings can't be read or written.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        super().__init__(settings)
        self._port = settings.port
        self._reserved: socket.socket | None = None
        """Bound to the port, and never listens. While the service is down, connections are refused, and
        the kernel gives the port to nobody else, not even to an outgoing connection."""
        self._server: _Server | None = None

    def __enter__(self) -> Simulator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The base URL, to be followed by a slash and streams: `http://127.0.0.1:port/v2/stream`."""
        scheme = "http" if self.settings.tls is None else "https"
        host = self.settings.host
        host = f"[{host}]" if ":" in host else host
        return f"{scheme}://{host}:{self._port}{STREAM_PATH}"

    def start(self) -> str:
        """Serve; returns `url`. Does nothing while it is serving.

        Raises:
            OSError: the address can't be used.
        """
        if self._server is None:
            if self._reserved is None:
                self._reserved = _reserve(self.settings.host, self._port)
                self._port = int(self._reserved.getsockname()[1])
            self._server = _Server(self, (self.settings.host, self._port))
            accepting = partial(self._server.serve_forever, TICK_SECONDS)
            threading.Thread(target=accepting, daemon=True).start()
        return self.url

    def stop(self) -> None:
        """Close all connections, without a final chunk, and stop listening. The port stays reserved."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        """Stop, and give the port back."""
        self.stop()
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None


def _reserve(host: str, port: int) -> socket.socket:
    """A socket that keeps the port, but lets `_Server` listen on it; port 0: any free one."""
    reserved = socket.socket(_family(host))
    try:
        # Linux lets two sockets with this option have the same address, of which one may listen.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((host, port))
    except OSError:
        reserved.close()
        raise
    return reserved


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class _Server(socketserver.ThreadingTCPServer):
    """Accepts connections, and appends due events between two of them."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, upstream: LocalUpstream, address: tuple[str, int]) -> None:
        self.upstream = upstream
        self._clients: set[socket.socket] = set()
        self.address_family = _family(address[0])
        super().__init__(address, _Handler)
        if (tls := upstream.settings.tls) is not None:
            # A connection's own thread does the handshake, when it reads.
            wrap = partial(tls.wrap_socket, server_side=True, do_handshake_on_connect=False)
            self.socket = wrap(self.socket)

    def service_actions(self) -> None:
        """Called at each tick."""
        self.upstream.append_due()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection."""
        connection, address = self.socket.accept()
        self._clients.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self._clients.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Close everything, and wait for all threads."""
        for connection in list(self._clients):
            # Wakes the connection's thread, whatever it waits for.
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, in its own thread."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle(self) -> None:
        """Answer request after request, until the client leaves or the server closes."""
        with suppress(OSError):
            super().handle()

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002  # named in the base class
        """Say nothing: requests are counted."""

    def do_GET(self) -> None:
        """Answer one request."""
        upstream, target = self.server.upstream, urlsplit(self.path)
        path, faults = unquote(target.path), upstream.faults
        if sum(len(name) + len(text) for name, text in self.headers.items()) > MAX_HEADER_BYTES:
            self.send_error(431)
        elif path == "/simulator/journal":
            self._answer(200, {"Content-Type": "application/x-ndjson"}, upstream.journal_lines())
        elif path == "/simulator/stats":
            stats = orjson.dumps(upstream.stats())
            self._answer(200, {"Content-Type": "application/json"}, stats)
        elif path.startswith(STREAM_PATH + "/"):
            upstream.count(requests_total=1)
            try:
                self._serve(path.removeprefix(STREAM_PATH + "/"), parse_qs(target.query), faults)
            except request.Refusal as refusal:
                upstream.count(refused_total=1)
                body = refusal.body
                if isinstance(body, dict):
                    body = orjson.dumps({**body, "method": "GET", "uri": self.path})
                if refusal.status in (429, 503):
                    refusal.headers["Retry-After"] = f"{faults.retry_after_seconds:.0f}"
                self._answer(refusal.status, refusal.headers, body, refusal.reason)
        else:
            self.send_error(404)

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, reason: str | None = None
    ) -> None:
        self._begin(status, headers | {"Content-Length": str(len(body))}, reason)
        self.wfile.write(body)

    def _begin(self, status: int, headers: dict[str, str], reason: str | None = None) -> None:
        self.send_response(status, reason)
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()

    def _serve(self, streams: str, query: dict[str, list[str]], faults: Faults) -> None:
        """Answer with a stream, until it ends; raises `Refusal` before it begins."""
        upstream = self.server.upstream
        if not faults.any_user_agent:
            request.check_user_agent(self.headers.get("User-Agent", ""))
        if 0 < faults.max_connections <= upstream.count_clients():
            raise request.too_many_connections()
        topics = request.topics_for(streams, upstream.streams)
        since = request.since_ms(query.get("since", [None])[0])
        last_event_id = self.headers.get("Last-Event-ID")
        if last_event_id is not None:
            # http.client reads headers as Latin-1.
            last_event_id = last_event_id.encode("latin-1").decode(errors="surrogateescape")
        there = [each for each in upstream.log.partitions if each[0] not in faults.missing_topics]
        asked = request.asked_for(last_event_id, since, topics, there)
        planned = plan(faults, upstream.settings.seed, next(upstream.request_numbers))
        if planned.refuse_status is not None:
            raise request.failure(planned.refuse_status)
        compress = faults.gzip and "gzip" in self.headers.get("Accept-Encoding", "")
        body = Body(self.connection, planned, faults.chunk_bytes, compress)
        if planned.hang:
            body.pause(inf)
        lag_seconds, seed = faults.mirror_lag_seconds, upstream.settings.seed
        with upstream.changed:
            cluster = Cluster(upstream.log, planned.data_centre, seed, lag_seconds)
            feed = Feed(cluster, asked, planned.rng, upstream.now(), faults.deaf_seconds)
            upstream.open.add(body)
            upstream.count(connections_total=1, connections_open=1)
        try:
            self._begin(200, _STREAM_HEADERS | ({"Content-Encoding": "gzip"} if compress else {}))
            self._pump(feed, body, faults)
        except CutShort as short:
            cut = short.cut
            upstream.count(cuts_total=1)
        finally:
            with upstream.changed:
                upstream.open.discard(body)
                upstream.count(connections_open=-1)
        self._end(cut)

    def _pump(self, feed: Feed, body: Body, faults: Faults) -> None:
        """Write what the feed has; only an exception ends this."""
        upstream, rng = self.server.upstream, body.plan.rng
        body.write(b":ok\n\n")
        if body.plan.silent:
            body.pause(inf)
        while True:
            with upstream.changed:
                batch, events = feed.next_batch(upstream.now())
                if not events:
                    upstream.grown.wait(LOOK_SECONDS)
                    batch, events = feed.next_batch(upstream.now())
            if not events:
                body.pause(0)
                continue
            if faults.stall_rate > 0 and rng.random() < faults.stall_rate:
                body.pause(faults.stall_seconds)
            if faults.error_event_rate > 0 and rng.random() < faults.error_event_rate:
                body.write(batch)
                body.write(_ERROR_EVENT % feed.id_line())
                raise CutShort(Cut.CLEAN)
            before = body.bytes_total
            body.write(batch)
            served = body.bytes_total - before
            upstream.count(events_served_total=events, bytes_served_total=served)

    def _end(self, cut: Cut) -> None:
        if cut is Cut.CLEAN:
            self.connection.settimeout(None)
            self.wfile.write(b"0\r\n\r\n")
            return
        self.close_connection = True
        if cut is Cut.RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            # Before the server shuts it down: that would send a FIN.
            self.connection.close()
