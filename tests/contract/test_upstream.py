"""The behaviour that clients can rely on: one suite for the real service and for the simulator.

If the two differ, the simulator is wrong. The suite uses its own HTTP client, because the relay's
reading of an answer proves nothing.
"""

from __future__ import annotations

import http.client
import json
import queue
import socket
import ssl
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from confluent_kafka import KafkaError, Message, Producer

from pleiades.simulator.log import JournalEntry
from pleiades.simulator.settings import Cut, Faults, SimulatorSettings, topics_of
from pleiades.simulator.simulator import Simulator
from tests.harness.authority import authority
from tests.harness.eventstreams import EventStreams, UpstreamTopics

AGENT = {
    "User-Agent": "PleiadesTests/1.0 (https://example.org/; tests@example.org)",
    "Accept": "text/event-stream",
}
WAIT_SECONDS = 30.0
DEAF_POLL_SECONDS = 0.1
DEAF_TRIES = 200
"""Events written one by one until the first one arrives, after about half a second."""

EPOCH_MS = 1_760_000_000_000
LATE_MS = EPOCH_MS + 3_600_000
FIRST, SECOND = 0, 1
"""The stream's topics, by data centre."""
AWKWARD = "Zürich \u2028 東京 \u2029 🦀 \x85"
"""UTF-8 of two, three and four bytes, and characters that some take for line ends."""

# The timestamps of the first topic in the resumption table, at the offsets 0 to 7.
TABLE_MS = (0, 5, 5, 5, 9, 7, 8, 12)


# ---- the upstreams ----


class Event(NamedTuple):
    """An event to be written upstream; its identity is its number in its upstream."""

    topic: int
    timestamp_ms: int


TABLE = tuple(Event(FIRST, EPOCH_MS + ms) for ms in TABLE_MS)
TABLE_NUMBERS = list(range(len(TABLE)))


def value(topic: str, number: int) -> bytes:
    """The compact JSON that both kinds serve."""
    meta = {"id": str(number), "topic": topic, "partition": 0}
    event = {"meta": meta, "text": AWKWARD}
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass
class Upstream:
    """A private stream of either kind."""

    url: str
    stream: str
    topics: Sequence[str]
    append: Callable[[int], None]
    """Write that many of the later events."""
    journal: Callable[[], list[JournalEntry]]
    """All events written so far."""
    stop: Callable[[], None]
    tls: ssl.SSLContext | None = None

    def connect(self, query: str = "", last_event_id: Any = None, **more: Any) -> Connection:
        """Request the stream."""
        given = None if last_event_id is None else json.dumps(last_event_id)
        return Connection(f"{self.url}/{self.stream}{query}", given, tls=self.tls, **more)

    def entry(self, number: int) -> JournalEntry:
        """The journal entry of an event."""
        return next(entry for entry in self.journal() if entry.identity == str(number))

    def position(self, topic: int, **place: int) -> dict[str, Any]:
        """An entry of an id."""
        return {"topic": self.topics[topic], "partition": 0, **place}


class Kind(Protocol):
    """A kind of upstream."""

    def open(
        self,
        history: Sequence[Event],
        later: Sequence[Event] = (),
        max_connections: int = 0,
        cut_seconds: float = 0,
        tls: bool = False,
    ) -> Upstream:
        """Open an upstream that has the history, and will have the later events."""
        ...


