"""An upstream's answers, sent byte for byte by a real server."""

from __future__ import annotations

import gzip
import http.client
import signal
import socket
import ssl
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from pleiades.config.settings import REDIRECTS_ANY, UpstreamSettings
from pleiades.runtime.errors import RefusedByUpstream, Stopped, Transient
from pleiades.upstream.http import MAX_REDIRECTS, Upstream
from pleiades.upstream.transport import MAX_INTERIM_RESPONSES
from tests.harness.answers import Held, Server
from tests.harness.authority import authority
from tests.harness.script import chunked

Serve = Callable[..., Server]

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
PIECE_BYTES = 8192
SINCE = b"?since=1970-01-01T00%3A00%3A01.234Z"
"""Stands for 1,234 ms: the service does not understand a number of milliseconds."""


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(*answers: bytes | Held) -> Server:
        servers.append(Server(*answers))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def upstream(url: str, idle_seconds: float = 5, **others: Any) -> Upstream:
    streams = ("recentchange", "page-create")
    contact = "https://example.org/"
    return Upstream(UpstreamSettings(url, streams, contact, 60, idle_seconds, False, **others))


def read(url: str) -> bytes:
    connection = upstream(url).connect(None, 5)
    try:
        return b"".join(connection.chunks())
    finally:
        connection.close()


def status(line: bytes, body: bytes = b"", *headers: bytes) -> bytes:
    extra = b"".join(header + b"\r\n" for header in headers)
    length = b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 " + line + b"\r\n" + extra + length + b"\r\n" + body


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            status(b"400 Bad", b'{"type":"not_found","detail":"Invalid streams: nosuch"}'),
            "status 400: not_found, Invalid streams: nosuch",
        ),
        (status(b"403 Forbidden", b"set a\x1b[31m user-agent"), r"403: set a\\u001b\[31m"),
        (status(b"404 Not Found"), "it gave no explanation"),
        (status(b"401 Unauthorized", b"[1]"), "status 401"),
        (status(b"404 Not Found", b"x" * 100_000), "status 404: x{300}…"),
    ],
)
def test_refusals_are_fatal_and_quote_the_upstream(serve: Serve, answer: bytes, says: str) -> None:
    with pytest.raises(RefusedByUpstream, match=says) as refused:
        read(serve(answer).url)
    assert "--upstream.stream" in str(refused.value)
    assert refused.value.exit_status == 3


@pytest.mark.parametrize(
    ("answer", "kind", "retry_after"),
    [
        (status(b"429 Many", b"", b"Retry-After: 7"), "throttled", 7),
        (status(b"503 Away", b"", b"Retry-After: 99999999"), "status_5xx", 900),
        (status(b"500 Oops", b"<html>"), "status_5xx", None),
        (status(b"408 Timeout"), "status_4xx", None),
        (status(b"200 OK", b"<html>", b"Content-Type: text/html"), "content_type", None),
        (status(b"200 OK", b"data: x"), "content_type", None),
        (status(b"302 Found", b"", b"Location: http://[bad"), "connect", None),
        (status(b"302 Found", b"", b"Location: http://" + b"a" * 70 + b"/"), "redirect", None),
        (b"SSH-2.0-OpenSSH\r\n", "connect", None),
        (b"", "connect", None),
    ],
)
def test_what_may_pass_is_transient(
    serve: Serve, answer: bytes, kind: str, retry_after: float | None
) -> None:
    with pytest.raises(Transient) as failed:
        read(serve(answer).url)
    assert failed.value.kind == kind
    assert failed.value.retry_after_seconds == retry_after


