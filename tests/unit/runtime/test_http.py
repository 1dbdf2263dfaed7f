"""The HTTP server under clients that are malformed, slow, many or malicious."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pleiades.runtime import http
from pleiades.runtime.errors import MetricsUnavailable
from pleiades.runtime.http import Answer, HttpServer, Page, refuse_if_taken
from pleiades.runtime.logs import Throttle
from tests.harness.waiting import until

PATIENCE_SECONDS = 30.0
SHORT_SECONDS = 0.3
"""Replaces the five seconds allowed for a request."""
GOOD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def pages() -> dict[str, Page]:
    return {
        "/metrics": lambda: Answer(200, b"figures 1.0\n", "text/plain; version=1.0.0"),
        "/healthz": lambda: Answer(200, b"ok\n"),
        "/readyz": lambda: Answer(503, b"reader is not ready\n"),
    }


@pytest.fixture
def server(pages: dict[str, Page]) -> Iterator[HttpServer]:
    server = HttpServer("127.0.0.1", 0, pages)
    yield server
    server.close()


@pytest.fixture
def connect(server: HttpServer) -> Iterator[Callable[[], socket.socket]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(
            socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS)
        )


def everything(connection: socket.socket) -> bytes:
    """All bytes until the other side ends the connection, in order; a reset may lose the answer."""
    came = b""
    while part := connection.recv(65536):
        came += part
    return came


@pytest.fixture
def ask(connect: Callable[[], socket.socket]) -> Callable[[bytes], tuple[int, bytes, bytes]]:
    def send(request: bytes) -> tuple[int, bytes, bytes]:
        """Status, head and body of the answer; status 0 if there is none."""
        connection = connect()
        connection.sendall(request)
        head, _, body = everything(connection).partition(b"\r\n\r\n")
        return int(head.split()[1]) if head else 0, head, body

    return send


Ask = Callable[[bytes], tuple[int, bytes, bytes]]
Connect = Callable[[], socket.socket]


def test_get_of_its_paths(ask: Ask) -> None:
    status, head, body = ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 200
    assert b"\r\nContent-Type: text/plain; version=1.0.0\r\n" in head
    assert b"\r\nContent-Length: 12\r\n" in head
    assert b"Server:" not in head, "it reveals versions"
    assert body == b"figures 1.0\n"
    assert ask(GOOD)[::2] == (200, b"ok\n")
    assert ask(b"GET /readyz?a=b HTTP/1.0\r\n\r\n")[::2] == (503, b"reader is not ready\n")
    assert ask(b"GET /healthz HTTP/1.1\n\n")[::2] == (200, b"ok\n")


def test_head_is_answered_without_a_body(ask: Ask) -> None:
    status, head, body = ask(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, body) == (200, b"")
    assert b"\r\nContent-Length: 12" in head
    assert ask(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")[::2] == (404, b"")


@pytest.mark.parametrize(
    "target", ["http://x/healthz", "HTTP://[::1]:9000/healthz?a", "https://x:y@z/healthz"]
)
def test_a_target_in_absolute_form_is_answered(ask: Ask, target: str) -> None:
    """RFC 9112 §3.2.2. The host does not matter."""
    assert ask(f"GET {target} HTTP/1.1\r\nHost: other\r\n\r\n".encode())[::2] == (200, b"ok\n")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/metrics/", "//metrics", "/../../etc/passwd", "/metrics/../metrics"),
        *(
            "/%2e%2e/metrics",
            "*",
            "http://x",
            "http:///metrics",
            "/healthz%0d%0aX:y",
            "/metrics%00",
        ),
    ],
)
def test_other_paths_are_not_there(ask: Ask, path: str) -> None:
    status, _, body = ask(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    assert status == 404
    assert body == b"not found; pages: /metrics, /healthz, /readyz\n"


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get", "NONSENSE"]
)
def test_other_methods_are_refused_and_nothing_is_echoed(ask: Ask, method: str) -> None:
    request = f"{method} /metrics HTTP/1.1\r\nX-Marker: echo\r\nContent-Length: 4\r\n\r\nbody"
    status, head, body = ask(request.encode())
    assert status == 405
    assert b"\r\nAllow: GET, HEAD" in head
    assert body == b"Method Not Allowed\n"
    assert b"echo" not in head
    assert method.encode() not in (head + body).replace(b"GET", b"")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET /metrics\r\n", 400),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1 x\r\n\r\n", 400),
        (b"GET /met\rrics HTTP/1.1\r\n\r\n", 400),
        (b"G\0ET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"<script>alert(1)</script> / HTTP/1.1\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (bytes(range(128, 256)) * 20 + b"\n", 400),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\n" + b"\xff" * 500, 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n\r\n", 414),
        (b"A" * (1 << 20), 414),
        (b"GET /metrics HTTP/1.1\r\n" + b"X-Header: y\r\n" * 10_000 + b"\r\n", 431),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * (1 << 20) + b"\r\n\r\n", 431),
    ],
    ids=[
        *("0.9", "two spaces", "a fourth word", "CR", "NUL", "markup", "empty", "binary", "TLS"),
        *("HTTP/2", "1 MB path", "1 MB line", "10,000 headers", "1 MB header"),
    ],
)
def test_malformed_requests_are_refused(
    ask: Ask,
    request_: bytes,
    expected: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Long enough for a slow machine: the whole request is read before the connection ends.
    monkeypatch.setattr(http, "CONNECTION_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr(http, "LINGER_SECONDS", PATIENCE_SECONDS)
    caplog.set_level(logging.DEBUG)
    status, _, body = ask(request_)
    assert status == expected
    assert len(body) < 100
    assert b"script" not in body
    assert ask(GOOD)[0] == 200
    assert all(record.levelno < logging.WARNING for record in caplog.records), caplog.text


def test_what_a_client_sends_is_one_short_line_of_the_log(
    ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ask(b"GET /a\x1b[2J\rERROR parent: forged HTTP/1.1\r\n\r\n")
    ask(b"GET /" + b"b" * 3000 + b" HTTP/1.1\r\n\r\n")
    said = [record.getMessage() for record in caplog.records if record.name == http.__name__]
    assert len(said) == 2
    assert all(len(line) < 300 and line.isprintable() for line in said), said


def test_a_request_that_comes_in_pieces_is_answered(connect: Connect) -> None:
    connection = connect()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in GOOD:
        connection.sendall(bytes([byte]))
    assert everything(connection).endswith(b"ok\n")


@pytest.mark.parametrize("sent", [b"", b"GET /metrics", GOOD[:-2]])
def test_a_request_without_an_end_gets_no_answer(connect: Connect, sent: bytes) -> None:
    connection = connect()
    connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
    assert everything(connection) == b""


def test_a_client_that_goes_on_for_ever_is_cut_off(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is for the whole request: a byte now and then does not extend it."""
    monkeypatch.setattr(http, "CONNECTION_SECONDS", SHORT_SECONDS)
    slow = connect()
    slow.setblocking(False)
    sent = 0

    def is_cut_off() -> bool:
        nonlocal sent
        try:
            sent += slow.send(b"GET /metrics HTTP/1.1\r\nX-Slow: y"[sent % 32 :][:1] or b"y")
            return slow.recv(1) == b""
        except BlockingIOError:
            return False
        except (ConnectionResetError, BrokenPipeError):
            return True

    until(is_cut_off, "the end of an endless request")
    assert sent > 1