class Service:
    """The real service: shared by all tests, or a separate one for other settings."""

    STREAMS = 60

    def __init__(self, kafka: str, stack: ExitStack) -> None:
        self._kafka = kafka
        self._stack = stack
        run = uuid.uuid4().hex
        streams = [f"contract-{run}-{number}" for number in range(self.STREAMS)]
        self._shared = stack.enter_context(EventStreams(kafka, streams))
        self._unused = iter(streams)

    def open(
        self,
        history: Sequence[Event],
        later: Sequence[Event] = (),
        max_connections: int = 0,
        cut_seconds: float = 0,
        tls: bool = False,
    ) -> Upstream:
        stream, service = next(self._unused), self._shared
        written = self._stack.enter_context(UpstreamTopics(self._kafka, stream))
        if max_connections or cut_seconds:
            service = EventStreams(self._kafka, [stream], max_connections, cut_seconds)
            self._stack.enter_context(service)
        topics = (written.eqiad, written.codfw)
        producer = Producer({"bootstrap.servers": self._kafka, "linger.ms": 0})
        events = iter(enumerate([*history, *later]))
        journal: list[JournalEntry] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            topic, offset = message.topic(), message.offset()
            assert topic is not None
            assert offset is not None
            number = json.loads(message.value() or b"")["meta"]["id"]
            journal.append(JournalEntry(topic, 0, offset, message.timestamp()[1], number, False))

        def append(count: int) -> None:
            for _ in range(count):
                number, event = next(events)
                topic = topics[event.topic]
                producer.produce(
                    topic,
                    value(topic, number),
                    timestamp=event.timestamp_ms,
                    on_delivery=delivered,
                )
            assert not producer.flush(WAIT_SECONDS)

        append(len(history))
        context = ssl.create_default_context(cafile=str(service.ca)) if tls else None
        url = service.tls_url if tls else service.url
        return Upstream(url, stream, topics, append, lambda: journal, service.stop, context)


class Simulated:
    """The simulator, in this process."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def open(
        self,
        history: Sequence[Event],
        later: Sequence[Event] = (),
        max_connections: int = 0,
        cut_seconds: float = 0,
        tls: bool = False,
    ) -> Upstream:
        stream = f"contract-{uuid.uuid4().hex}"
        topics = topics_of(stream)
        file = self._folder / f"{stream}.sse"
        file.write_bytes(
            b"".join(
                b"id: %b\ndata: %b\n\n"
                % (
                    json.dumps(
                        [{"topic": topic, "partition": 0, "timestamp": event.timestamp_ms + 1}]
                    ).encode(),
                    value(topic, number),
                )
                for number, event in enumerate([*history, *later])
                for topic in [topics[event.topic]]
            )
        )
        faults = Faults(
            cut_every_seconds=cut_seconds,
            cut_jitter=0,
            cuts=(Cut.CLOSE,),
            max_connections=max_connections,
            other_cluster_rate=0,
        )
        trusted = authority() if tls else None
        settings = SimulatorSettings(
            streams=(stream,),
            # Without a rate the whole file is history. With this low rate the later events wait for
            # `append`, and the last event of the history is due at the start.
            rate=0.001,
            history_events=len(history) - 1,
            file=file,
            canary_every_seconds=0,
            faults=faults,
            tls=trusted.server if trusted else None,
        )
        simulator = self._stack.enter_context(Simulator(settings))
        simulator.wait_until(lambda stats: stats.events_appended_total == len(history))

        def append(count: int) -> None:
            assert simulator.append(count) == count

        context = ssl.create_default_context(cafile=str(trusted.ca)) if trusted else None
        return Upstream(
            simulator.url, stream, topics, append, simulator.journal, simulator.stop, context
        )


@pytest.fixture(scope="module", params=["service", "simulator"])
def upstreams(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kind]:
    folder = tmp_path_factory.mktemp("upstream")
    with ExitStack() as stack:
        if request.param == "service":
            # Only the service needs a Kafka.
            yield Service(request.getfixturevalue("kafka"), stack)
        else:
            yield Simulated(folder, stack)


@pytest.fixture(scope="module")
def table(upstreams: Kind) -> Upstream:
    """The log of the resumption table; the second topic is empty."""
    return upstreams.open(TABLE)


# ---- the client ----


class Received(NamedTuple):
    """A received event."""

    entries: dict[str, dict[str, Any]]
    """The entries of the id, by topic."""
    topic: str
    number: int


class Connection:
    """One request. A thread reads, so that a test can limit its wait for an event."""

    def __init__(
        self,
        url: str,
        last_event_id: str | None = None,
        headers: dict[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname
        if tls is None:
            self._connection = http.client.HTTPConnection(
                parts.hostname, parts.port, timeout=WAIT_SECONDS
            )
        else:
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=WAIT_SECONDS, context=tls
            )
        sent = dict(AGENT if headers is None else headers)
        if last_event_id is not None:
            sent["Last-Event-ID"] = last_event_id
        self._connection.putrequest("GET", f"{parts.path}?{parts.query}", skip_accept_encoding=True)
        for name, text in sent.items():
            self._connection.putheader(name, text)
        self._connection.endheaders()
        self.response = self._connection.getresponse()
        self.received = b""
        self.broken: Exception | None = None
        self._socket = self._connection.sock
        self._frames: queue.Queue[bytes | None] = queue.Queue()
        self._reading = threading.Thread(target=self._read, daemon=True)
        if self.response.status == 200:
            self._reading.start()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reading.ident is not None:
            # Ends the thread's read.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._reading.join(WAIT_SECONDS)
        self.response.close()
        self._connection.close()

    def _read(self) -> None:
        waiting = b""
        try:
            while chunk := self.response.read1(65_536):
                self.received += chunk
                *frames, waiting = (waiting + chunk).split(b"\n\n")
                for frame in frames:
                    self._frames.put(frame)
        except (http.client.IncompleteRead, OSError, ValueError) as error:
            self.broken = error
        self._frames.put(None)

    def refusal(self) -> dict[str, Any]:
        """The body of a refusal."""
        found = json.loads(self.response.read())
        assert isinstance(found, dict)
        return found

    def opening(self) -> None:
        """Wait for the first bytes of the stream."""
        assert self.response.status == 200, self.response.read()
        assert self._frames.get(timeout=WAIT_SECONDS) == b":ok"

    def poll(self, seconds: float) -> Received | None:
        """The next event, if one arrives within that time."""
        try:
            frame = self._frames.get(timeout=seconds)
        except queue.Empty:
            return None
        assert frame is not None, f"the stream ended: {self.broken}"
        return parse(frame)

    def events(self, count: int) -> list[Received]:
        """The next events."""
        found: list[Received] = []
        for _ in range(count):
            event = self.poll(WAIT_SECONDS)
            assert event is not None, f"only {len(found)} of {count} events: {found}"
            found.append(event)
        return found

    def until(self, number: int) -> list[int]:
        """The numbers of the next events, up to this one."""
        found: list[int] = []
        while number not in found:
            (event,) = self.events(1)
            found.append(event.number)
        return found

    def end(self) -> None:
        """Read on to the end."""
        while self._frames.get(timeout=WAIT_SECONDS) is not None:
            pass


def parse(frame: bytes) -> Received:
    """An event's three lines."""
    kind, sse_id, data = frame.split(b"\n")
    assert kind == b"event: message"
    entries = {entry.pop("topic"): entry for entry in json.loads(sse_id.removeprefix(b"id: "))}
    event = json.loads(data.removeprefix(b"data: "))
    assert event["text"] == AWKWARD
    return Received(entries, event["meta"]["topic"], int(event["meta"]["id"]))