def test_nobody_listening_is_transient_and_says_what_to_check() -> None:
    # A bound socket that does not listen refuses connections, and nobody else gets its port.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(Transient, match=r"Connection refused; .*--upstream\.url"):
            read(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_cut_inside_a_chunk_gives_what_came_and_then_says_so(
    serve: Serve,
) -> None:
    server = serve(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n10\r\nwor")
    connection = upstream(server.url).connect(None, 5)
    chunks = connection.chunks()
    assert next(chunks).startswith(b"hello")
    with pytest.raises(Transient) as cut:
        list(chunks)
    connection.close()
    assert cut.value.kind == "cut"


def test_chunks_are_read_many_at_a_time_past_http_client(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_by_one(*_: object) -> bytes:
        raise AssertionError("chunks are read one by one")

    monkeypatch.setattr(http.client.HTTPResponse, "read1", one_by_one)
    lines = (b":ok\n\n", b"event: message\n", b"id: []\n", b"data: {}\n\n")
    body = b"".join(chunked(line) for line in lines * 1000)
    server = serve(OK + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n")
    assert read(server.url) == b"".join(lines) * 1000


def test_what_waits_is_given_at_once_and_what_came_before_a_cut_before_it(
    serve: Serve,
) -> None:
    body = chunked(b"x" * PIECE_BYTES) * 8
    server = serve(OK + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"10\r\nwor")
    connection = upstream(server.url).connect(None, 5)
    given: list[bytes] = []
    with pytest.raises(Transient) as cut:
        given.extend(connection.chunks())
    connection.close()
    assert cut.value.kind == "cut"
    assert b"".join(given) == b"x" * PIECE_BYTES * 8 + b"wor"


def test_a_body_that_is_not_chunked_and_a_compressed_one_are_read(
    serve: Serve,
) -> None:
    assert read(serve(OK + b"\r\n:ok\n\n").url) == b":ok\n\n"
    body = gzip.compress(b":ok\n\n" * 1000)
    assert read(serve(OK + b"Content-Encoding: gzip\r\n\r\n" + body).url) == b":ok\n\n" * 1000


def test_a_damaged_compressed_body_is_transient(serve: Serve) -> None:
    with pytest.raises(Transient) as damaged:
        read(serve(OK + b"Content-Encoding: gzip\r\n\r\nnot gzip at all").url)
    assert damaged.value.kind == "decode"


def test_a_redirect_is_followed_and_what_it_says_not_read(serve: Serve) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    ends = b"Connection: close"
    elsewhere = status(b"302 Found", bomb, ends, b"Location: /x?y=1", b"Content-Encoding: gzip")
    back = status(b"307 Again", b"", ends, b"Location: /v2/other")
    server = serve(back, elsewhere, OK + b"\r\n")
    tracemalloc.start()
    try:
        upstream(server.url).connect(None, 1234).close()
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    asked = [request.split(b" ")[1] for request in server.requests]
    own = b"/v2/stream/recentchange,page-create"
    assert asked == [own + SINCE, b"/v2/other" + SINCE, b"/x?y=1"]


@pytest.mark.parametrize(("host", "is_known"), [("127.0.0.1", True), ("localhost", False)])
def test_a_redirect_takes_a_password_along_to_the_same_host_only(
    serve: Serve, host: str, is_known: bool
) -> None:
    server = serve(b"")
    port = server.url.split(":")[2].split("/")[0]
    location = f"Location: http://{host}:{port}/v3".encode()
    server.say(status(b"301 Moved", b"", location, b"Connection: close"), OK + b"\r\n")
    url = server.url.replace("//", "//user:pw@")
    upstream(url, redirects=REDIRECTS_ANY).connect(None, 5).close()
    first, second = [b"Authorization: Basic" in request for request in server.requests]
    assert (first, second) == (True, is_known)


def test_redirects_have_an_end(serve: Serve) -> None:
    server = serve(status(b"302 Found", b"", b"Location: /again", b"Connection: close"))
    with pytest.raises(Transient, match="redirects") as failed:
        read(server.url)
    assert failed.value.kind == "connect"
    assert len(server.requests) == MAX_REDIRECTS + 1


def test_an_explanation_that_trickles_is_not_waited_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pleiades.upstream.http.ERROR_BODY_SECONDS", 0.2)
    server = serve(Held(b"HTTP/1.1 503 Away\r\nContent-Length: 9999\r\n\r\nbusy", drip=b"."))
    with pytest.raises(Transient, match=r"503: busy\.") as failed:
        read(server.url)
    assert failed.value.kind == "status_5xx"


def test_a_stop_does_not_wait_for_an_explanation(serve: Serve) -> None:
    server = serve(Held(b"HTTP/1.1 503 Away\r\nContent-Length: 9999\r\n\r\nbusy"))

    def stop(_number: int, _frame: object) -> None:
        raise Stopped("stop requested")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(Stopped):
            # Longer than a test may take.
            upstream(server.url, idle_seconds=3600).connect(None, 5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_bytes_that_are_none_of_the_stream_are_silence(serve: Serve) -> None:
    server = serve(Held(OK + b"Transfer-Encoding: chunked\r\n\r\n5;", drip=b"x"))
    connection = upstream(server.url, idle_seconds=0.2).connect(None, 5)
    with pytest.raises(Transient) as silent:
        list(connection.chunks())
    connection.close()
    assert silent.value.kind == "idle"


def test_a_refusal_of_an_id_says_what_the_id_names(serve: Serve) -> None:
    server = serve(status(b"404 Not Found", b'{"name":"TopicNotAvailableError"}'))
    with pytest.raises(RefusedByUpstream, match=r'after \[\{"topic":"gone"\}\].*--resume=false'):
        upstream(server.url).connect('[{"topic":"gone"}]', 5)


def test_the_request_is_as_the_policy_and_the_protocol_ask(
    serve: Serve,
) -> None:
    server = serve(OK + b"\r\n")
    asking = upstream(server.url)
    asking.connect(None, 1234).close()
    asking.connect('[{"topic":"t"}]', 1234).close()
    first, second = server.requests
    assert first.startswith(b"GET /v2/stream/recentchange,page-create" + SINCE + b" HTTP/1.1\r\n")
    assert b"\r\nAccept: text/event-stream\r\n" in first
    assert b"(https://example.org/)" in first
    assert b"User-Agent: Pleiades/" in first
    assert b"Last-Event-ID" not in first
    assert second.startswith(b"GET /v2/stream/recentchange,page-create HTTP/1.1\r\n")
    assert b'\r\nLast-Event-ID: [{"topic":"t"}]\r\n' in second


@pytest.mark.parametrize(
    ("header", "server_ms"),
    [
        (b"Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n", 1_767_225_600_000),
        (b"Date: banana\r\n", None),
        (b"", None),
    ],
)
def test_the_upstreams_clock(serve: Serve, header: bytes, server_ms: int | None) -> None:
    connection = upstream(serve(OK + header + b"\r\n").url).connect(None, 5)
    connection.close()
    assert connection.server_ms == server_ms


EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n"


@pytest.mark.parametrize(
    "interim",
    [b"HTTP/1.1 102 Processing\r\n\r\n", EARLY, b"HTTP/1.1 100 Continue\r\n\r\n" + EARLY * 3],
)
def test_interim_responses_are_skipped(serve: Serve, interim: bytes) -> None:
    assert read(serve(interim + OK + b"\r\n:ok\n\n").url) == b":ok\n\n"


def test_interim_responses_have_an_end(serve: Serve) -> None:
    with pytest.raises(Transient, match="interim responses") as failed:
        read(serve(EARLY * (MAX_INTERIM_RESPONSES + 1) + OK + b"\r\n").url)
    assert failed.value.kind == "connect"


@pytest.mark.parametrize(
    ("answer", "drip"),
    [(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"), (b"", b"HTTP/1.1 100 Continue\r\n"), (b"HTT", b"")],
    ids=["headers that trickle", "a header without end after 100", "silence"],
)
def test_an_answer_has_a_deadline_as_a_whole(
    serve: Serve, answer: bytes, drip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pleiades.upstream.http.CONNECT_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(Transient) as failed:
        # Each byte comes before the idle timeout.
        upstream(serve(Held(answer, drip=drip)).url, idle_seconds=0.3).connect(None, 5)
    assert failed.value.kind == "connect"


@pytest.mark.parametrize(
    "header",
    [b"Content-Encoding: br", b"Content-Encoding: gzip, br", b"Transfer-Encoding: gzip, chunked"],
)
def test_a_coding_that_was_not_asked_for_is_an_error_that_says_so(
    serve: Serve, header: bytes
) -> None:
    with pytest.raises(Transient, match=r"-Encoding .*not asked for") as failed:
        read(serve(OK + header + b"\r\n\r\nxyz").url)
    assert failed.value.kind == "encoding"


def test_a_proxys_refusal_names_the_proxy(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve(status(b"407 Proxy Authentication Required", b"who are you?"))
    address = proxy.url.removesuffix("/v2/stream")
    monkeypatch.setenv("http_proxy", address.replace("//", "//user:SECRET@"))
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(
        Transient, match=f"the proxy {address} refused .*407: who are you"
    ) as failed:
        upstream("http://example.org/v2/stream").connect(None, 5)
    assert failed.value.kind == "proxy"
    assert "SECRET" not in str(failed.value)


@pytest.mark.parametrize("url", ["https://127.0.0.1", "http://127.0.0.1"])
@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1/x", "http://example.org/x", "https://example.org/x", "https://127.0.0.1/x"],
)
def test_redirects_stay_on_the_host_and_on_https(url: str, location: str) -> None:
    """A forged event could come from any other host."""
    leaves = "example" in location or (url.startswith("https") and location.startswith("http:"))
    asking = upstream(url)
    if leaves:
        with pytest.raises(Transient, match=r"another host.*--upstream\.redirects=any") as failed:
            asking._redirected(url, location)
        assert failed.value.kind == "redirect"
    else:
        assert asking._redirected(url, location) == location
    assert upstream(url, redirects=REDIRECTS_ANY)._redirected(url, location) == location


def test_a_private_authority_is_trusted_if_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # requests would prefer it to the session's setting.
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", ssl.get_default_verify_paths().cafile or "/dev/null")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with suppress(OSError), authority().server.wrap_socket(connection, True) as tls:
                    tls.recv(65_536)
                    tls.sendall(OK + b"\r\n:ok\n\n")

        answering = threading.Thread(target=answer)
        answering.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v2/stream"
        with pytest.raises(Transient, match=r"TLS handshake failed.*--upstream\.ca"):
            upstream(url).connect(None, 5)
        connection = upstream(url, ca=authority().ca).connect(None, 5)
        assert b"".join(connection.chunks()) == b":ok\n\n"
        connection.close()
        answering.join()
