"""The reader against a server with scripted answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import orjson
import pytest

from pleiades.config.settings import Settings
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.decoding import decode
from pleiades.core.event import Delivered, End, Frames, PositionRequest
from pleiades.core.sse_id import TopicPartition, compose_id
from pleiades.reader import Reader
from pleiades.runtime.channel import Channel
from pleiades.runtime.errors import RefusedByUpstream
from pleiades.runtime.metrics import Metrics
from pleiades.upstream.body import READ_BYTES
from tests.harness.answers import Server, since_of
from tests.unit.conftest import FakeChannel, FakeChildContext

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
SOURCE = ("eqiad.x", 0)
START_MS = 1_760_000_000_000

Answer = Callable[..., Server]


class FakeParser(FakeChannel[Frames | End]):
    """Both channels between a reader and a parser, which answers at once."""

    def __init__(self) -> None:
        super().__init__()
        self._since = Delivered({})
        self.requests = 0

    def put(self, item: Frames | PositionRequest | End, alive: Callable[[], None]) -> None:
        if isinstance(item, PositionRequest):
            self.requests += 1
            return
        super().put(item, alive)
        if isinstance(item, Frames):
            decoded = decode(item, keep_canaries=False)
            self._since = self._since.and_then(decoded.batch, decoded.retry_ms)

    def get(self, timeout_seconds: float) -> Any:
        answer, self._since = self._since, Delivered({})
        return answer


Made = tuple[Reader, FakeChildContext, list[FakeParser]]
Make = Callable[..., Made]


@pytest.fixture
def answer() -> Iterator[Answer]:
    servers: list[Server] = []

    def start(*bodies: bytes, head: bytes = HEAD) -> Server:
        servers.append(Server(*(head + b"\r\n" + body for body in bodies)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def make(metrics: Metrics, settings_of: Callable[..., Settings]) -> Make:
    def reader(
        server: Server,
        *flags: str,
        pauses: int = 1,
        position: dict[TopicPartition, int] | None = None,
    ) -> Made:
        child = FakeChildContext(pauses)
        settings = settings_of(f"--upstream.url={server.url}", *flags)
        checkpoint = FakeChannel(Checkpoint(position or {}, START_MS, 0))
        channels = [FakeParser() for _ in range(settings.parsers)]
        made = Reader(
            child,
            metrics,
            settings,
            cast("Channel[Checkpoint]", checkpoint),
            [cast("Channel[Frames | PositionRequest | End]", channel) for channel in channels],
            [cast("Channel[Delivered]", channel) for channel in channels],
        )
        return made, child, channels

    return reader


def frame(timestamp_ms: int, topic: str = SOURCE[0]) -> bytes:
    sse_id = orjson.dumps([{"topic": topic, "partition": 0, "timestamp": timestamp_ms}])
    return b"event: message\nid: " + sse_id + b"\ndata: {}\n\n"


def last_event_id(request: bytes) -> dict[str, int]:
    (line,) = [line for line in request.split(b"\r\n") if line.startswith(b"Last-Event-ID: ")]
    entries = orjson.loads(line.removeprefix(b"Last-Event-ID: "))
    return {entry["topic"]: entry["timestamp"] for entry in entries}


def blobs(channel: FakeChannel[Frames | End]) -> list[bytes]:
    return [item.blob for item in channel.items if isinstance(item, Frames) and item.blob]


def test_retry_is_honoured_and_bounded(answer: Answer, make: Make) -> None:
    reader, child, _ = make(answer(b"retry: 12345\n\n" + frame(START_MS + 1)))
    reader.run()
    assert child.pauses == [12.345]
    reader, child, _ = make(answer(b"retry: 99999999999\n\n" + frame(START_MS + 1)))
    reader.run()
    assert child.pauses == [60.0]


def test_a_first_cut_reconnects_at_once_and_many_short_ones_pause(
    answer: Answer, make: Make
) -> None:
    bodies = [frame(START_MS + number * 1000) for number in range(1, 9)]
    server = answer(*bodies)
    reader, child, _ = make(server, pauses=5)
    reader.run()
    assert len(server.requests) == 6, "one cut without a pause, then one pause for each"
    assert child.pauses == sorted(child.pauses)
    assert 0 < child.pauses[0] <= 0.05
    assert child.pauses[-1] <= 1.0


@pytest.mark.parametrize("step_ms", [1000, 0], ids=["later and later", "in one millisecond"])
def test_what_is_new_is_seen_although_the_position_stands_still(
    answer: Answer, make: Make, step_ms: int
) -> None:
    """One event is dated an hour ahead; later events do not move the position."""
    ahead = frame(START_MS + 3_600_000)
    events = [frame(START_MS + number * step_ms) for number in range(1, 9)]
    server = answer(*(ahead + b"".join(events[:more]) for more in range(9)))
    reader, child, _ = make(server, pauses=6)
    reader.run()
    assert max(child.pauses) <= 1.0, "short but useful connections"


def test_what_is_repeated_is_nothing_new(answer: Answer, make: Make) -> None:
    reader, child, _ = make(answer(frame(START_MS + 2000) + frame(START_MS + 1000)), pauses=6)
    reader.run()
    assert child.pauses[-1] > 1.0, "it is asked ever less often"


def test_messages_of_the_service_are_nothing_new(answer: Answer, make: Make) -> None:
    """Its Kafka is away. Each answer is one message, with the number of its request."""
    message = b'event: error\ndata: {"message":"no broker","request":%d}\n\n'
    reader, child, _ = make(answer(*(message % number for number in range(9))), pauses=6)
    reader.run()
    assert child.pauses[-1] > 1.0


def recoveries(caplog: pytest.LogCaptureFixture) -> list[str]:
    words = ("connected to", "brought nothing new", "serves again")
    messages = [record.getMessage() for record in caplog.records]
    return [word for message in messages for word in words if word in message]


def test_only_new_events_end_the_warning_that_a_connection_brought_none(
    answer: Answer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    known, new = frame(START_MS + 1), frame(START_MS + 2000)
    server = answer(known, known, b"", known, known + new)
    reader, child, _ = make(server, position={SOURCE: START_MS + 1}, pauses=4)
    reader.run()
    told = ["connected to"] * 2 + ["brought nothing new"] * 3 + ["serves again"]
    assert recoveries(caplog) == told
    assert not child.problem


def test_the_latest_retry_field_counts_whichever_parser_got_it(answer: Answer, make: Make) -> None:
    known = START_MS + 1
    read = b":" + b"x" * READ_BYTES + b"\n\n"
    body = (
        frame(known)
        + b"retry: 1\n\n"
        + read
        + b"retry: 30000\n\n"
        + read
        + frame(known + 10)
        + b"retry: 0\n\n"
    )
    reader, child, channels = make(
        answer(body, body), "--parsers=2", position={SOURCE: known}, pauses=2
    )
    reader.run()
    by_parser = [b"".join(blobs(channel)) for channel in channels]
    assert not any(b"30000" in text and b"retry: 0\n" in text for text in by_parser)
    assert max(child.pauses) <= 1.0


def test_a_reconnect_asks_for_position_less_overlap_of_every_topic(
    answer: Answer, make: Make
) -> None:
    both = orjson.dumps(
        [
            {"topic": "eqiad.x", "partition": 0, "timestamp": START_MS + 100_000},
            {"topic": "codfw.x", "partition": 0, "offset": -1},
        ]
    )
    server = answer(b"event: message\nid: " + both + b"\ndata: {}\n\n" + b"data: half an event\n")
    reader, _, (channel,) = make(server, "--upstream.overlap=10s", pauses=3)
    reader.run()
    assert since_of(server.requests[0]) == 1_760_000_000_000
    assert last_event_id(server.requests[1]) == {"eqiad.x": START_MS, "codfw.x": START_MS}
    assert last_event_id(server.requests[2]) == {
        "eqiad.x": START_MS + 90_000,
        "codfw.x": START_MS,
    }
    assert all(b"half" not in blob for blob in blobs(channel))
    assert isinstance(channel.items[-1], End)


def test_batches_go_round_the_parsers_and_each_gets_an_end(answer: Answer, make: Make) -> None:
    server = answer(frame(START_MS + 1))
    reader, _, channels = make(server, "--parsers=3", pauses=4)
    reader.run()
    sequences = [
        [item.sequence for item in channel.items if isinstance(item, Frames)]
        for channel in channels
    ]
    total = sum(map(len, sequences))
    assert sequences == [list(range(first, total, 3)) for first in range(3)]
    assert all(isinstance(channel.items[-1], End) for channel in channels)


def test_frames_know_the_id_before_them_and_their_connection(answer: Answer, make: Make) -> None:
    several_reads = b":" + b"x" * 1_000_000 + b"\n\ndata: {}\n\n"
    server = answer(frame(START_MS + 1) + several_reads, b"data: {}\n\n")
    reader, _, (channel,) = make(server, position={SOURCE: START_MS + 1})
    reader.run()
    received = [item for item in channel.items if isinstance(item, Frames) and item.blob]
    frames = [item for item in received if item.connection == 1]
    assert frames[0].last_event_id == b""
    assert orjson.loads(frames[-1].last_event_id)[0]["timestamp"] == START_MS + 1
    other = next(item for item in received if item.connection == 2)
    assert other.last_event_id == b"", "each stream begins without one (WHATWG)"


def test_frames_know_what_their_connection_asked_for(answer: Answer, make: Make) -> None:
    for position, asked in (
        ({}, None),
        ({SOURCE: START_MS + 500_000}, compose_id({SOURCE: START_MS + 440_000})),
    ):
        reader, _, (channel,) = make(answer(frame(START_MS + 500_000)), position=position)
        reader.run()
        first, *_ = channel.items
        assert isinstance(first, Frames)
        assert first.asked == asked


def test_while_the_destination_stands_still_the_reader_shows_no_trouble_with_the_upstream(
    answer: Answer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection has ended, and the next one must wait until the frames are parsed."""
    reader, child, (channel,) = make(
        answer(frame(START_MS + 1) + b":" + b"x" * READ_BYTES + b"\n\n" + frame(START_MS + 5)),
        position={SOURCE: START_MS + 1},
    )
    shown: list[bool] = []

    def get(timeout_seconds: float) -> Delivered | None:
        shown.append(child.ready)
        return None if len(shown) < 3 else FakeParser.get(channel, timeout_seconds)

    monkeypatch.setattr(channel, "get", get)
    reader.run()
    assert shown[:3] == [True, True, True]


