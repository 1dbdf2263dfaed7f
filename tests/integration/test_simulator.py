"""The local upstream as clients see it, over real sockets."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.parse
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pleiades.simulator.log import JournalEntry
from pleiades.simulator.settings import NO_DISORDER, Cut, Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from pleiades.simulator.tls import server_context
from pleiades.simulator.upstream import Stats

RECORDINGS = Path(__file__).parents[2].parent / "shared" / "data"
AGENT = {"User-Agent": "PleiadesTests/1.0 (https://example.org/; tests@example.org)"}
TIMEOUT_SECONDS = 20.0
HEARING = Faults(cut_every_seconds=0, deaf_seconds=0)
ALL = "?since=1000000000000"
"""Later than the earliest date an event may have, but earlier than any in practice."""


class Client:
    """One request; reads the bytes of its body as they arrive."""

    def __init__(
        self,
        simulator: Simulator,
        path: str = "/recentchange",
        last_event_id: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        url = urllib.parse.urlsplit(simulator.url + path)
        assert url.hostname
        self._connection = http.client.HTTPConnection(
            url.hostname, url.port, timeout=TIMEOUT_SECONDS
        )
        sent = AGENT if headers is None else headers
        if last_event_id is not None:
            sent = {**sent, "Last-Event-ID": last_event_id}
        self._connection.putrequest("GET", f"{url.path}?{url.query}", skip_accept_encoding=True)
        for name, value in sent.items():
            self._connection.putheader(name, value)
        self._connection.endheaders()
        self.response = self._connection.getresponse()
        self.received = b""
        self.broken: Exception | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.response.close()
        self._connection.close()

    def read_until(self, end: bytes, count: int = 1) -> bytes:
        """Read until `end` has arrived `count` times."""
        received = bytearray(self.received)
        found = received.count(end)
        while found < count:
            chunk = self.response.read1(65_536)
            assert chunk, "the stream ended"
            start = max(len(received) - len(end) + 1, 0)
            received += chunk
            found += received.count(end, start)
        self.received = bytes(received)
        return self.received

    def read_events(self, count: int) -> list[tuple[str, bytes]]:
        return frames(self.read_until(b"\n\n", count + 1))

    def read_all(self) -> bytes:
        """Read to the end; `broken` has the error, if any."""
        try:
            while chunk := self.response.read1(65_536):
                self.received += chunk
        except (http.client.IncompleteRead, ConnectionError) as error:
            self.received += error.partial if isinstance(error, http.client.IncompleteRead) else b""
            self.broken = error
        return self.received


def frames(received: bytes) -> list[tuple[str, bytes]]:
    """Id and data of each whole event."""
    assert received.startswith(b":ok\n\n")
    return [
        (sse_id.decode(), data)
        for sse_id, data in re.findall(
            rb"event: message\nid: ([^\n]+)\ndata: ([^\n]+)\n\n", received[5:]
        )
    ]


def identities(events: list[tuple[str, bytes]]) -> list[str]:
    return [json.loads(data)["meta"]["id"] for _, data in events]


def by_topic(entries: list[JournalEntry]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in entries:
        found.setdefault(entry.topic, []).append(entry.identity)
    return found


def topic_of(data: bytes) -> str:
    return str(json.loads(data)["meta"]["topic"])


@contextlib.contextmanager
def serving(faults: Faults | None = None, **settings: Any) -> Iterator[Simulator]:
    faults = faults or Faults(other_cluster_rate=0.0)
    with Simulator(SimulatorSettings(faults=faults, **settings)) as simulator:
        yield simulator


def test_history_is_served_whole_and_in_the_order_of_each_topic() -> None:
    with serving(history_events=3_000) as simulator, Client(simulator, f"/recentchange{ALL}") as c:
        assert c.response.status == 200
        assert c.response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert c.response.headers["Transfer-Encoding"] == "chunked"
        events = c.read_events(3_000)
        assert c.received.endswith(b"}\n\n")
        assert b"\r" not in c.received
        truth = by_topic(simulator.journal())
        for topic, expected in truth.items():
            assert identities([e for e in events if topic_of(e[1]) == topic]) == expected
        assert sum(map(len, truth.values())) == 3_000


def test_ids_name_the_timestamp_plus_one_ms_and_the_offset_is_that_of_the_journal() -> None:
    with serving(history_events=500) as simulator, Client(simulator, f"/recentchange{ALL}") as c:
        truth = {entry.identity: entry for entry in simulator.journal()}
        for sse_id, data in c.read_events(500):
            meta = json.loads(data)["meta"]
            (own,) = [a for a in json.loads(sse_id) if a["topic"] == meta["topic"]]
            entry = truth[meta["id"]]
            assert own["timestamp"] == entry.timestamp + 1
            if meta["topic"].startswith("eqiad."):
                assert meta["offset"] == entry.offset


def test_the_other_cluster_gives_other_offsets_to_the_same_events() -> None:
    def offsets(simulator: Simulator) -> dict[str, int]:
        with Client(simulator, f"/recentchange{ALL}") as client:
            return {
                meta["id"]: meta["offset"]
                for _, data in client.read_events(300)
                if (meta := json.loads(data)["meta"])["topic"].startswith("eqiad.")
            }

    with serving(history_events=300) as simulator:
        here = offsets(simulator)
        simulator.set_faults(other_cluster_rate=1.0)
        there = offsets(simulator)
    assert here.keys() == there.keys()
    (distance,) = {here[identity] - there[identity] for identity in here}
    assert distance


def test_without_since_a_stream_begins_with_what_comes_next() -> None:
    with serving(HEARING, history_events=100) as simulator, Client(simulator) as client:
        client.read_until(b":ok\n\n")
        simulator.append(3)
        assert identities(client.read_events(3)) == [
            entry.identity for entry in sorted(simulator.journal()[100:], key=_served_order(client))
        ]


def _served_order(client: Client) -> Any:
    order = identities(frames(client.received))
    return lambda entry: order.index(entry.identity)


def test_resuming_with_the_last_id_of_a_caught_up_stream_gives_what_came_since() -> None:
    settings: dict[str, Any] = {"second_share": 0.0, "canary_every_seconds": 0.0}
    with serving(HEARING, history_events=50, **settings) as simulator:
        with Client(simulator, f"/recentchange{ALL}") as client:
            client.read_events(50)
        greatest = max(entry.timestamp for entry in simulator.journal())
        last_event_id = json.dumps(
            [{"topic": "eqiad.mediawiki.recentchange", "partition": 0, "timestamp": greatest + 1}]
        )
        # The header wins over `since`, and topics that it does not name are not served.
        with Client(simulator, f"/recentchange{ALL}", last_event_id) as client:
            client.read_until(b":ok\n\n")
            simulator.append(2)
            (first, _), (second, _) = client.read_events(2)
        assert len(json.loads(first)) == 1
        assert identities(frames(client.received)) == [
            entry.identity for entry in simulator.journal()[50:]
        ]
        assert second >= first


@pytest.mark.parametrize(
    ("path", "last_event_id", "status", "kind", "content_type"),
    [
        ("/nosuch", None, 400, ("type", "not_found"), "application/json; charset=utf-8"),
        (
            "/recentchange?since=banana",
            None,
            400,
            ("type", "invalid_timestamp"),
            "application/json; charset=utf-8",
        ),
        ("/recentchange", "banana", 400, ("name", "InvalidAssignmentError"), None),
        ("/recentchange", "{}", 400, ("name", "InvalidAssignmentError"), None),
        (
            "/recentchange",
            '[{"topic":"eqiad.other","partition":0,"offset":-1}]',
            404,
            ("name", "TopicNotAvailableError"),
            None,
        ),
    ],
)
def test_refusals(
    path: str,
    last_event_id: str | None,
    status: int,
    kind: tuple[str, str],
    content_type: str | None,
) -> None:
    with serving() as simulator, Client(simulator, path, last_event_id) as client:
        body = json.loads(client.read_all())
        assert client.response.status == status
        assert body[kind[0]] == kind[1]
        # The service includes the request's URI, KafkaSSE does not.
        assert ("uri" in body) is (kind[0] == "type")
        assert body.get("uri", "").removesuffix("?") in ("", f"/v2/stream{path}")
        assert client.response.headers["Content-Type"] == content_type
        assert simulator.stats().refused_total == 1
        assert simulator.stats().connections_total == 0


def test_default_agents_are_refused_unless_told_otherwise() -> None:
    with serving() as simulator:
        for headers in ({"User-Agent": "python-requests/2.32.3"}, {}):
            with Client(simulator, headers=headers) as client:
                assert client.response.status == 403
        simulator.set_faults(any_user_agent=True)
        with Client(simulator, headers={}) as client:
            assert client.response.status == 200


def test_too_many_connections_until_one_leaves() -> None:
    with serving(Faults(max_connections=2, retry_after_seconds=7)) as simulator:
        first, second = Client(simulator), Client(simulator)
        with Client(simulator) as third:
            assert third.response.status == 429
            assert third.response.headers["Retry-After"] == "7"
            assert json.loads(third.read_all())["type"] == "too_many_requests"
        # An idle stream notices that its client has left.
        first.close()
        simulator.wait_until(lambda stats: stats.connections_open == 1)
        with Client(simulator) as third:
            assert third.response.status == 200
        second.close()
        simulator.wait_until(lambda stats: stats.connections_open == 0)


def test_a_client_that_has_left_does_not_count_any_more() -> None:
    with serving(Faults(max_connections=1)) as simulator:
        for _ in range(10):
            with Client(simulator) as client:
                assert client.response.status == 200
                client.read_until(b":ok\n\n")


def test_a_partition_that_does_not_exist_is_served_in_silence() -> None:
    header = '[{"topic":"eqiad.mediawiki.recentchange","partition":9,"offset":0}]'
    with serving(history_events=10) as simulator, Client(simulator, last_event_id=header) as client:
        assert client.response.status == 200
        client.read_until(b":ok\n\n")
        simulator.cut_all(Cut.CLEAN)
        assert client.read_all() == b":ok\n\n"


@pytest.mark.parametrize("cut", list(Cut))
@pytest.mark.parametrize("limit", [1, 5, 6, 1_000, 54_321, 400_000])
def test_a_cut_after_some_bytes(cut: Cut, limit: int) -> None:
    faults = Faults(cut_bytes=limit, cut_jitter=0.0, cuts=(cut,), other_cluster_rate=0.0)
    with serving(history_events=1_000) as simulator:
        with Client(simulator, f"/recentchange{ALL}") as client:
            whole = client.read_until(b"\n\n", 1_001)
        simulator.set_faults(**asdict(faults) | {"cuts": (cut,)})
        with Client(simulator, f"/recentchange{ALL}") as client:
            received = client.read_all()
        assert (client.broken is None) is (cut is Cut.CLEAN)
        if cut is Cut.RESET:
            # Data in transit when the reset came is lost.
            assert len(received) <= limit
        else:
            assert len(received) == limit
        assert simulator.wait_until(lambda stats: stats.cuts_total == 1).cuts_total == 1
        assert len(whole) > 1_000_000


@pytest.mark.parametrize("cut", list(Cut))
def test_a_cut_after_some_time_reaches_an_idle_stream(cut: Cut) -> None:
    faults = Faults(cut_every_seconds=0.05, cut_jitter=0.0, cuts=(cut,))
    with serving(faults) as simulator, Client(simulator) as client:
        assert client.read_all() == b":ok\n\n"
        assert (client.broken is None) is (cut is Cut.CLEAN)
        assert simulator.wait_until(lambda stats: stats.connections_open == 0).cuts_total == 1


def test_the_same_seed_cuts_at_the_same_bytes() -> None:
    def lengths() -> list[int]:
        faults = Faults(cut_bytes=20_000, cuts=(Cut.CLEAN,), other_cluster_rate=0.0)
        with serving(faults, history_events=500) as simulator:
            found = []
            for _ in range(5):
                with Client(simulator, f"/recentchange{ALL}") as client:
                    found.append(len(client.read_all()))
            return found

    first = lengths()
    assert first == lengths()
    assert len(set(first)) == 5


def test_a_close_may_fall_inside_a_chunk() -> None:
    faults = Faults(cut_bytes=100_000, cuts=(Cut.CLOSE,))
    with serving(faults, history_events=500) as simulator:
        url = urllib.parse.urlsplit(simulator.url)
        with socket.create_connection((url.hostname or "", url.port or 0), 20) as raw:
            raw.sendall(
                b"GET /v2/stream/recentchange?since=1000000000000 HTTP/1.1\r\n"
                b"Host: x\r\nUser-Agent: x\r\n\r\n"
            )
            received = b""
            while chunk := raw.recv(65_536):
                received += chunk
    body = received.partition(b"\r\n\r\n")[2]
    while body:
        size, _, body = body.partition(b"\r\n")
        promised = int(size, 16)
        if len(body) < promised:
            break
        assert promised > 0
        assert body[promised : promised + 2] == b"\r\n"
        body = body[promised + 2 :]
    assert 0 < len(body) < promised


def test_all_streams_can_be_cut_at_once_and_a_stop_has_no_final_chunk() -> None:
    with serving() as simulator:
        with Client(simulator) as one, Client(simulator) as two:
            one.read_until(b":ok\n\n")
            two.read_until(b":ok\n\n")
            assert simulator.cut_all(Cut.RESET) == 2
            one.read_all()
            two.read_all()
            assert isinstance(one.broken, ConnectionResetError)
            assert isinstance(two.broken, ConnectionResetError)
            assert simulator.stats().cuts_total == 2
        with Client(simulator) as client:
            client.read_until(b":ok\n\n")
            simulator.stop()
            client.read_all()
            assert client.broken is not None


def test_after_an_outage_the_log_and_the_port_are_the_same() -> None:
    simulator = Simulator(SimulatorSettings(history_events=20))
    url = simulator.start()
    assert simulator.start() == url
    simulator.stop()
    simulator.stop()
    with pytest.raises(ConnectionRefusedError):
        Client(simulator)
    assert simulator.append(1) == 1
    assert simulator.start() == url
    with Client(simulator, f"/recentchange{ALL}") as client:
        assert len(client.read_events(21)) == 21
    simulator.close()
    assert len(simulator.journal()) == 21


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_nobody_else_gets_the_port_during_an_outage(host: str) -> None:
    simulator = Simulator(SimulatorSettings(host=host))
    port = urllib.parse.urlsplit(simulator.start()).port
    assert port
    for _ in range(2):
        simulator.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port))
        with pytest.raises(OSError, match="in use"):
            bind_only(host, port)
        assert urllib.parse.urlsplit(simulator.start()).port == port
    simulator.close()
    bind_only(host, port)


def bind_only(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as other:
        other.bind((host, port))


def test_a_client_that_does_not_read_holds_up_neither_others_nor_the_stop() -> None:
    with serving(history_events=20_000) as simulator:
        idle = Client(simulator, f"/recentchange{ALL}")
        with Client(simulator, f"/recentchange{ALL}") as client:
            client.read_until(b"\n\n", 20_001)
        stats = simulator.wait_until(lambda stats: stats.connections_open == 1)
        # Back-pressure: events that the reader does not accept are not generated.
        assert stats.events_served_total < 40_000
        simulator.stop()
        idle.close()


def test_errors_come_in_bursts_and_go_away() -> None:
    with serving(Faults(error_rate=1.0, retry_after_seconds=3)) as simulator:
        found = set()
        for _ in range(12):
            with Client(simulator) as client:
                found.add((client.response.status, client.response.headers["Retry-After"]))
                client.read_all()
        assert found == {(500, None), (503, "3")}
        simulator.set_faults(error_rate=0.0)
        with Client(simulator) as client:
            assert client.response.status == 200


def test_silence_though_there_are_events() -> None:
    with (
        serving(Faults(silence_rate=1.0), history_events=10) as simulator,
        Client(simulator, f"/recentchange{ALL}") as client,
    ):
        client.read_until(b":ok\n\n")
        simulator.append(5)
        simulator.cut_all(Cut.CLEAN)
        assert client.read_all() == b":ok\n\n"


def test_no_answer_at_all() -> None:
    with serving(Faults(hang_rate=1.0)) as simulator:
        url = urllib.parse.urlsplit(simulator.url)
        with socket.create_connection((url.hostname or "", url.port or 0), 10) as raw:
            raw.sendall(b"GET /v2/stream/recentchange HTTP/1.1\r\nHost: x\r\nUser-Agent: x\r\n\r\n")
            simulator.wait_until(lambda stats: stats.requests_total == 1)
            raw.settimeout(0.2)
            with pytest.raises(TimeoutError):
                raw.recv(1)


def test_a_stall_delays_but_loses_nothing() -> None:
    begun = time.monotonic()
    with (
        serving(Faults(stall_rate=1.0, stall_seconds=0.1), history_events=500) as simulator,
        Client(simulator, f"/recentchange{ALL}") as client,
    ):
        assert len(client.read_events(500)) == 500
    # At least three batches, each after a stall.
    assert time.monotonic() - begun >= 0.3


def test_an_error_event_ends_the_stream() -> None:
    with (
        serving(Faults(error_event_rate=1.0), history_events=50) as simulator,
        Client(simulator, f"/recentchange{ALL}") as client,
    ):
        received = client.read_all()
        assert client.broken is None
    last = received.split(b"\n\n")[-2].split(b"\n")
    assert last[0] == b"event: error"
    assert json.loads(last[1].removeprefix(b"id: "))
    assert json.loads(last[2].removeprefix(b"data: "))["origin"] == "kafka"


def test_small_chunks_give_the_same_bytes() -> None:
    with serving(history_events=30) as simulator:
        with Client(simulator, f"/recentchange{ALL}") as client:
            events = client.read_events(30)
        simulator.set_faults(chunk_bytes=3)
        with Client(simulator, f"/recentchange{ALL}") as client:
            assert max(len(client.response.read1(10_000)) for _ in range(50)) <= 3
            client.received = b":ok\n\n"
        with Client(simulator, f"/recentchange{ALL}") as client:
            assert sorted(identities(client.read_events(30))) == sorted(identities(events))


def test_gzip_where_it_is_on_and_accepted() -> None:
    accepts = {**AGENT, "Accept-Encoding": "gzip, br"}
    with serving(Faults(gzip=True), history_events=300) as simulator:
        with Client(simulator, f"/recentchange{ALL}", headers=accepts) as client:
            assert client.response.headers["Content-Encoding"] == "gzip"
            decompress = zlib.decompressobj(16 + zlib.MAX_WBITS)
            text = b""
            while text.count(b"\n\n") < 301:
                # Flushed after each write: received data can be decompressed at once.
                text += decompress.decompress(client.response.read1(65_536))
            assert len(frames(text)) == 300
        with Client(simulator, f"/recentchange{ALL}") as client:
            assert client.response.headers["Content-Encoding"] is None
        simulator.set_faults(gzip=False)
        with Client(simulator, headers=accepts) as client:
            assert client.response.headers["Content-Encoding"] is None


def test_live_events_arrive_in_time() -> None:
    with (
        serving(HEARING, rate=500.0, max_events=200, disorder=NO_DISORDER) as simulator,
        Client(simulator, f"/recentchange{ALL}") as client,
    ):
        assert len(client.read_events(200)) == 200
        assert simulator.stats().events_appended_total == 200
        dated = [entry.timestamp - simulator.started_ms for entry in simulator.journal()]
        assert dated == sorted(dated)
        # 200 events at 500 a second.
        assert 0 <= dated[0] < dated[-1] <= 400


def test_a_lagging_mirror_serves_late_but_everything() -> None:
    lag_seconds = 1.0
    faults = Faults(other_cluster_rate=1.0, mirror_lag_seconds=lag_seconds)
    with (
        serving(faults, second_share=0.0, canary_every_seconds=0.0) as simulator,
        Client(simulator) as client,
    ):
        client.read_until(b":ok\n\n")
        appended = time.monotonic()
        simulator.append(5)
        # Home is not late: a second client there has them at once.
        simulator.set_faults(other_cluster_rate=0.0)
        with Client(simulator, f"/recentchange{ALL}") as home:
            home.read_events(5)
        assert time.monotonic() - appended < lag_seconds
        assert len(client.read_events(5)) == 5
        assert time.monotonic() - appended >= lag_seconds


def test_the_journal_and_the_counters_over_http(tmp_path: Path) -> None:
    path = tmp_path / "journal.ndjson"
    with serving(history_events=50, journal=path) as simulator:
        simulator.append(2)
        host = simulator.url.removesuffix("/v2/stream").removeprefix("http://")
        found = {}
        for name in ("journal", "stats"):
            connection = http.client.HTTPConnection(host, timeout=TIMEOUT_SECONDS)
            connection.request("GET", f"/simulator/{name}")
            found[name] = connection.getresponse().read()
            connection.close()
        assert found["journal"] == path.read_bytes()
        lines = [json.loads(line) for line in found["journal"].splitlines()]
        assert len(lines) == 52
        assert set(lines[0]) == {
            "topic",
            "partition",
            "offset",
            "timestamp",
            "identity",
            "canary",
        }
        assert [JournalEntry(**line) for line in lines] == simulator.journal()
        assert json.loads(found["stats"]) == asdict(Stats(events_appended_total=52))
        assert [e.canary for e in simulator.journal()][:2] == [True, True]


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the recordings are not here")
def test_recorded_events_are_passed_on_byte_for_byte() -> None:
    path = RECORDINGS / "recentchange-2018-10-19.sse"
    data = re.findall(rb"\ndata: ([^\n]+)\n", path.read_bytes())
    assert len(data) == 223
    with serving(file=path) as simulator, Client(simulator, f"/recentchange{ALL}") as client:
        events = client.read_events(223)
    assert [received for _, received in events] == data
    recorded = re.findall(rb'"timestamp":(1539948\d+)\}', path.read_bytes())
    assert [max(a.get("timestamp", 0) for a in json.loads(sse_id)) for sse_id, _ in events] == list(
        map(int, recorded)
    )


def test_recorded_events_of_other_streams_can_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    path.write_bytes(
        b'{"meta":{"id":"a","topic":"codfw.mediawiki.page-create","dt":"2024-01-01T00:00:00Z"}}'
    )
    with serving(file=path) as simulator, Client(simulator, f"/page-create{ALL}") as client:
        assert identities(client.read_events(1)) == ["a"]


def test_a_port_that_is_taken_is_an_error_at_the_start() -> None:
    with serving() as simulator:
        port = int(simulator.url.removesuffix("/v2/stream").rpartition(":")[2])
        second = Simulator(SimulatorSettings(port=port))
        with pytest.raises(OSError, match="in use"):
            second.start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal(number: signal.Signals) -> None:
    code = (
        "import sys\nfrom pleiades.simulator.command import run\nsys.exit(run(sys.argv[1:], ''))\n"
    )
    flags = ["--port", "0", "--rate", "0", "--events", "10", "--anyUserAgent"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *flags], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr
            line = process.stderr.readline()
            url = re.search(r"simulating (http://\S+) seed 1", line)
            assert url, line
            parts = urllib.parse.urlsplit(url[1])
            connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_SECONDS)
            connection.request("GET", parts.path + ALL)
            response = connection.getresponse()
            received = b""
            while received.count(b"\n\n") < 11:
                received += response.read1(65_536)
            process.send_signal(number)
            assert process.wait(TIMEOUT_SECONDS) == 0
            response.close()
            connection.close()
        finally:
            process.kill()


@pytest.mark.parametrize("record_bytes", [0, 16])
def test_over_tls_with_records_of_any_size(tmp_path: Path, record_bytes: int) -> None:
    ca = tmp_path / "ca.pem"
    tls = server_context("127.0.0.1", ca, record_bytes)
    with serving(HEARING, history_events=20, canary_every_seconds=0.0, tls=tls) as simulator:
        assert simulator.url.startswith("https://")
        url = urllib.parse.urlsplit(simulator.url)
        assert url.hostname
        context = ssl.create_default_context(cafile=ca)
        with (
            socket.create_connection((url.hostname, url.port or 0), TIMEOUT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=url.hostname) as client,
        ):
            path = f"{url.path}/recentchange{ALL}"
            agent = AGENT["User-Agent"]
            client.sendall(
                f"GET {path} HTTP/1.1\r\nHost: x\r\nUser-Agent: {agent}\r\n\r\n".encode()
            )
            received, most = b"", 0
            while received.count(b"\nevent: message\n") < 20:
                part = client.recv(65_536)
                assert part
                most = max(most, len(part))
                received += part
    assert most <= record_bytes or not record_bytes
    assert most > 16 or record_bytes


def test_a_stop_leaves_no_connection_open_though_a_client_says_no_goodbye(tmp_path: Path) -> None:
    """TLS waits for the client's close_notify, but the loop ends before that."""
    ca = tmp_path / "ca.pem"
    with contextlib.ExitStack() as stack:
        with serving(HEARING, tls=server_context("127.0.0.1", ca, 0)) as simulator:
            url = urllib.parse.urlsplit(simulator.url)
            assert url.hostname
            address = (url.hostname, url.port or 0)
            plain = stack.enter_context(socket.create_connection(address, TIMEOUT_SECONDS))
            context = ssl.create_default_context(cafile=ca)
            client = stack.enter_context(context.wrap_socket(plain, server_hostname=url.hostname))
            head = f"GET {url.path}/recentchange HTTP/1.1\r\nHost: x\r\n"
            client.sendall(f"{head}User-Agent: a@example.org\r\n\r\n".encode())
            assert client.recv(65_536)
        # An unclosed connection is reported when it is collected, in whichever test runs then.
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            gc.collect()
        unclosed = [str(warning.message) for warning in told]
        assert not [message for message in unclosed if "unclosed" in message]
