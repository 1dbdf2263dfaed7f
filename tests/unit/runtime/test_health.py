"""The metrics server under clients that are malformed, slow, many or malicious."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pleiades.runtime import web
from pleiades.runtime.errors import MetricsUnavailable
from pleiades.runtime.health import HealthServer, refuse_if_taken
from tests.harness.waiting import until

PATIENCE_SECONDS = 30.0
SHORT_SECONDS = 0.3
"""Instead of the five seconds in which a request must be done."""
GOOD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


pytestmark = pytest.mark.usefixtures("metrics")


@pytest.fixture
def server() -> Iterator[HealthServer]:
    wrong: list[str] = []
    server = HealthServer("127.0.0.1", 0, lambda: wrong, lambda: ["reader is not ready"], dict)
    yield server
    server.close()


@pytest.fixture
def connect(server: HealthServer) -> Iterator[Callable[[], socket.socket]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(
            socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS)
        )


def everything(connection: socket.socket) -> bytes:
    """What comes until the other side ends it, in order: a reset may cost a client the answer."""
    came = b""
    while part := connection.recv(65536):
        came += part
    return came


@pytest.fixture
def ask(connect: Callable[[], socket.socket]) -> Callable[[bytes], tuple[int, bytes, bytes]]:
    def send(request: bytes) -> tuple[int, bytes, bytes]:
        """Status, head and body of the answer; 0 where there is none."""
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
    assert b"Content-Type: text/plain; version=" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"pleiades_recv_events_total 0.0" in body
    assert ask(GOOD)[::2] == (200, b"ok\n")
    assert ask(b"GET /readyz?a=b HTTP/1.0\r\n\r\n")[::2] == (503, b"reader is not ready\n")
    assert ask(b"GET /healthz HTTP/1.1\n\n")[::2] == (200, b"ok\n")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/metrics/", "//metrics", "/../../etc/passwd", "/metrics/../metrics"),
        *("/%2e%2e/metrics", "*", "http://x/metrics", "/healthz%0d%0aX:y", "/metrics%00"),
    ],
)
def test_other_paths_are_not_there(ask: Ask, path: str) -> None:
    status, _, body = ask(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    assert status == 404
    assert body == b"not found: /metrics, /healthz and /readyz are here\n"


@pytest.mark.parametrize(
    "method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "get", "NONSENSE"]
)
def test_other_methods_are_refused_and_nothing_is_echoed(ask: Ask, method: str) -> None:
    request = f"{method} /metrics HTTP/1.1\r\nX-Marker: echo\r\nContent-Length: 4\r\n\r\nbody"
    status, head, body = ask(request.encode())
    assert status == 405
    assert b"\r\nAllow: GET" in head
    assert body == (b"" if method == "HEAD" else b"only GET is answered here\n")
    assert b"echo" not in head
    assert method == "HEAD" or method.encode() not in head + body.replace(b"GET", b"")


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
    # However slow this machine is today: the whole of it is taken before the connection ends.
    monkeypatch.setattr(web, "REQUEST_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr(web, "LINGER_SECONDS", PATIENCE_SECONDS)
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
    said = [record.getMessage() for record in caplog.records if record.name == web.__name__]
    assert len(said) == 2
    assert all(len(line) < 300 and line.isprintable() for line in said), said


def test_a_request_that_comes_in_pieces_is_answered(connect: Connect) -> None:
    connection = connect()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in GOOD:
        connection.sendall(bytes([byte]))
    assert everything(connection).endswith(b"ok\n")


def test_a_client_that_goes_on_for_ever_is_cut_off(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline is of the whole request: a byte now and then does not move it."""
    monkeypatch.setattr(web, "REQUEST_SECONDS", SHORT_SECONDS)
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

    until(is_cut_off, "the end of a request that does not end")
    assert sent > 1


def test_a_client_that_never_reads_is_cut_off(
    server: HealthServer, connect: Connect, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "REQUEST_SECONDS", SHORT_SECONDS)
    # More than the buffers of both sockets take.
    huge = web.Answer(200, b"x" * (64 << 20))
    asked = []

    def answer(path: str) -> web.Answer:
        asked.append(path)
        return huge

    with monkeypatch.context() as only_now:
        only_now.setattr(server._server, "_answer", answer)
        connect().sendall(GOOD)
        until(lambda: asked, "the request")
    until(lambda: not server._server._clients, "the end of who does not read")
    assert ask(GOOD)[0] == 200


def test_an_answer_arrives_whole_although_more_is_sent(
    server: HealthServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing while something is unread would throw away what is still on its way."""
    monkeypatch.setattr(web, "REQUEST_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr(web, "LINGER_SECONDS", PATIENCE_SECONDS)
    page = b"x" * (1 << 20)
    monkeypatch.setattr(server._server, "_answer", lambda _: web.Answer(200, page))
    connection = connect()
    connection.sendall(GOOD + b"y" * (1 << 20))
    assert everything(connection).endswith(b"\r\n\r\n" + page)


def test_idle_connections_shut_nobody_out(
    server: HealthServer, connect: Connect, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than there are places, each held with half a request that no deadline ends in time."""
    monkeypatch.setattr(web, "REQUEST_SECONDS", 100 * PATIENCE_SECONDS)
    for _ in range(200):
        connect().sendall(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
    for _ in range(20):
        assert ask(GOOD)[0] == 200
    clients = server._server._clients
    until(lambda: len(clients) <= web.MAX_CONNECTIONS, "no more than the places there are")
    assert len(clients) > web.MAX_CONNECTIONS // 2, "those that harm nobody may stay"


def test_a_bug_is_an_answer_too(
    server: HealthServer, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: str) -> web.Answer:
        raise ZeroDivisionError("a secret of the inside")

    with monkeypatch.context() as only_now:
        only_now.setattr(server._server, "_answer", fails)
        status, _, body = ask(GOOD)
    assert status == 500
    assert b"secret" not in body
    assert ask(GOOD)[0] == 200


def test_closing_ends_connections_and_frees_the_port() -> None:
    server = HealthServer("127.0.0.1", 0, list, list, dict)
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS) as connection:
        # Nothing is sent: a server that closes before it has read a request resets the connection.
        until(lambda: server._server._clients, "the connection")
        with pytest.raises(MetricsUnavailable, match="--metricsPort"):
            refuse_if_taken("127.0.0.1", server.port)
        with pytest.raises(MetricsUnavailable, match="Nothing was read or written"):
            HealthServer("127.0.0.1", server.port, list, list, dict)
        server.close()
        assert everything(connection) == b""
    refuse_if_taken("127.0.0.1", server.port)
    HealthServer("127.0.0.1", server.port, list, list, dict).close()