def test_the_ids_of_later_frames_are_left_to_the_parsers(answer: Answer, make: Make) -> None:
    """Once the known event has come again, they decide nothing until the connection ends."""
    several_reads = b":" + b"x" * 1_000_000 + b"\n\n"
    server = answer(frame(START_MS + 1) + several_reads + frame(START_MS + 70_000), b"")
    reader, _, channels = make(
        server, "--parsers=2", "--upstream.overlap=60s", position={SOURCE: START_MS + 1}
    )
    reader.run()
    assert [channel.requests for channel in channels] == [1, 1]
    asked = [last_event_id(request) for request in server.requests[:2]]
    assert asked == [{"eqiad.x": START_MS}, {"eqiad.x": START_MS + 10_000}]
    assert b"".join(blob for channel in channels for blob in blobs(channel)).count(b"id: ") == 2


def test_ids_are_read_as_long_as_one_topic_may_have_missed_events(
    answer: Answer, make: Make
) -> None:
    """Another topic of the connection has delivered its known event, many reads before."""
    known, first = (START_MS + 1, None), (START_MS + 1, START_MS + 9)
    entries = [
        orjson.dumps(
            [
                {"topic": "a", "partition": 0, "timestamp": times[0]},
                {"topic": "b", "partition": 0}
                | ({"offset": -1} if times[1] is None else {"timestamp": times[1]}),
            ]
        )
        for times in (known, first)
    ]
    frames = [b"event: message\nid: %b\ndata: {}\n\n" % sse_id for sse_id in entries]
    server = answer(frames[0] + b":" + b"x" * 1_000_000 + b"\n\n" + frames[1], frames[1])
    reader, _, (channel,) = make(server, position={("a", 0): START_MS + 1, ("b", 0): 0})
    reader.run()
    relayed = [
        (item.connection, item.blob.count(b"id: "))
        for item in channel.items
        if isinstance(item, Frames) and b"id: " in item.blob
    ]
    assert relayed[:2] == [(1, 1), (2, 1)], "the first event of b is left, and asked for again"