def test_a_client_that_never_reads_is_cut_off(
    server: HttpServer,
    pages: dict[str, Page],
    connect: Connect,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "CONNECTION_SECONDS", SHORT_SECONDS)
    asked = threading.Event()

    def huge() -> Answer:
        asked.set()
        # More than the buffers of both sockets hold.
        return Answer(200, b"x" * (64 << 20))

    pages["/huge"] = huge
    connect().sendall(b"GET /huge HTTP/1.1\r\n\r\n")
    assert asked.wait(PATIENCE_SECONDS)
    until(lambda: not server.deadlines, "the end of the connection")
    until(lambda: not connection_threads(), "the end of its thread")
    assert ask(GOOD)[0] == 200


def connection_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if "process_request_thread" in name]


def test_an_answer_arrives_whole_although_more_is_sent(
    pages: dict[str, Page], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server closed with unread input, the kernel would drop data in transit."""
    monkeypatch.setattr(http, "CONNECTION_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr(http, "LINGER_SECONDS", PATIENCE_SECONDS)
    page = b"x" * (8 << 20)
    pages["/healthz"] = lambda: Answer(200, page)
    connection = connect()
    connection.sendall(GOOD + b"y" * (1 << 20))
    assert everything(connection).endswith(b"\r\n\r\n" + page)


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nX-Slow: "])
def test_slow_and_silent_clients_shut_nobody_out(
    server: HttpServer, connect: Connect, ask: Ask, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """They outnumber the places, hold each one endlessly, and no deadline comes in time."""
    monkeypatch.setattr(http, "CONNECTION_SECONDS", 100 * PATIENCE_SECONDS)
    for _ in range(200):
        connect().sendall(sent)
    for _ in range(20):
        assert ask(GOOD)[0] == 200
    until(lambda: len(server.deadlines) <= http.MAX_CONNECTIONS, "no more connections than places")
    assert len(server.deadlines) > http.MAX_CONNECTIONS // 2, "harmless connections may stay"
    until(lambda: len(connection_threads()) <= http.MAX_CONNECTIONS, "the end of the threads")


def test_clients_that_were_sent_away_are_not_answered(
    server: HttpServer, pages: dict[str, Page], connect: Connect
) -> None:
    """Many ask for a slow page, but it is not made for those who cannot receive it."""
    made: list[bytes] = []

    def slow() -> Answer:
        made.append(b"made")
        return Answer(200, made[-1])

    pages["/slow"] = slow
    with server.calling:
        clients = [connect() for _ in range(http.MAX_CONNECTIONS + 50)]
        for client in clients:
            client.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
        answers = [everything(client) for client in clients[:50]]
    assert answers == [b""] * 50
    assert all(everything(client).endswith(b"made") for client in clients[50:])
    until(lambda: not connection_threads(), "the end of all requests")
    assert len(made) == http.MAX_CONNECTIONS


def test_a_bug_is_an_answer_too(
    pages: dict[str, Page],
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(http, "_WARNINGS", Throttle(60.0))

    def fails() -> Answer:
        raise OSError("a secret of the inside")

    pages["/bug"] = fails
    for _ in range(3):
        status, _, body = ask(b"GET /bug HTTP/1.1\r\n\r\n")
        assert status == 500
        assert b"secret" not in body
    (said,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "/bug can't be answered" in said.getMessage()
    assert ask(GOOD)[0] == 200


@pytest.mark.parametrize("host", ["", "::1", "::", "localhost"])
def test_all_kinds_of_addresses(pages: dict[str, Page], host: str) -> None:
    if not socket.has_dualstack_ipv6() and ":" in host:
        pytest.skip("this machine has no IPv6")
    server = HttpServer(host, 0, pages)
    for client in {"": ["127.0.0.1", "localhost"], "::": ["::1", "127.0.0.1"]}.get(host, [host]):
        with socket.create_connection((client, server.port), PATIENCE_SECONDS) as connection:
            connection.sendall(GOOD)
            assert everything(connection).endswith(b"ok\n")
    server.close()


def test_closing_ends_connections_and_frees_the_port(pages: dict[str, Page]) -> None:
    server = HttpServer("127.0.0.1", 0, pages)
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS) as connection:
        # A server that closes before it has read the request would reset the connection.
        until(lambda: server.deadlines, "the connection")
        with pytest.raises(MetricsUnavailable, match="--metricsPort"):
            refuse_if_taken("127.0.0.1", server.port)
        with pytest.raises(MetricsUnavailable, match="Nothing was read or written"):
            HttpServer("127.0.0.1", server.port, pages)
        server.close()
        assert everything(connection) == b""
    refuse_if_taken("127.0.0.1", server.port)
    HttpServer("127.0.0.1", server.port, pages).close()


def test_an_address_that_can_not_be_used_is_named() -> None:
    with pytest.raises(MetricsUnavailable, match="no-such-host.invalid:9000") as unknown:
        HttpServer("no-such-host.invalid", 9000, {})
    assert "Another Pleiades" not in str(unknown.value)
    assert "[Errno" not in str(unknown.value)
    taken = HttpServer("", 0, {})
    with pytest.raises(
        MetricsUnavailable, match=rf"can't serve metrics on \*:{taken.port}: "
    ) as two:
        HttpServer("", taken.port, {})
    assert "Address already in use" in str(two.value)
    assert "Another Pleiades" in str(two.value)
    taken.close()
