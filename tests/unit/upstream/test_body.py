"""Bodies over every kind of transfer, from a real server in pieces of any size."""

from __future__ import annotations

import gzip
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

import pytest

from pleiades.config.settings import UpstreamSettings
from pleiades.runtime.errors import Transient
from pleiades.upstream import body
from pleiades.upstream.body import GATHERED_BYTES, READ_BYTES, Connection
from pleiades.upstream.http import Upstream
from tests.harness.authority import authority
from tests.harness.script import chunked

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
PIECES = (1, 100, 1400, 4096, 16_384, 65_536)
WAIT_SECONDS = 30.0
FOREVER_SECONDS = 3600.0
RECORD_OVERHEAD = 22
"""Bytes that TLS 1.3 adds to a record: header, content type and tag (RFC 8446, section 5.2)."""
WAITING_BYTES = 40_000
"""As many bytes as fit into the buffers of a new connection, less what TLS adds."""


class Way(NamedTuple):
    """A kind of transfer."""

    tls: bool
    chunked: bool
    zipped: bool

    def __str__(self) -> str:
        return "-".join(name for name, on in self._asdict().items() if on) or "plain"


WAYS = [
    Way(tls, cut, zipped)
    for tls in (False, True)
    for cut in (False, True)
    for zipped in (False, True)
]


class Sender:
    """Answers one request with the given bytes; each piece is a packet or a TLS record."""

    def __init__(self, way: Way) -> None:
        self._way = way
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if way.tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}/v2/stream"
        self._accepted = threading.Event()
        self._connection: socket.socket
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._way.tls:
            connection = authority().server.wrap_socket(connection, server_side=True)
        self._connection = connection
        while b"\r\n\r\n" not in connection.recv(65_536):
            pass
        headers = b"Transfer-Encoding: chunked\r\n" if self._way.chunked else b""
        headers += b"Content-Encoding: gzip\r\n" if self._way.zipped else b""
        connection.sendall(OK + headers + b"\r\n")
        self._accepted.set()

    def send(self, wire: bytes, size: int) -> None:
        """Send in pieces of this size; returns when the kernel has accepted all of them."""
        assert self._accepted.wait(WAIT_SECONDS)
        view = memoryview(wire)
        for start in range(0, len(wire), size):
            self._connection.sendall(view[start : start + size])

    def end(self) -> None:
        """End the connection."""
        assert self._accepted.wait(WAIT_SECONDS)
        if isinstance(self._connection, ssl.SSLSocket):
            # Without TLS's close_notify, as in a cut.
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def close(self) -> None:
        """Close all sockets."""
        self._listener.close()
        if self._accepted.is_set():
            self._connection.close()


Start = Callable[[Way], tuple[Sender, Connection]]


@pytest.fixture
def start() -> Iterator[Start]:
    opened: list[Sender | Connection] = []

    def connected(way: Way) -> tuple[Sender, Connection]:
        sender = Sender(way)
        settings = UpstreamSettings(
            sender.url, ("x",), "https://example.org/", 60, WAIT_SECONDS, False, authority().ca
        )
        connection = Upstream(settings).connect(None, 5)
        opened.extend((connection, sender))
        return sender, connection

    yield connected
    for each in opened:
        each.close()


def text(size: int) -> bytes:
    return random.Random(size).randbytes(size // 2 + 1).hex().encode()[:size]


def wire_of(way: Way, plain: bytes) -> bytes:
    """A whole body in its transfer form: each line is a chunk, as the service sends it."""
    coded = gzip.compress(plain, 1) if way.zipped else plain
    if not way.chunked:
        return coded
    lines = [coded[start : start + 700] for start in range(0, len(coded), 700)]
    return b"".join(map(chunked, lines)) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_it_is_what_was_sent(start: Start, way: Way, size: int) -> None:
    plain = text(3_000 if size == 1 else 1_000_000)
    sender, connection = start(way)

    def send() -> None:
        sender.send(wire_of(way, plain), size)
        sender.end()

    sending = threading.Thread(target=send)
    sending.start()
    pieces = list(connection.chunks())
    sending.join(WAIT_SECONDS)
    assert b"".join(pieces) == plain
    assert all(0 < len(piece) <= READ_BYTES for piece in pieces)


@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_all_that_waits_is_read_at_once(start: Start, way: Way, size: int) -> None:
    """A single TLS record or socket read does not return everything."""
    per_piece = size / (size + (RECORD_OVERHEAD if way.tls else 0))
    plain = text(int(1_500 if size == 1 else WAITING_BYTES * per_piece))
    sender, connection = start(way)
    sender.send(wire_of(way, plain), size)
    assert connection.unread_bytes() > 0
    chunks = connection.chunks()
    # Bytes that came with the headers are returned separately.
    given = [next(chunks)]
    if given[0] != plain:
        given.append(next(chunks))
    assert b"".join(given) == plain
    assert connection.unread_bytes() == 0


@pytest.mark.parametrize("way", [Way(False, True, False), Way(True, True, False)], ids=str)
def test_gathering_ends_as_soon_as_enough_waits(
    start: Start, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "GATHERING_SECONDS", FOREVER_SECONDS)
    sender, connection = start(way)
    # Simulates a connection that has been open for long.
    connection._began = -2 * FOREVER_SECONDS
    chunks = connection.chunks()
    first, more = text(100), text(2 * GATHERED_BYTES)
    sender.send(chunked(first), 1400)
    assert next(chunks) == first
    # Otherwise this waits for an hour.
    sender.send(chunked(more), 1400)
    assert more.startswith(next(chunks))


@pytest.mark.parametrize("way", [Way(False, False, False), Way(True, False, False)], ids=str)
def test_a_single_event_does_not_wait_for_more(start: Start, way: Way) -> None:
    sender, connection = start(way)
    chunks = connection.chunks()
    for number in range(3):
        sender.send(b"event %d\n\n" % number, 1400)
        assert next(chunks) == b"event %d\n\n" % number


@pytest.mark.parametrize("tls", [False, True])
def test_what_came_before_a_cut_is_given(start: Start, tls: bool) -> None:
    sender, connection = start(Way(tls, True, False))
    sender.send(chunked(b"whole\n\n") + b"10\r\nwor", 3)
    sender.end()
    given: list[bytes] = []
    with pytest.raises(Transient) as cut:
        given.extend(connection.chunks())
    assert cut.value.kind == "cut"
    assert b"".join(given) == b"whole\n\nwor"


def test_an_answer_that_ends_with_its_last_chunk_ends_though_the_connection_stays(
    start: Start,
) -> None:
    sender, connection = start(Way(False, True, False))
    sender.send(chunked(b"all\n\n") + b"0\r\n\r\n", 1400)
    assert list(connection.chunks()) == [b"all\n\n"]


def test_members_of_gzip_follow_each_other(start: Start) -> None:
    sender, connection = start(Way(False, False, True))
    sender.send(gzip.compress(b"one, ") + gzip.compress(b"two"), 7)
    sender.end()
    with closing(connection):
        assert b"".join(connection.chunks()) == b"one, two"


def test_a_small_body_that_is_a_large_one_comes_in_pieces(start: Start) -> None:
    sender, connection = start(Way(True, True, True))
    size = 20 * READ_BYTES + 1
    sender.send(wire_of(Way(True, True, True), bytes(size)), 16_384)
    pieces = list(connection.chunks())
    assert sum(map(len, pieces)) == size
    assert max(map(len, pieces)) <= READ_BYTES
