"""The local upstream: the EventStreams protocol over HTTP, with a thread for each connection.

Law: a slow client slows only itself down: a batch is composed after the previous one was sent. One
lock guards the log, the counters and the open connections; nothing is sent while it is held.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from pleiades.simulator import request
from pleiades.simulator.body import Body, CutShort, Plan, plan
from pleiades.simulator.feed import Feed
from pleiades.simulator.journal import JournalEntry
from pleiades.simulator.settings import Cut, Faults, SimulatorSettings
from pleiades.simulator.upstream import LocalUpstream

log = logging.getLogger(__name__)

TICK_SECONDS = 0.005
"""The time between two rounds of appending; at 1,000 events/s five events a round."""
MAX_HEADER_BYTES = 16 * 1024
"""As much as Node takes: a `Last-Event-ID` of many topics is long."""
STREAM_PATH = "/v2/stream"
OPENING = b":ok\n\n"
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Stats:
    """Counters since the start."""

    requests_total: int = 0
    """Requests for a stream, refused ones included."""
    connections_total: int = 0
    """Streams that were opened."""
    connections_open: int = 0
    refused_total: int = 0
    """Requests answered with anything but a stream."""
    cuts_total: int = 0
    """Streams that were cut, `error` events included."""
    events_appended_total: int = 0
    events_served_total: int = 0
    """Whole events given to the network; a cut may have lost some of them."""
    bytes_served_total: int = 0
    """Of bodies, as written (compressed)."""


class Simulator:
    """A local upstream, in threads of this process. `start` and `stop` may alternate: the log, the clock
    and the port stay, as when the real service is down for a while.

    Args:
        settings: None: the defaults.

    Raises:
        UsageError: a file of the settings can't be read or written.
    """

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        self.settings = settings or SimulatorSettings()
        self.faults = self.settings.faults
        self.started_ms = time.time_ns() // 1_000_000
        """The start, ms since 1970; the history is dated before it."""
        self.upstream = LocalUpstream(self.settings, self.started_ms)
        self.upstream.append_history()
        self.changed = threading.Condition()
        """Guards everything here; notified of each change of the counters."""
        self.open: set[Body] = set()
        self._stats = Stats(events_appended_total=self.upstream.log.appended_total)
        self._started = time.monotonic()
        self._port = self.settings.port
        self._planned = 0
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Simulator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The base URL, to be followed by a slash and streams: `http://127.0.0.1:port/v2/stream`."""
        scheme = "http" if self.settings.tls is None else "https"
        return f"{scheme}://{self.settings.host}:{self._port}{STREAM_PATH}"

    def start(self) -> str:
        """Serve; returns `url`. Does nothing while it is serving.

        Raises:
            OSError: the address can't be used.
        """
        if self._server is None:
            server = self._server = _Server(self, (self.settings.host, self._port))
            self._port = int(server.server_address[1])
            tick = TICK_SECONDS if self.settings.rate > 0 else 10 * TICK_SECONDS
            self._thread = threading.Thread(
                target=server.serve_forever, args=(tick,), name="simulator", daemon=True
            )
            self._thread.start()
        return self.url

    def stop(self) -> None:
        """Close all connections, without a final chunk, and stop listening."""
        server, self._server = self._server, None
        if server is not None and self._thread is not None:
            server.shutdown()
            self._thread.join()
            server.server_close()

    def append(self, count: int) -> int:
        """Append the next events now, whether due or not; returns how many there were."""
        if self._server is None:
            raise RuntimeError("the simulator is not serving")
        return self._grow(lambda now: self.upstream.append_next(count, now))

    def append_due(self) -> None:
        """Append what is due."""
        due = self.upstream.due_seconds
        if self.settings.rate > 0 and due is not None and due < self.now():
            self._grow(self.upstream.append_due)

    def _grow(self, append: Callable[[float], int]) -> int:
        with self.changed:
            appended = append(self.now())
            self._stats.events_appended_total = self.upstream.log.appended_total
            for body in self.open:
                body.wake()
            self.changed.notify_all()
        return appended

    def cut_all(self, cut: Cut = Cut.RESET) -> int:
        """Cut every open stream; returns how many."""
        with self.changed:
            for body in self.open:
                body.abandon(cut)
            self.count(cuts_total=len(self.open))
            return len(self.open)

    def set_faults(self, **changes: object) -> Faults:
        """Change fields of `Faults` for future requests; returns all of them."""
        self.faults = replace(self.faults, **changes)  # type: ignore[arg-type]
        return self.faults

    def next_plan(self, faults: Faults) -> Plan:
        """The plan for the next request."""
        with self.changed:
            self._planned += 1
            return plan(faults, self.settings.seed, self._planned)

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def count(self, **changes: int) -> None:
        """Add to counters."""
        with self.changed:
            for name, change in changes.items():
                setattr(self._stats, name, getattr(self._stats, name) + change)
            self.changed.notify_all()

    def journal(self) -> list[JournalEntry]:
        """Everything appended so far, in that order."""
        return self.upstream.journal.entries()

    def stats(self) -> Stats:
        """A copy of the counters."""
        with self.changed:
            return replace(self._stats)

    @property
    def connections_total(self) -> int:
        """Streams opened so far."""
        return self._stats.connections_total

    def wait_until(
        self, condition: Callable[[Stats], bool], timeout_seconds: float = 10.0
    ) -> Stats:
        """Wait until the counters fulfil a condition; returns a copy of them.

        Raises:
            TimeoutError: they did not in time.
        """
        with self.changed:
            if not self.changed.wait_for(lambda: condition(self._stats), timeout_seconds):
                raise TimeoutError(f"still {self._stats} after {timeout_seconds} s")
            return self.stats()