def first_heard(upstream: Upstream, connection: Connection) -> Received:
    """Write later events one by one until the first one arrives: a topic is deaf at first."""
    for _ in range(DEAF_TRIES):
        upstream.append(1)
        event = connection.poll(DEAF_POLL_SECONDS)
        if event is not None:
            return event
    raise AssertionError(f"none of {DEAF_TRIES} events arrived")


def iso(timestamp_ms: int) -> str:
    """A time in JavaScript's format."""
    seconds, ms = divmod(timestamp_ms, 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{ms:03d}Z"


def later(topic: int, count: int = DEAF_TRIES + 3) -> list[Event]:
    """Future events, one per millisecond."""
    return [Event(topic, LATE_MS + number) for number in range(count)]


# ---- the wire ----


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_the_answer_is_a_stream_of_whole_events_in_utf_8(upstreams: Kind, tls: bool) -> None:
    upstream = upstreams.open(TABLE, tls=tls)
    with upstream.connect(f"?since={iso(EPOCH_MS)}") as connection:
        headers = connection.response.headers
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert headers["Transfer-Encoding"] == "chunked"
        connection.opening()
        assert [event.number for event in connection.events(len(TABLE))] == TABLE_NUMBERS
        assert b"\r" not in connection.received
        assert connection.received.count(AWKWARD.encode()) == len(TABLE)


def test_all_of_each_topic_comes_in_order(upstreams: Kind) -> None:
    events = [Event(number % 3 == 0, EPOCH_MS + number // 2) for number in range(600)]
    upstream = upstreams.open(events)
    with upstream.connect(f"?since={iso(EPOCH_MS)}") as connection:
        connection.opening()
        received = connection.events(len(events))
    for place, topic in enumerate(upstream.topics):
        numbers = [event.number for event in received if event.topic == topic]
        assert numbers == [n for n, event in enumerate(events) if event.topic == place]


def test_joined_streams_have_an_entry_for_each_topic(upstreams: Kind) -> None:
    """The alias names the same topics again, and each topic is consumed once."""
    upstream = upstreams.open(TABLE)
    upstream.stream = f"{upstream.stream},mediawiki.{upstream.stream}"
    with upstream.connect(f"?since={iso(EPOCH_MS)}") as connection:
        connection.opening()
        received = connection.events(len(TABLE))
    assert [event.number for event in received] == TABLE_NUMBERS
    assert all(set(event.entries) == set(upstream.topics) for event in received)


# ---- ids ----


def test_an_id_has_offsets_until_a_topic_has_delivered_then_the_timestamp_plus_1(
    upstreams: Kind,
) -> None:
    events = [*TABLE, Event(SECOND, EPOCH_MS), Event(SECOND, EPOCH_MS + 50)]
    upstream = upstreams.open(events)
    start = EPOCH_MS + 5
    with upstream.connect(f"?since={iso(start)}") as connection:
        connection.opening()
        # The first event of each topic is not among them.
        received = connection.events(len(events) - 2)
    reached: dict[str, int] = {}
    for event in received:
        reached[event.topic] = events[event.number].timestamp_ms + 1
        for topic, entry in event.entries.items():
            if topic in reached:
                assert entry == {"partition": 0, "timestamp": reached[topic]}
            else:
                assert set(entry) == {"partition", "offset"}
                assert entry["offset"] >= 0
        assert set(event.entries) == set(upstream.topics)
    assert set(reached) == set(upstream.topics)


def test_an_id_names_the_offset_that_a_topic_was_resolved_to(upstreams: Kind) -> None:
    """The second topic delivers while the first is at an offset and silent."""
    upstream = upstreams.open([*TABLE, Event(SECOND, EPOCH_MS)], later(SECOND))
    asked = [upstream.position(FIRST, offset=10**9), upstream.position(SECOND, offset=-2)]
    with upstream.connect(last_event_id=asked) as connection:
        connection.opening()
        (event,) = connection.events(1)
    assert event.entries[upstream.topics[FIRST]] == {"partition": 0, "offset": 10**9}


def test_a_topic_asked_for_from_past_its_end_has_offset_minus_1(table: Upstream) -> None:
    with table.connect(f"?since={iso(EPOCH_MS)}") as connection:
        connection.opening()
        for event in connection.events(len(TABLE)):
            assert event.entries[table.topics[SECOND]] == {"partition": 0, "offset": -1}


# ---- since ----


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        (iso(EPOCH_MS - 1), TABLE_NUMBERS),
        (iso(EPOCH_MS), TABLE_NUMBERS),
        (iso(EPOCH_MS + 5), [1, 2, 3, 4, 5, 6, 7]),
        (iso(EPOCH_MS + 6), [4, 5, 6, 7]),
        (iso(EPOCH_MS + 10), [7]),
        (iso(EPOCH_MS + 12), [7]),
        ("2025-10-09T08:53:20Z", TABLE_NUMBERS),
        ("2025-10-09T10:53:20.006%2B02:00", [4, 5, 6, 7]),
        # Milliseconds are passed on as a string, which the Kafka client takes for 0.
        (str(EPOCH_MS + 12), TABLE_NUMBERS),
        (str(EPOCH_MS + 10**9), TABLE_NUMBERS),
        ("0", TABLE_NUMBERS),
    ],
)
def test_since(table: Upstream, since: str, expected: list[int]) -> None:
    with table.connect(f"?since={since}") as connection:
        connection.opening()
        assert connection.until(TABLE_NUMBERS[-1]) == expected


@pytest.mark.parametrize("query", ["", "?since=", f"?since={iso(LATE_MS + 10**8)}"])
def test_without_since_or_past_the_end_history_is_not_sent_and_the_stream_is_deaf_at_first(
    upstreams: Kind, query: str
) -> None:
    upstream = upstreams.open(TABLE, later(FIRST))
    with upstream.connect(query) as connection:
        connection.opening()
        heard = first_heard(upstream, connection)
        assert heard.number >= len(TABLE)
        # It does not show the events that it may have missed.
        assert heard.entries[upstream.topics[SECOND]] == {"partition": 0, "offset": -1}
        own = {"partition": 0, "timestamp": upstream.entry(heard.number).timestamp + 1}
        assert heard.entries[upstream.topics[FIRST]] == own
        # After its first delivery it misses nothing.
        upstream.append(2)
        written = len(upstream.journal()) - 1
        assert connection.until(written) == list(range(heard.number + 1, written + 1))


# ---- resuming ----


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (1, [4, 5, 6, 7]),
        (4, [7]),
        (6, [4, 5, 6, 7]),
    ],
    ids=["2 and 3 are skipped", "5 and 6 are skipped", "4 to 6 are repeated"],
)
def test_resuming_with_the_last_id_skips_or_repeats(
    table: Upstream, last: int, expected: list[int]
) -> None:
    with table.connect(f"?since={iso(EPOCH_MS)}") as connection:
        connection.opening()
        entries = connection.events(last + 1)[last].entries
    last_id = [{"topic": topic, **entry} for topic, entry in entries.items()]
    with table.connect(last_event_id=last_id) as connection:
        connection.opening()
        assert connection.until(TABLE_NUMBERS[-1]) == expected


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ({"timestamp": EPOCH_MS}, TABLE_NUMBERS),
        ({"timestamp": EPOCH_MS + 10}, [7]),
        ({"offset": -2}, TABLE_NUMBERS),
    ],
)
def test_a_position_is_resolved(
    table: Upstream, place: dict[str, int], expected: list[int]
) -> None:
    with table.connect(last_event_id=[table.position(FIRST, **place)]) as connection:
        connection.opening()
        assert connection.until(TABLE_NUMBERS[-1]) == expected