def test_a_refusal_ends_it(answer: Answer, make: Make) -> None:
    server = answer(b"no", head=b"HTTP/1.1 403 Forbidden\r\n")
    reader, _, _ = make(server)
    with pytest.raises(RefusedByUpstream):
        reader.run()


def test_retry_after_is_obeyed(answer: Answer, make: Make) -> None:
    server = answer(b"", head=b"HTTP/1.1 429 Slow\r\nRetry-After: 30\r\n")
    reader, child, _ = make(server)
    reader.run()
    assert child.pauses == [30.0]


@pytest.mark.parametrize(("first_ms", "gap"), [(59_000, False), (61_000, True)])
def test_a_gap_is_a_topic_that_begins_long_after_its_position(
    answer: Answer, make: Make, caplog: pytest.LogCaptureFixture, first_ms: int, gap: bool
) -> None:
    server = answer(frame(START_MS + 500_000 + first_ms))
    reader, _, _ = make(server, position={SOURCE: START_MS + 500_000})
    reader.run()
    assert ("the upstream no longer has the events between" in caplog.text) is gap


def test_an_oversized_frame_is_skipped_and_the_rest_goes_on(
    answer: Answer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    huge = b"data: " + b"x" * (9 * 1024 * 1024) + b"\n\n"
    server = answer(frame(START_MS + 1) + huge + frame(START_MS + 2))
    reader, _, (channel,) = make(server)
    reader.run()
    assert b"".join(blobs(channel)).startswith(frame(START_MS + 1) + frame(START_MS + 2))
    assert "more than 8 MiB" in caplog.text
    received = [item for item in channel.items if isinstance(item, Frames)]
    (after,) = [item for item in received if item.blob.startswith(frame(START_MS + 2))][:1]
    assert after.last_event_id == b"", "the skipped frame's is unknown"


def dated(seconds_from_now: int) -> bytes:
    when = time.gmtime(time.time() + seconds_from_now)
    return HEAD + time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT\r\n", when).encode()


def test_a_start_in_the_upstreams_future_is_set_back_at_once(
    answer: Answer, metrics: Metrics, settings_of: Callable[..., Settings]
) -> None:
    now_ms = int(time.time() * 1000)
    server = answer(b":ok\n\n", head=dated(-600))
    child = FakeChildContext(1)
    channel = FakeParser()
    reader = Reader(
        child,
        metrics,
        settings_of(f"--upstream.url={server.url}"),
        cast("Channel[Checkpoint]", FakeChannel(Checkpoint({}, now_ms, 0))),
        [cast("Channel[Frames | PositionRequest | End]", channel)],
        [cast("Channel[Delivered]", channel)],
    )
    reader.run()
    asked = [since_of(request) for request in server.requests[:2]]
    assert asked[0] == now_ms
    assert now_ms - 662_000 <= asked[1] <= now_ms - 658_000
    (first, *_) = [item for item in channel.items if isinstance(item, Frames)]
    assert first.started_ms == asked[1]
    connections = {item.connection for item in channel.items if isinstance(item, Frames)}
    assert len(connections) == len(server.requests) - 1, "the first one was useless"


def test_an_implausible_clock_is_not_believed(
    answer: Answer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    head = HEAD + b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
    server = answer(b":ok\n\n", head=head)
    reader, _, (channel,) = make(server)
    with caplog.at_level(logging.WARNING):
        reader.run()
    assert "one of them is wrong" in caplog.text
    (first, *_) = [item for item in channel.items if isinstance(item, Frames)]
    assert first.started_ms == START_MS


def ids(*entries: dict[str, object]) -> bytes:
    return orjson.dumps([{"partition": 0, **entry} for entry in entries])


def event(sse_id: bytes) -> bytes:
    return b"event: message\nid: " + sse_id + b"\ndata: {}\n\n"


def test_an_upstream_that_ignores_the_start_is_asked_by_topic(
    answer: Answer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """The real service takes a number of milliseconds for 0, and sends all of its history."""
    old = b"".join(frame(START_MS - 86_400_000 + number) for number in range(500))
    server = answer(old, frame(START_MS + 1))
    reader, _, (channel,) = make(server, pauses=2)
    with caplog.at_level(logging.WARNING):
        reader.run()
    assert since_of(server.requests[0]) == START_MS
    assert last_event_id(server.requests[1]) == {SOURCE[0]: START_MS}
    assert b"".join(blobs(channel)).startswith(frame(START_MS + 1))
    said = [record.message for record in caplog.records if "and sent older ones" in record.message]
    assert len(said) == 1


def test_nothing_is_taken_of_a_topic_that_may_have_missed_something(
    answer: Answer, make: Make
) -> None:
    """While it was deaf it missed an event of `b`, and then `b` continued, between events of `a`."""
    a, b, past = {"topic": "a"}, {"topic": "b"}, {"topic": "b", "offset": -1}
    first = event(ids({**a, "timestamp": START_MS + 1}, past))
    then = event(ids({**a, "timestamp": START_MS + 1}, {**b, "timestamp": START_MS + 9}))
    more = event(ids({**a, "timestamp": START_MS + 10}, {**b, "timestamp": START_MS + 9}))
    missed = event(ids({**a, "timestamp": START_MS + 1}, {**b, "timestamp": START_MS + 5}))
    whole = first + missed + then + more
    server = answer(first + then + more, whole, whole)
    reader, _, (channel,) = make(server, position={("a", 0): START_MS + 1, ("b", 0): 0}, pauses=3)
    reader.run()
    # Only the third connection begins with the same event of `b` as the one before.
    assert blobs(channel)[:3] == [first, first, whole]
    assert last_event_id(server.requests[1]) == {"a": START_MS, "b": START_MS}


def test_it_says_when_it_falls_behind_and_why(
    answer: Answer, make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every check sees a growing lag; `core.falling_behind` decides how to report it."""
    seen: list[tuple[float, int]] = []

    def observe(_: object, _now: float, lag_seconds: float, unread_bytes: int) -> bool:
        seen.append((lag_seconds, unread_bytes))
        return True

    monkeypatch.setattr("pleiades.core.falling_behind.FallingBehind.observe", observe)
    monkeypatch.setattr("pleiades.reader.WATCH_SECONDS", 0.0)
    reader, _, _ = make(answer(frame(START_MS + 1)), position={SOURCE: START_MS + 1})
    with caplog.at_level(logging.WARNING):
        reader.run()
    assert "falling behind: for the last 60 s" in caplog.text
    assert "Nothing is lost" in caplog.text
    assert "too busy for the reader" in caplog.text
    assert seen[0][0] > 0, "the age of the newest event"
    lags = [lag_seconds for lag_seconds, _ in seen]
    # Before an event has come, it is that of the position. An earlier one does not change it.
    assert max(lags) - min(lags) < 10


NOT_AVAILABLE = b"HTTP/1.1 404 TopicNotAvailableError\r\n"


def gone(*topics: str, available: list[str] | None = None) -> bytes:
    """KafkaSSE's refusal, including the head."""
    body = {
        "message": f"Topics {', '.join(topics)} are not available for consumption.",
        "origin": "KafkaSSE",
        "name": "TopicNotAvailableError",
        "stack": "TopicNotAvailableError: ...",
        **({} if available is None else {"availableTopics": available}),
        "statusCode": 404,
    }
    return NOT_AVAILABLE + b"\r\n" + orjson.dumps(body) + b"\n"


def stream(*frames: bytes) -> bytes:
    return HEAD + b"\r\n" + b"".join(frames)


A, B, C = (f"eqiad.{name}" for name in "abc")
THREE = {(A, 0): START_MS + 100_000, (B, 0): START_MS + 200_000, (C, 0): 0}


@pytest.mark.parametrize("available", [[A], None], ids=["by what there is", "by the message"])
def test_a_topic_that_is_gone_is_left_out_and_taken_up_again(
    answer: Answer,
    make: Make,
    caplog: pytest.LogCaptureFixture,
    available: list[str] | None,
) -> None:
    server = answer()
    server.say(
        gone(B, C, available=available),
        stream(frame(START_MS + 100_000, A), frame(START_MS + 100_001, A)),
        gone(B, C, available=available),
        stream(frame(START_MS + 100_001, A), frame(START_MS + 100_002, A)),
        stream(frame(START_MS + 200_000, B), frame(START_MS + 200_001, B)),
    )
    reader, child, (channel,) = make(server, "--upstream.overlap=10s", pauses=2, position=THREE)
    with caplog.at_level(logging.INFO):
        reader.run()
    asked = [last_event_id(request) for request in server.requests[:5]]
    full = {A: START_MS + 90_000, B: START_MS + 190_000, C: START_MS}
    assert [list(each) for each in asked] == [[A, B, C], [A], [A, B, C], [A], [A, B, C]]
    assert asked[0] == full
    assert asked[4][B] == full[B], "its position is kept"
    warnings = [r.message for r in caplog.records if "does not have" in r.message]
    assert len(warnings) == 1, "reported once"
    assert f"does not have {B}, {C} at present" in warnings[0]
    back = [r.message for r in caplog.records if "again: resuming" in r.message]
    assert len(back) == 1
    assert f"has {B}, {C} again" in back[0]
    assert max(child.pauses) <= 1.0, "none of this counts as a failure"
    assert frame(START_MS + 200_001, B) in b"".join(blobs(channel))


def test_topics_that_are_named_one_by_one_do_not_keep_the_others(
    answer: Answer, make: Make
) -> None:
    """A try is bounded, and known topics are kept for the next one."""
    topics = [f"eqiad.{number}" for number in range(8)]
    server = answer()
    server.say(*(gone(topic) for topic in topics), stream(frame(START_MS + 5, A)))
    position = {**dict.fromkeys([(topic, 0) for topic in topics], START_MS), (A, 0): START_MS + 5}
    reader, child, (channel,) = make(server, pauses=2, position=position)
    reader.run()
    assert len(child.pauses) == 2
    assert list(last_event_id(server.requests[8])) == [A]
    assert blobs(channel)[0] == frame(START_MS + 5, A)


def test_without_any_topic_left_it_is_refused(answer: Answer, make: Make) -> None:
    server = answer()
    server.say(gone(A), gone(B, C))
    reader, _, _ = make(server, position=THREE)
    with pytest.raises(RefusedByUpstream, match="status 404"):
        reader.run()
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "refusal",
    [
        gone("eqiad.nobody_asked", available=[A, B, C]),
        gone("eqiad.nobody_asked"),
        NOT_AVAILABLE + b'\r\n{"name":"SomethingElse","availableTopics":[]}',
        NOT_AVAILABLE + b"\r\n[1]",
        HEAD.replace(b"200 OK", b"400 Bad Request")
        + b'\r\n{"name":"InvalidAssignmentError","message":"Must provide"}',
    ],
)
def test_another_refusal_is_final(answer: Answer, make: Make, refusal: bytes) -> None:
    server = answer()
    server.say(refusal)
    reader, _, _ = make(server, position=THREE)
    with pytest.raises(RefusedByUpstream):
        reader.run()
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "status", [b"431 Headers Too Large", b"414 Long", b"413 Large", b"400 Bad"]
)
def test_a_request_that_is_too_long_for_a_server_is_refused_clearly(
    answer: Answer, make: Make, status: bytes
) -> None:
    server = answer()
    server.say(b"HTTP/1.1 " + status + b"\r\n\r\n")
    position = {(f"eqiad.mediawiki.stream-{number:03}", 0): START_MS for number in range(120)}
    reader, _, _ = make(server, position=position)
    with pytest.raises(RefusedByUpstream, match=r"names its topics in \d+ bytes.*fewer streams"):
        reader.run()
    assert len(server.requests) == 1


def test_a_stored_position_that_is_too_large_is_reduced_and_told_of(
    answer: Answer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    invented = {(f"aaa.{number:04}" + "x" * 200, 0): START_MS for number in range(1000)}
    position = {**invented, (A, 0): START_MS + 7, (C, 0): 0}
    server = answer(frame(START_MS + 7, A))
    reader, _, _ = make(server, position=position)
    reader.run()
    (line,) = [line for line in server.requests[0].split(b"\r\n") if b"Last-Event-ID: " in line]
    assert len(line) < 13_000
    assert A in last_event_id(server.requests[0]), "the latest one"
    said = [r.message for r in caplog.records if "has no room for all" in r.message]
    assert len(said) == 1
    assert "events will be missing" in said[0]
    assert "stored positions are kept" in said[0]


def test_an_upstream_that_invents_topics_makes_no_request_too_long(
    answer: Answer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [frame(START_MS + 1, f"invented.{number:03}" + "x" * 200) for number in range(400)]
    server = answer(frame(START_MS + 1, A) + b"".join(frames))
    reader, _, _ = make(server, pauses=3, position={(A, 0): START_MS + 1})
    reader.run()
    assert len(server.requests) > 1
    for request in server.requests:
        assert len(request) < 16_384, "all headers together, as Node takes them"
    assert A in last_event_id(server.requests[-1])
    assert "has no room for all" in caplog.text


@pytest.mark.parametrize(
    ("reached", "came", "gap"),
    [
        # All delivered events are dated years back: earlier events than the start come first.
        (START_MS - 10**11, [START_MS - 10**8, START_MS - 10**11, START_MS + 90_000], False),
        (START_MS - 10**11, [START_MS - 10**8, START_MS + 90_000], True),
        # A few are dated back, and come before the event that must come again.
        (START_MS + 500_000, [START_MS + 440_000, START_MS + 500_000, START_MS + 900_000], False),
        (START_MS + 500_000, [START_MS + 440_000, START_MS + 900_000], True),
    ],
)
def test_a_gap_is_something_later_before_what_must_come_again(
    answer: Answer,
    make: Make,
    caplog: pytest.LogCaptureFixture,
    reached: int,
    came: list[int],
    gap: bool,
) -> None:
    server = answer(b"".join(map(frame, came)))
    reader, _, _ = make(server, position={SOURCE: reached})
    reader.run()
    assert ("the upstream no longer has the events between" in caplog.text) is gap