class _Server(socketserver.ThreadingTCPServer):
    """Accepts connections, and appends due events between two of them."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, simulator: Simulator, address: tuple[str, int]) -> None:
        self.simulator = simulator
        self._clients: set[socket.socket] = set()
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def service_actions(self) -> None:
        self.simulator.append_due()

    def get_request(self) -> tuple[Any, Any]:
        connection, address = self.socket.accept()
        tls = self.simulator.settings.tls
        if tls is not None:
            # The handshake is left to the connection's own thread.
            connection = tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        self._clients.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self._clients.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        for connection in list(self._clients):
            try:
                # Wakes the connection's thread, whatever it waits for.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError:
                continue
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Only bugs come here: the handler knows that clients leave.
        log.exception("the local upstream could not answer %s", client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, in its own thread."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle(self) -> None:
        try:
            if isinstance(self.connection, ssl.SSLSocket):
                self.connection.do_handshake()
            super().handle()
        except OSError:
            # The client has left, or `stop` closed the connection.
            return

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002  # named in the base class
        """Say nothing: requests are counted."""

    def do_GET(self) -> None:  # named in the base class
        simulator, target = self.server.simulator, urlsplit(self.path)
        path = unquote(target.path)
        if sum(len(name) + len(text) for name, text in self.headers.items()) > MAX_HEADER_BYTES:
            self.send_error(431)
        elif path == "/simulator/journal":
            self._answer(200, simulator.upstream.journal.chunks(), "application/x-ndjson")
        elif path == "/simulator/stats":
            self._answer(200, [orjson.dumps(asdict(simulator.stats()))], "application/json")
        elif path.startswith(STREAM_PATH + "/"):
            simulator.count(requests_total=1)
            try:
                self._serve(path.removeprefix(STREAM_PATH + "/"), parse_qs(target.query))
            except request.Refusal as refusal:
                simulator.count(refused_total=1)
                self._answer(
                    refusal.status,
                    [refusal.body],
                    refusal.content_type,
                    refusal.reason,
                    refusal.retry_after_seconds,
                )
        else:
            self.send_error(404)

    def _answer(
        self,
        status: int,
        body: Iterable[bytes],
        content_type: str | None,
        reason: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        whole = b"".join(body)
        self.send_response(status, reason)
        if content_type is not None:
            self.send_header("Content-Type", content_type)
        if retry_after_seconds is not None:
            self.send_header("Retry-After", str(retry_after_seconds))
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(whole)

    def _serve(self, streams: str, query: dict[str, list[str]]) -> None:
        """Answer with a stream, until it ends.

        Raises:
            Refusal: not a stream, but this.
            OSError: the client has left.
        """
        simulator, uri = self.server.simulator, self.path
        upstream, faults = simulator.upstream, simulator.faults
        if faults.check_user_agent:
            request.check_user_agent(self.headers.get("User-Agent", ""))
        if 0 < faults.max_connections <= len(simulator.open):
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
        planned = simulator.next_plan(faults)
        if planned.refuse_status is not None:
            raise request.failure(planned.refuse_status, uri, faults.retry_after_seconds)
        if planned.hang:
            planned = planned._replace(cut_seconds=float("inf"))
        compress = faults.gzip and "gzip" in self.headers.get("Accept-Encoding", "")
        body = Body(self.connection, planned, faults, compress)
        try:
            if planned.hang:
                body.pause(float("inf"))
            with simulator.changed:
                cluster = upstream.cluster(planned.data_centre, faults.mirror_lag_seconds)
                feed = Feed(cluster, asked, planned.rng, simulator.now(), faults.deaf_seconds)
                simulator.open.add(body)
                simulator.count(connections_total=1, connections_open=1)
            try:
                self._start(compress)
                self._pump(feed, body, planned, faults)
            except CutShort as cut:
                simulator.count(cuts_total=int(cut.planned))
                self._end(cut.cut)
            finally:
                with simulator.changed:
                    simulator.open.discard(body)
                    simulator.count(connections_open=-1)
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
        simulator, rng = self.server.simulator, planned.rng
        body.write(OPENING)
        if planned.silent:
            body.pause(float("inf"))
        while True:
            with simulator.changed:
                batch, events = feed.next_batch(simulator.now())
                wait_seconds = None if events else feed.wait_seconds(simulator.now())
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
                simulator.count(events_served_total=events, bytes_served_total=served)

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