def test_an_offset_is_exact(table: Upstream) -> None:
    """5 is earlier than 4, and still only the events from its offset on are sent."""
    offset = table.entry(5).offset
    with table.connect(last_event_id=[table.position(FIRST, offset=offset)]) as connection:
        connection.opening()
        assert connection.until(TABLE_NUMBERS[-1]) == [5, 6, 7]


@pytest.mark.parametrize(
    "place", [{"timestamp": LATE_MS + 10**8}, {"offset": -1}, {"offset": 10**9}]
)
def test_past_the_end_is_latest_without_an_error(upstreams: Kind, place: dict[str, int]) -> None:
    upstream = upstreams.open(TABLE, later(FIRST))
    with upstream.connect(last_event_id=[upstream.position(FIRST, **place)]) as connection:
        connection.opening()
        assert first_heard(upstream, connection).number >= len(TABLE)


def test_what_arrived_in_a_topic_that_the_id_had_at_minus_1_is_lost(upstreams: Kind) -> None:
    missed = Event(SECOND, EPOCH_MS + 20)
    upstream = upstreams.open(TABLE, [missed, *later(SECOND)])
    with upstream.connect(f"?since={iso(EPOCH_MS)}") as connection:
        connection.opening()
        entries = connection.events(len(TABLE))[-1].entries
    upstream.append(1)
    last_id = [{"topic": topic, **entry} for topic, entry in entries.items()]
    with upstream.connect(last_event_id=last_id) as connection:
        connection.opening()
        heard = first_heard(upstream, connection)
        assert heard.number > len(TABLE)


