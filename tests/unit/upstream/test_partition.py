"""One topic of a range against a server with scripted answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import orjson
import pytest

from pleiades.config.settings import Settings
from pleiades.core.range import PAST_EVENTS
from pleiades.core.resume_cursor import ResumeCursor
from pleiades.runtime.errors import HistoryMissing, RefusedByUpstream
from pleiades.upstream.frames import Closed, Received
from pleiades.upstream.http import Upstream
from pleiades.upstream.partition import PartitionReader
from pleiades.upstream.session import Failed, Finished, Item, Opened
from tests.harness.answers import Held, Server

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
SOURCE = ("eqiad.x", 0)
BEGIN, END, OVERLAP = 1_000_000, 2_000_000, 10_000


class Plan(NamedTuple):
    """The progress in the range, the survey's result, and the permissions."""

    reached_ms: int = 0
    first_ms: int | None = None
    clock_ms: int = 3_000_000
    allow_gap: bool = False


PLAN = Plan()
KNOWN = PLAN._replace(first_ms=BEGIN + 1)
"""The survey found its first event, so it is not requested from past its end."""
PAST = END + OVERLAP + 1
IDLE_SECONDS = 0.5

Message: TypeAlias = Item | Finished
Run = Callable[..., tuple[list[Message], list[dict[str, int]], list[float]]]


def frame(timestamp_ms: int) -> bytes:
    sse_id = orjson.dumps([{"topic": SOURCE[0], "partition": 0, "timestamp": timestamp_ms}])
    return b"event: message\nid: " + sse_id + b"\ndata: {}\n\n"


def frames(*timestamps_ms: int) -> bytes:
    return HEAD + b"".join(map(frame, timestamps_ms))


OVER = [PAST] * PAST_EVENTS


