"""`pleiades check`: an upstream's answers, hanging probes, and the output."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate

import orjson
import pytest

from pleiades import check
from pleiades.check import Look
from pleiades.config.settings import Settings
from pleiades.runtime.errors import EXIT_REFUSED
from pleiades.runtime.findings import Finding, Kind, note, ok, problem, warning
from pleiades.sinks.base import destination_of
from pleiades.upstream.inspect import look_at_upstream
from tests.harness.answers import Server, since_of

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n:ok\n\n"
ID = b'id: [{"topic":"eqiad.mediawiki.recentchange","partition":0,"timestamp":1795558047048}]\n'
EVENT = b"event: message\n" + ID + b"data: {}\n\n"

SettingsOf = Callable[..., Settings]


@pytest.fixture
def serve() -> Iterator[Callable[[bytes], Server]]:
    servers: list[Server] = []

    def start(answer: bytes) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def _look(settings: Settings) -> Iterator[Finding]:
    return look_at_upstream(settings.upstream, destination_of(settings).clock_refusal)


def found_at(url: str, settings_of: SettingsOf) -> list[Finding]:
    return list(_look(settings_of(f"--upstream.url={url}")))


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (OK + EVENT, Kind.OK, r"first event after \d\.\d s, of eqiad.mediawiki.recentchange"),
        (OK + EVENT.replace(b"\n", b"\r\n"), Kind.OK, "first event"),
        (OK + b"data: {}\n\n", Kind.WARNING, "no id that tells where they come from"),
        (OK + b"id: 7\ndata: {}\n\n", Kind.WARNING, "Is this EventStreams"),
        (OK, Kind.PROBLEM, "ended the connection before any event"),
        (OK + b"event: error\ndata: [x]\n\n", Kind.PROBLEM, r"an error of its own: \[x\]"),
        (b"HTTP/1.1 429 Many\r\nRetry-After: 7\r\n\r\n", Kind.PROBLEM, "left alone for 7 s"),
        (b"HTTP/1.1 503 Away\r\n\r\n", Kind.PROBLEM, "answered 503.*would try again"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\nx",
            Kind.PROBLEM,
            "instead of an event",
        ),
        (b"SSH-2.0-OpenSSH\r\n", Kind.PROBLEM, "can't reach .*--upstream.url"),
    ],
)
def test_each_answer_is_named(
    serve: Callable[[bytes], Server], settings_of: SettingsOf, answer: bytes, kind: Kind, says: str
) -> None:
    (finding,) = found_at(serve(answer).url, settings_of)
    assert finding.kind is kind
    assert (finding.exit_status == 1) == (kind is Kind.PROBLEM)
    assert re.search(says, finding.text)


def test_it_asks_once_as_ingest_does_and_for_nothing_old(
    serve: Callable[[bytes], Server], settings_of: SettingsOf
) -> None:
    server = serve(OK + EVENT)
    before_ms = time.time_ns() // 1_000_000
    found_at(server.url, settings_of)
    (request,) = server.requests
    assert b"User-Agent: Pleiades/" in request
    assert b"Accept: text/event-stream" in request
    assert b"Last-Event-ID" not in request
    assert before_ms <= since_of(request) <= time.time_ns() // 1_000_000


def test_what_cannot_be_reached_is_distinguish(settings_of: SettingsOf) -> None:
    (unknown,) = found_at("http://no-such-host.invalid/v2", settings_of)
    assert "host is not known" in unknown.text
    # A bound socket that does not listen refuses connections, and nobody else gets its port.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        (refused,) = found_at(f"http://127.0.0.1:{silent.getsockname()[1]}", settings_of)
    assert "Connection refused" in refused.text


def test_no_tls_at_the_other_end(settings_of: SettingsOf) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 This is no TLS\r\n\r\n")
                connection.recv(65536)

        answering = threading.Thread(target=answer)
        answering.start()
        (finding,) = found_at(f"https://127.0.0.1:{server.getsockname()[1]}", settings_of)
        answering.join()
    assert "TLS handshake failed" in finding.text


def test_a_silent_stream_is_normal(settings_of: SettingsOf) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen = threading.Event()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(OK)
                seen.wait()

        answering = threading.Thread(target=answer)
        answering.start()
        url = f"--upstream.url=http://127.0.0.1:{server.getsockname()[1]}"
        (finding,) = _look(settings_of(url, "--upstream.idleTimeout=200ms"))
        seen.set()
        answering.join()
    assert finding.kind is Kind.OK
    assert "no event within" in finding.text


def test_a_password_in_the_url_is_not_shown(
    serve: Callable[[bytes], Server], settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found_with_password(url: str) -> str:
        # On the command line it is refused.
        monkeypatch.setenv("PLEIADES_UPSTREAM_URL", url.replace("//", "//somebody:hunter2@"))
        (finding,) = _look(settings_of())
        return finding.text

    for answer in (OK + EVENT, OK, b"HTTP/1.1 200 OK\r\n\r\n"):
        assert "hunter2" not in found_with_password(serve(answer).url)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        refusing = found_with_password(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "Connection refused" in refusing
    assert "hunter2" not in refusing


def test_a_refused_request_ends_as_ingest_would(
    serve: Callable[[bytes], Server], settings_of: SettingsOf
) -> None:
    url = serve(b"HTTP/1.1 404 Not Found\r\n\r\n").url
    look = Look("upstream", _look(settings_of(f"--upstream.url={url}")))
    (finding,) = look.findings(deadline=time.monotonic() + 30)
    assert (finding.kind, finding.exit_status) == (Kind.PROBLEM, EXIT_REFUSED)


@pytest.mark.parametrize(
    ("ahead_seconds", "refused", "kinds"),
    [
        (0, "", []),
        (-30, "", [Kind.NOTE]),
        (90, "", [Kind.WARNING]),
        (7_300, "", [Kind.WARNING]),
        (7_300, "refused", [Kind.PROBLEM]),
        (-7_300, "refused", [Kind.PROBLEM]),
    ],
)
def test_a_clock_that_differs_from_the_upstreams(
    serve: Callable[[bytes], Server],
    settings_of: SettingsOf,
    ahead_seconds: int,
    refused: str,
    kinds: list[Kind],
) -> None:
    """The destination says whether it refuses events that are dated so."""
    asked: list[float] = []
    date = formatdate(time.time() - ahead_seconds, usegmt=True).encode()
    answer = (OK + EVENT).replace(b"OK\r\n", b"OK\r\nDate: %s\r\n" % date, 1)
    url = serve(answer).url
    upstream = settings_of(f"--upstream.url={url}").upstream

    def refusal(seconds: float) -> str:
        asked.append(seconds)
        return refused

    _, *found = look_at_upstream(upstream, refusal)
    assert [finding.kind for finding in found] == kinds
    side = "ahead of" if ahead_seconds > 0 else "behind"
    assert all(f"{side} the upstream's" in finding.text for finding in found)
    assert all(abs(seconds - ahead_seconds) < 30 for seconds in asked)


# ---- what hangs ----


def test_a_part_that_hangs_is_given_up_and_what_it_found_before_is_kept() -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def found() -> Iterator[Finding]:
        yield ok("so far")
        hangs.set()
        goes_on.wait()

    look = Look("upstream", found())
    hangs.wait()
    before, given_up = look.findings(deadline=time.monotonic())
    goes_on.set()
    assert before == ok("so far")
    assert given_up.kind is Kind.PROBLEM
    assert "something hangs" in given_up.text


def test_a_bug_is_told_without_the_text_of_its_error() -> None:
    def found() -> Iterator[Finding]:
        yield ok("so far")
        raise ValueError("hunter2")

    *_, finding = Look("destination", found()).findings(deadline=time.monotonic() + 30)
    assert (finding.kind, finding.exit_status) == (Kind.PROBLEM, 1)
    assert "ValueError" in finding.text
    assert "hunter2" not in finding.text


# ---- what is printed ----


def test_the_status_is_that_of_the_first_problem(capsys: pytest.CaptureFixture[str]) -> None:
    found = [("a", ok("1")), ("b", problem("2", 4)), ("c", problem("3", 3)), ("d", warning("4"))]
    assert check._show(iter(found), logging.INFO, "text") == 4
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["ok", "a", "1"],
        ["problem", "b", "2"],
        ["problem", "c", "3"],
        ["warning", "d", "4"],
    ]
    assert (
        check._show(iter([("a", ok("1")), ("b", note("2")), ("c", warning("3"))]), 0, "text") == 0
    )


def test_quiet_means_problems_only(capsys: pytest.CaptureFixture[str]) -> None:
    found = [("a", ok("1")), ("b", note("2")), ("c", warning("3")), ("d", problem("4"))]
    check._show(iter(found), logging.ERROR, "json")
    assert [orjson.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"part": "d", "kind": "problem", "text": "4"}
    ]


def test_a_finding_is_one_line_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    check._show(iter([("upstream", ok("a\nb\x1b[31m\u2028c"))]), logging.INFO, "text")
    (line,) = capsys.readouterr().out.splitlines()
    assert "\x1b" not in line