def test_a_topic_that_has_caught_up_is_at_minus_1_on_the_next_connection(upstreams: Kind) -> None:
    upstream = upstreams.open([*TABLE, Event(SECOND, EPOCH_MS)])
    last_id = [
        upstream.position(FIRST, timestamp=EPOCH_MS + 13),
        upstream.position(SECOND, timestamp=EPOCH_MS),
    ]
    with upstream.connect(last_event_id=last_id) as connection:
        connection.opening()
        (event,) = connection.events(1)
    assert event.entries[upstream.topics[FIRST]] == {"partition": 0, "offset": -1}


def test_the_header_wins_over_since_and_a_topic_left_out_is_not_consumed(upstreams: Kind) -> None:
    upstream = upstreams.open([*(Event(SECOND, EPOCH_MS) for _ in range(50)), *TABLE])
    asked = [upstream.position(FIRST, timestamp=EPOCH_MS + 10)]
    with upstream.connect(f"?since={iso(EPOCH_MS)}", asked) as connection:
        connection.opening()
        (event,) = connection.events(1)
    assert event.number == 50 + TABLE_NUMBERS[-1]
    assert set(event.entries) == {upstream.topics[FIRST]}


# ---- refusals ----


def test_an_unknown_stream(table: Upstream) -> None:
    with Connection(f"{table.url}/{table.stream},nosuch") as connection:
        assert connection.response.status == 400
        assert connection.response.headers["Content-Type"] == "application/json; charset=utf-8"
        refusal = connection.refusal()
    assert refusal["type"] == "not_found"
    assert refusal["detail"] == "Invalid streams: nosuch"


