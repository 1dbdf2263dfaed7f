"""The EventStreams protocol over HTTP, with a thread for each connection.

Law: a slow client slows only itself down: a batch is composed after the previous one was sent.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import ssl
import struct
from dataclasses import asdict, astuple
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from pleiades.simulator import request
from pleiades.simulator.body import Body, CutShort, Plan
from pleiades.simulator.feed import Feed
from pleiades.simulator.settings import Cut, Faults
from pleiades.simulator.upstream import LocalUpstream

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 16 * 1024
"""As much as Node takes: a `Last-Event-ID` of many topics is long."""
STREAM_PATH = "/v2/stream"
OPENING = b":ok\n\n"
_NO_LINGER = struct.pack("ii", 1, 0)


class Server(socketserver.ThreadingTCPServer):
    """Accepts connections, and appends due events between two of them."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, upstream: LocalUpstream, address: tuple[str, int]) -> None:
        self.upstream = upstream
        self._clients: set[socket.socket] = set()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)

    def service_actions(self) -> None:
        """Called at each tick."""
        self.upstream.append_due()

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; its own thread does the TLS handshake."""
        connection, address = self.socket.accept()
        tls = self.upstream.settings.tls
        if tls is not None:
            connection = tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        self._clients.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        self._clients.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Close everything, and wait for all threads."""
        for connection in list(self._clients):
            try:
                # Wakes the connection's thread, whatever it waits for.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError:
                continue
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report a bug: the handler expects clients to leave."""
        log.exception("the local upstream could not answer %s", client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, in its own thread."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def handle(self) -> None:
        """Answer request after request."""
        try:
            if isinstance(self.connection, ssl.SSLSocket):
                self.connection.do_handshake()
            super().handle()
        except OSError:
            # The client has left, or `stop` closed the connection.
            return

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002  # named in the base class
        """Say nothing: requests are counted."""

    def do_GET(self) -> None:
        """Answer one request."""
        upstream, target = self.server.upstream, urlsplit(self.path)
        path = unquote(target.path)
        if sum(len(name) + len(text) for name, text in self.headers.items()) > MAX_HEADER_BYTES:
            self.send_error(431)
        elif path == "/simulator/journal":
            self._answer(200, upstream.journal_lines(), "application/x-ndjson")
        elif path == "/simulator/stats":
            self._answer(200, orjson.dumps(asdict(upstream.stats())), "application/json")
        elif path.startswith(STREAM_PATH + "/"):
            upstream.count(requests_total=1)
            try:
                self._serve(path.removeprefix(STREAM_PATH + "/"), parse_qs(target.query))
            except request.Refusal as refusal:
                upstream.count(refused_total=1)
                self._answer(*astuple(refusal))
        else:
            self.send_error(404)

    def _answer(
        self,
        status: int,
        body: bytes,
        content_type: str | None,
        retry_after_seconds: int | None = None,
        reason: str | None = None,
    ) -> None:
        self.send_response(status, reason)
        if content_type is not None:
            self.send_header("Content-Type", content_type)
        if retry_after_seconds is not None:
            self.send_header("Retry-After", str(retry_after_seconds))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _serve(self, streams: str, query: dict[str, list[str]]) -> None:
        """Answer with a stream, until it ends.

        Raises:
            Refusal: not a stream, but this.
            OSError: the client has left.
        """
        upstream, uri, faults = self.server.upstream, self.path, self.server.upstream.faults
        if faults.check_user_agent:
            request.check_user_agent(self.headers.get("User-Agent", ""))
        if 0 < faults.max_connections <= len(upstream.open):
            raise request.too_many_connections(uri, faults.retry_after_seconds)
        topics = request.topics_for(streams, upstream.streams, uri)
        since = request.since_ms(query.get("since", [None])[0], uri)
        last_event_id = self.headers.get("Last-Event-ID")
        if last_event_id is not None:
            # http.client reads headers as Latin-1.
            last_event_id = last_event_id.encode("latin-1").decode(errors="surrogateescape")
        asked = request.asked_for(
            last_event_id, since, topics, upstream.partitions, faults.missing_topics
        )
        planned = upstream.next_plan(faults)
        if planned.refuse_status is not None:
            raise request.failure(planned.refuse_status, uri, faults.retry_after_seconds)
        if planned.hang:
            planned = planned._replace(cut_seconds=float("inf"))
        compress = faults.gzip and "gzip" in self.headers.get("Accept-Encoding", "")
        body = Body(self.connection, planned, faults, compress)
        try:
            if planned.hang:
                body.pause(float("inf"))
            with upstream.changed:
                cluster = upstream.cluster(planned.data_centre, faults.mirror_lag_seconds)
                feed = Feed(cluster, asked, planned.rng, upstream.now(), faults.deaf_seconds)
                upstream.open.add(body)
                upstream.count(connections_total=1, connections_open=1)
            try:
                self._start(compress)
                self._pump(feed, body, planned, faults)
            except CutShort as cut:
                upstream.count(cuts_total=int(cut.planned))
                self._end(cut.cut)
            finally:
                with upstream.changed:
                    upstream.open.discard(body)
                    upstream.count(connections_open=-1)
        finally:
            body.close()

    def _start(self, compress: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header(
            "Cache-Control", "private, max-age=0, s-maxage=0, must-revalidate, no-store"
        )
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Transfer-Encoding", "chunked")
        if compress:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()

    def _pump(self, feed: Feed, body: Body, planned: Plan, faults: Faults) -> None:
        """Write what the feed has; only an exception ends this."""
        upstream, rng = self.server.upstream, planned.rng
        body.write(OPENING)
        if planned.silent:
            body.pause(float("inf"))
        while True:
            with upstream.changed:
                batch, events = feed.next_batch(upstream.now())
                wait_seconds = None if events else feed.wait_seconds(upstream.now())
            if not events:
                body.wait(float("inf") if wait_seconds is None else wait_seconds)
                continue
            if faults.stall_rate > 0 and rng.random() < faults.stall_rate:
                body.pause(faults.stall_seconds)
            if faults.error_event_rate > 0 and rng.random() < faults.error_event_rate:
                body.write(batch)
                body.write(_error_event(feed))
                raise CutShort(Cut.CLEAN, planned=True)
            before = body.bytes_total
            try:
                body.write(batch)
            except BaseException:
                events = 0
                raise
            finally:
                served = body.bytes_total - before
                upstream.count(events_served_total=events, bytes_served_total=served)

    def _end(self, cut: Cut) -> None:
        if cut is Cut.CLEAN:
            self.wfile.write(b"0\r\n\r\n")
            return
        self.close_connection = True
        if cut is Cut.RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            # Before the server shuts it down: that would send a FIN.
            self.connection.close()


def _error_event(feed: Feed) -> bytes:
    error = {
        "message": "Local: Broker transport failure",
        "origin": "kafka",
        "name": "Error",
        "code": -195,
    }
    return b"event: error\n" + feed.id_line() + b"\ndata: " + orjson.dumps(error) + b"\n\n"