@pytest.fixture
def run(settings_of: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    servers: list[Server] = []
    rests: list[float] = []
    monkeypatch.setattr(PartitionReader, "_pause", lambda _, seconds: rests.append(seconds))

    def play(
        *answers: bytes | Held, plan: Plan = PLAN, taking_seconds: float = 0.0
    ) -> tuple[list[Message], list[dict[str, int]], list[float]]:
        servers.append(Server(*answers))
        settings = settings_of(f"--upstream.url={servers[-1].url}")
        said: list[Message] = []

        def take(message: Message) -> None:
            if taking_seconds and isinstance(message, Received | Closed):
                threading.Event().wait(taking_seconds)
            said.append(message)

        cursor = ResumeCursor(
            BEGIN, OVERLAP, {SOURCE: plan.reached_ms}, found={SOURCE: plan.first_ms or 0}
        )
        reader = PartitionReader(
            SOURCE,
            cursor,
            END,
            plan.clock_ms,
            plan.allow_gap,
            Upstream(settings.upstream),
            IDLE_SECONDS,
        )
        for item in reader.items():
            take(item)
        asked = []
        for request in servers[-1].requests:
            (line,) = [line for line in request.split(b"\r\n") if b"Last-Event-ID" in line]
            entries = orjson.loads(line.partition(b": ")[2])
            asked.append({entry["topic"]: entry["timestamp"] for entry in entries})
        return said, asked, rests

    yield play
    for server in servers:
        server.close()


def blob_of(said: list[Message]) -> bytes:
    """All frames that were passed on."""
    return b"".join(message.blob for message in said if isinstance(message, Received))


def timestamps(said: list[Message]) -> list[int]:
    """The timestamps of all frames passed on."""
    blobs = blob_of(said)
    ids = [line for line in blobs.split(b"\n") if line.startswith(b"id: ")]
    return [orjson.loads(line[4:])[0]["timestamp"] for line in ids]


def has_gap(said: list[Message]) -> bool:
    return any(message.gaps for message in said if isinstance(message, Received))


def test_it_asks_for_its_topic_alone_and_ends_past_the_end(run: Run) -> None:
    said, asked, rests = run(frames(BEGIN + 1, BEGIN + 500, END + 1, *OVER), plan=KNOWN)
    assert asked == [{"eqiad.x": BEGIN}]
    assert timestamps(said) == [BEGIN + 1, BEGIN + 500, END + 1, *OVER]
    assert isinstance(said[0], Opened)
    assert isinstance(said[-2], Received)
    assert said[-1] == Finished(gap=False)
    assert rests == []


def test_a_cut_goes_on_an_overlap_behind_what_came(run: Run) -> None:
    said, asked, _ = run(
        frames(BEGIN + 1, BEGIN + 50_000),
        frames(BEGIN + 40_000, BEGIN + 50_000, *OVER),
        plan=KNOWN,
    )
    assert asked == [{"eqiad.x": BEGIN}, {"eqiad.x": BEGIN + 40_000}]
    assert [message.reason for message in said if isinstance(message, Closed)] == ["closed"]


def test_events_past_the_end_on_two_connections_are_not_added_up(run: Run) -> None:
    few = [PAST] * (PAST_EVENTS - 1)
    _, asked, _ = run(frames(BEGIN + 1, *few), frames(*few, BEGIN + 5), frames(*OVER), plan=KNOWN)
    assert len(asked) == 3


def test_ids_that_can_not_be_read_do_not_hide_the_end(run: Run) -> None:
    odd = b"id: banana\ndata: {}\n\n"
    past = b"".join(map(frame, OVER[:3])) + odd + b"".join(map(frame, OVER[3:]))
    _, asked, _ = run(HEAD + frame(BEGIN + 1) + past, frames(BEGIN + 1, *OVER), plan=KNOWN)
    assert len(asked) == 1


def test_what_an_earlier_run_reached_is_where_it_goes_on(run: Run) -> None:
    reached = BEGIN + 100_000
    answer = frames(BEGIN + 90_000, reached, *OVER)
    _, asked, _ = run(answer, plan=PLAN._replace(reached_ms=reached))
    assert asked == [{"eqiad.x": BEGIN + 90_000}]


def test_what_is_dated_ahead_of_the_clock_does_not_take_it_along(run: Run) -> None:
    ahead = 9_000_000
    _, asked, _ = run(frames(BEGIN + 1, ahead), frames(ahead, BEGIN + 2, *OVER), plan=KNOWN)
    assert asked[1] == {"eqiad.x": PLAN.clock_ms - OVERLAP}


@pytest.mark.parametrize(
    ("plan", "came", "is_gap"),
    [
        (PLAN, [BEGIN + 500_000], False),
        (PLAN._replace(first_ms=BEGIN + 700), [BEGIN + 700], False),
        (PLAN._replace(first_ms=BEGIN + 700), [BEGIN + 600, BEGIN + 700], False),
        (PLAN._replace(first_ms=BEGIN + 700), [BEGIN + 701], True),
        (PLAN._replace(first_ms=BEGIN + 700), [BEGIN + 600, BEGIN + 701, BEGIN + 700], True),
        (PLAN._replace(reached_ms=BEGIN + 700), [BEGIN + 700], False),
        (PLAN._replace(reached_ms=BEGIN + 700), [BEGIN + 300, BEGIN + 700, END], False),
        (PLAN._replace(reached_ms=BEGIN + 700), [BEGIN + 701], True),
        (PLAN._replace(reached_ms=BEGIN + 700), [BEGIN + 300, BEGIN + 701], True),
        # All delivered events are dated back; events from before the begin come first.
        (PLAN._replace(reached_ms=BEGIN - 700), [BEGIN - 100, BEGIN - 700, BEGIN + 1], False),
        (PLAN._replace(reached_ms=BEGIN - 700), [BEGIN - 100, BEGIN + 1], True),
    ],
)
def test_a_gap_is_something_later_before_what_must_come_again(
    run: Run, plan: Plan, came: list[int], is_gap: bool
) -> None:
    answer = frames(*came, came[-1] + 1, *OVER)
    if is_gap:
        with pytest.raises(HistoryMissing, match="--allow-gap"):
            run(answer, plan=plan)
    said, _, _ = run(answer, plan=plan._replace(allow_gap=True))
    assert has_gap(said) == is_gap
    # A connection that ended before a suspicious event is followed by one that repeats what came first.
    first = list(dict.fromkeys(timestamps(said)))
    assert first[: len(came)] == came, "existing events are passed on anyway"


NOT_AVAILABLE = (
    b"HTTP/1.1 404 No\r\n\r\n"
    b'{"message":"Topics eqiad.x are not available for consumption.","origin":"KafkaSSE",'
    b'"name":"TopicNotAvailableError","availableTopics":["codfw.x"],"statusCode":404}\n'
)


def test_a_topic_that_is_gone_is_missing_history(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(HistoryMissing, match=r"does not have eqiad\.x.*--allow-gap"):
        run(NOT_AVAILABLE)
    said, _, _ = run(frames(BEGIN + 1), NOT_AVAILABLE, plan=KNOWN._replace(allow_gap=True))
    assert said[-1] == Finished(gap=True)
    assert "no longer has this topic" in caplog.text


@pytest.mark.parametrize("step", [1, 0], ids=["later ids", "in one millisecond"])
def test_new_events_that_do_not_move_the_position_are_no_silence(run: Run, step: int) -> None:
    """One is dated ahead; then the upstream's own Kafka fails twice, and recovers."""
    ahead = END - 1
    more = [BEGIN + 2 + step * number for number in range(6)]
    said, asked, _ = run(
        cut_when_quiet(BEGIN + 1, ahead, *more[:1]),
        cut_when_quiet(ahead, *more[:2]),
        cut_when_quiet(ahead, *more[:4]),
        frames(ahead, *more, *OVER),
        plan=KNOWN,
    )
    assert len(asked) == 4
    assert len(timestamps(said)) == 3 + 3 + 5 + 7 + len(OVER)


MESSAGE = b'event: error\ndata: {"message":"Local: Broker transport failure"}\n\n'


def test_the_same_message_does_not_hide_a_new_event(run: Run) -> None:
    """The upstream's own Kafka fails twice, and each time the connection ends with a message."""
    said, asked, _ = run(
        Held(frames(BEGIN + 1, BEGIN + 2) + MESSAGE, seconds=IDLE_SECONDS + 0.1),
        Held(frames(BEGIN + 1, BEGIN + 2, BEGIN + 3) + MESSAGE, seconds=IDLE_SECONDS + 0.1),
        frames(BEGIN + 1, BEGIN + 2, BEGIN + 3, BEGIN + 4, *OVER),
        plan=KNOWN,
    )
    assert len(asked) == 3
    assert BEGIN + 4 in timestamps(said)


@pytest.mark.parametrize("what", [MESSAGE, b"data: \n\n", b":ok\n\n"])
def test_a_message_is_no_answer(run: Run, what: bytes) -> None:
    said, asked, _ = run(
        *[Held(HEAD + what, seconds=IDLE_SECONDS + 0.1)] * 3,
        frames(BEGIN + 1, *OVER),
        plan=PLAN._replace(first_ms=BEGIN + 1),
    )
    assert len(asked) == 4
    assert timestamps(said)[0] == BEGIN + 1


def test_an_id_with_its_keys_in_another_order_is_not_new(run: Run) -> None:
    other = b'event: message\nid: [{"timestamp":%d,"partition":0,"topic":"eqiad.x"}]\ndata: {}\n\n'
    said, asked, _ = run(
        cut_when_quiet(BEGIN + 1),
        Held(HEAD + other % (BEGIN + 1), seconds=IDLE_SECONDS + 0.1),
        plan=KNOWN,
    )
    assert len(asked) == 2
    assert said[-1] == Finished(gap=False)


def test_trouble_is_told_and_tried_again(run: Run) -> None:
    unavailable = b"HTTP/1.1 503 No\r\nRetry-After: 7\r\n\r\n"
    said, _, rests = run(unavailable, HEAD, frames(BEGIN + 1, *OVER))
    kinds = [message.kind for message in said if isinstance(message, Failed)]
    assert kinds == ["status_5xx", "empty"]
    assert rests[0] >= 7


def cut_when_quiet(*timestamps_ms: int) -> Held:
    """Like a proxy that is less patient than the relay."""
    return Held(frames(*timestamps_ms), seconds=IDLE_SECONDS + 0.1)


def test_silence_is_no_answer_where_there_is_known_to_be_something(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """The upstream's own Kafka goes down after the survey."""
    said, asked, _ = run(
        *[cut_when_quiet()] * 3,
        frames(BEGIN + 1, *OVER),
        plan=PLAN._replace(first_ms=BEGIN + 1),
    )
    assert len(asked) == 4
    assert timestamps(said)[0] == BEGIN + 1
    assert "not even events that it has sent before" in caplog.text


def test_a_topic_without_events_is_over_when_it_stays_silent(run: Run) -> None:
    said, asked, _ = run(cut_when_quiet())
    assert len(asked) == 2
    assert said[-1] == Finished(gap=False)


def test_a_silent_connection_that_somebody_else_ends_is_silent_too(run: Run) -> None:
    said, asked, _ = run(cut_when_quiet(BEGIN + 1), plan=KNOWN)
    assert len(asked) == 2, "one that brought new events, and one that repeated them"
    assert said[-1] == Finished(gap=False)


def test_that_nobody_takes_what_comes_is_no_silence(run: Run) -> None:
    """A low --rate, or a destination that stalls."""
    more = frame(BEGIN + 2) + b"".join(map(frame, OVER))
    said, asked, _ = run(
        Held(frames(BEGIN + 1), drip=more), plan=KNOWN, taking_seconds=IDLE_SECONDS + 0.1
    )
    assert len(asked) == 1
    assert timestamps(said)[:2] == [BEGIN + 1, BEGIN + 2]
    assert isinstance(said[-2], Received)
    assert said[-1] == Finished(gap=False)


def test_comments_are_silence(run: Run) -> None:
    said, asked, _ = run(Held(HEAD, drip=b":\n\n"))
    assert len(asked) == 2
    assert said[-1] == Finished(gap=False)


def test_a_refusal_ends_it(run: Run) -> None:
    with pytest.raises(RefusedByUpstream):
        run(b"HTTP/1.1 404 No\r\n\r\n")


def test_what_can_not_be_read_is_passed_on_all_the_same(run: Run) -> None:
    odd = (
        b'id: banana\ndata: {}\n\nid: [{"topic":"other","partition":0,"timestamp":5}]\ndata: {}\n\n'
    )
    said, asked, _ = run(HEAD + frame(BEGIN + 1) + odd + b"".join(map(frame, OVER)), plan=KNOWN)
    assert len(asked) == 1
    blobs = blob_of(said)
    assert odd in blobs


def test_ids_of_other_topics_are_never_asked_for(run: Run) -> None:
    other = b'id: [{"topic":"other","partition":0,"timestamp":1000005}]\ndata: {}\n\n'
    _, asked, _ = run(HEAD + frame(BEGIN + 1) + other, frames(BEGIN + 1, *OVER), plan=KNOWN)
    assert asked == [{"eqiad.x": BEGIN}, {"eqiad.x": BEGIN}]


def test_the_first_event_of_a_topic_that_was_past_its_end_is_asked_for_again(run: Run) -> None:
    """Another event may have come before it, while the connection was deaf."""
    both = frames(BEGIN + 1, BEGIN + 2, *OVER)
    said, asked, _ = run(frames(BEGIN + 2), both)
    assert asked == [{"eqiad.x": BEGIN}] * 3, "until it begins with the same event twice"
    assert timestamps(said) == [BEGIN + 1, BEGIN + 2, *OVER]
    assert [message.reason for message in said if isinstance(message, Closed)] == ["past_end"] * 2


def test_what_is_dated_ahead_and_never_comes_again_is_missing(run: Run) -> None:
    """All later events are dated before it, up to the end of the range: no date shows the gap."""
    plan = PLAN._replace(reached_ms=PAST + 500, clock_ms=BEGIN + OVERLAP)
    answer = frames(BEGIN + 1, BEGIN + 2, *OVER)
    with pytest.raises(HistoryMissing, match=r"no longer has the event of .*--allow-gap"):
        run(answer, plan=plan)
    said, _, _ = run(answer, plan=plan._replace(allow_gap=True))
    assert said[-1] == Finished(gap=True)