def test_a_since_that_is_no_time(table: Upstream) -> None:
    with table.connect("?since=banana") as connection:
        assert connection.response.status == 400
        assert connection.response.headers["Content-Type"] == "application/json; charset=utf-8"
        assert connection.refusal()["type"] == "invalid_timestamp"


@pytest.mark.parametrize(
    "last_event_id",
    ["banana", "{}", "[]", "7", '[{"topic":"eqiad.mediawiki.recentchange"}]', "[null]"],
)
def test_a_last_event_id_that_is_no_array_of_assignments(
    table: Upstream, last_event_id: str
) -> None:
    with Connection(f"{table.url}/{table.stream}", last_event_id) as connection:
        assert connection.response.status == 400
        assert connection.response.headers["Content-Type"] is None
        assert connection.refusal()["name"] == "InvalidAssignmentError"


def test_a_topic_outside_the_stream(table: Upstream) -> None:
    entry = {"topic": "eqiad.mediawiki.other", "partition": 0, "offset": -1}
    with table.connect(last_event_id=[entry]) as connection:
        assert connection.response.status == 404
        assert connection.response.headers["Content-Type"] is None
        assert connection.refusal()["name"] == "TopicNotAvailableError"


@pytest.mark.parametrize("place", [{"offset": -1}, {"timestamp": EPOCH_MS}])
def test_a_partition_that_does_not_exist(table: Upstream, place: dict[str, int]) -> None:
    entry = {"topic": table.topics[FIRST], "partition": 7, **place}
    with table.connect(last_event_id=[entry]) as connection:
        assert connection.response.status in (200, 500)


@pytest.mark.parametrize("headers", [{}, {"User-Agent": "python-requests/2.32.3"}])
def test_an_agent_without_a_contact(table: Upstream, headers: dict[str, str]) -> None:
    with table.connect(headers=headers) as connection:
        assert connection.response.status == 403


# ---- the end of a connection ----


def test_too_many_connections(upstreams: Kind) -> None:
    upstream = upstreams.open(TABLE, max_connections=1)
    with upstream.connect() as first:
        first.opening()
        with upstream.connect() as second:
            assert second.response.status == 429
            assert second.response.headers["Content-Type"] == "application/json; charset=utf-8"
            assert second.refusal()["type"] == "too_many_requests"


def test_a_cut_and_a_stop_have_no_final_chunk(upstreams: Kind) -> None:
    upstream = upstreams.open(TABLE, cut_seconds=0.5)
    with upstream.connect() as connection:
        connection.opening()
        connection.end()
        assert connection.broken is not None
    upstream = upstreams.open(TABLE, max_connections=1)
    with upstream.connect() as connection:
        connection.opening()
        upstream.stop()
        connection.end()
        assert connection.broken is not None
