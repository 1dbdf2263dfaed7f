from __future__ import annotations

import re

import orjson

from pleiades.core.decoding import decode
from pleiades.core.event import Batch, Frames
from pleiades.core.occurrences import Occurrences, is_recognisable
from pleiades.core.sse_id import TopicPartition, compose_id

EQIAD: TopicPartition = ("eqiad.x", 0)
CODFW: TopicPartition = ("codfw.x", 0)
START_MS = 1_760_000_000_000
NONCE = "00ff" * 4
FULL = re.compile(r"sha256-[0-9a-f]{64}(-\d+|-x[0-9a-f]{16}-\d+)?")


def frame(data: bytes, timestamp_ms: int, topic: str = "eqiad.x") -> bytes:
    sse_id = orjson.dumps([{"topic": topic, "partition": 0, "timestamp": timestamp_ms + 1}])
    return b"event: message\nid: %b\ndata: %b\n\n" % (sse_id, data)


def body(offset: int, content: str = "same", topic: str = "eqiad.x") -> bytes:
    meta = {"topic": topic, "partition": 0, "offset": offset}
    return orjson.dumps({"meta": meta, "content": content})


def batch(
    *frames: bytes,
    connection: int = 1,
    asked: dict[TopicPartition, int] | None = None,
    source: TopicPartition | None = None,
) -> Batch:
    sent = None if asked is None else compose_id(asked)
    received = Frames(0, connection, b"".join(frames), b"", START_MS, 0, source, asked=sent)
    return decode(received, keep_canaries=False).batch


def names(occurrences: Occurrences, received: Batch) -> list[str]:
    told = occurrences.distinguish(received)
    found = [event.identity for event in told.events]
    assert all(FULL.fullmatch(name) and len(name) <= 128 for name in found)
    return found


def test_equal_events_are_distinguish_by_their_order() -> None:
    """Two events with the same bytes became one file, and three dead letters one."""
    occurrences = Occurrences(NONCE)
    first, second = names(occurrences, batch(*[frame(b"{}", START_MS)] * 2))
    assert second == first + "-2"
    letters = names(occurrences, batch(*[frame(b"7", START_MS)] * 3))
    assert letters == [letters[0], letters[0] + "-2", letters[0] + "-3"]
    assert names(occurrences, batch(frame(b"{}", START_MS))) == [first + "-3"]


def test_after_a_failover_new_events_are_new_and_old_ones_old() -> None:
    """All forty events were lost: the other data centre's offsets are lower."""
    published = names(
        Occurrences(NONCE),
        batch(*(frame(body(1000 + n, f"{n // 2}"), START_MS + n // 4) for n in range(40))),
    )
    assert len(set(published)) == 40
    other = Occurrences(NONCE)
    asked = {EQIAD: START_MS}
    again = batch(
        *(frame(body(960 + n, f"{n // 2}"), START_MS + n // 4) for n in range(40)),
        connection=2,
        asked=asked,
    )
    assert names(other, again) == published
    new = batch(
        *(frame(body(1000 + n, f"{n // 2}"), START_MS + 100 + n // 4) for n in range(40)),
        connection=2,
        asked=asked,
    )
    assert not set(published) & set(names(other, new))


def test_what_is_dated_before_what_was_asked_for_is_never_taken_for_another() -> None:
    occurrences = Occurrences(NONCE)
    asked = {EQIAD: START_MS + 10}
    dated_back = [frame(b"{}", START_MS + 9)] * 2
    seen = names(occurrences, batch(*dated_back, asked=asked))
    seen += names(occurrences, batch(*dated_back, connection=2, asked=asked))
    assert len(set(seen)) == 4
    assert not any(map(is_recognisable, seen))
    (exact,) = names(occurrences, batch(frame(b"{}", START_MS + 10), connection=2, asked=asked))
    assert is_recognisable(exact)
    # The first connection requested all topics from the start on.
    (early,) = names(Occurrences(NONCE), batch(frame(b"{}", START_MS - 1)))
    assert not is_recognisable(early)


def test_what_was_not_asked_for_or_is_of_unknown_source_is_never_taken_for_another() -> None:
    occurrences = Occurrences(NONCE)
    other = frame(body(1, topic="codfw.x"), START_MS, "codfw.x")
    for received in (
        batch(other, asked={EQIAD: START_MS}),
        batch(b"data: {}\n\n", asked={EQIAD: START_MS}),
        # More topics than an id may name.
        batch(
            frame(b"{}", START_MS),
            connection=2,
            asked={(f"eqiad.{n}", 0): START_MS for n in range(300)} | {EQIAD: START_MS},
        ),
    ):
        (name,) = names(occurrences, received)
        assert not is_recognisable(name)


def test_no_two_generations_give_the_same_unique_name() -> None:
    seen = [names(Occurrences(nonce * 16), batch(b"data: {}\n\n")) for nonce in "ab"]
    assert seen[0] != seen[1]


def test_connections_that_are_open_at_once_are_counted_apart() -> None:
    occurrences = Occurrences(NONCE)
    lanes = {
        source: batch(
            frame(body(1, topic=source[0]), START_MS, source[0]),
            connection=number,
            asked={source: START_MS},
            source=source,
        )
        for number, source in enumerate((EQIAD, CODFW), 1)
    }
    (eqiad,), (codfw,) = (names(occurrences, lanes[source]) for source in (EQIAD, CODFW))
    assert eqiad != codfw
    assert names(occurrences, lanes[EQIAD]) == [eqiad + "-2"]
    assert names(occurrences, lanes[CODFW]) == [codfw + "-2"]
    again = lanes[EQIAD]._replace(connection=3)
    assert names(occurrences, again) == [eqiad]
    assert names(occurrences, again._replace(finished=True)) == [eqiad + "-2"]
    assert names(occurrences, again) == [eqiad], "a finished connection takes no memory"


def test_what_is_forgotten_costs_a_double_and_never_an_event() -> None:
    occurrences = Occurrences(NONCE, max_counted=3)
    seen = []
    # One is dated ahead: the smallest timestamps are forgotten first, so the others stay known.
    for at in (500, 1, 2, 3, 4, 5):
        seen += names(occurrences, batch(frame(b"{}", START_MS + at)))
    assert all(map(is_recognisable, seen))
    (old,) = names(occurrences, batch(frame(b"{}", START_MS + 2)))
    assert not is_recognisable(old)
    (kept,) = names(occurrences, batch(frame(b"{}", START_MS + 5)))
    assert kept == seen[-1] + "-2"


def test_events_with_an_identity_pass_as_they_are() -> None:
    data = b'{"meta":{"id":"a","topic":"eqiad.x","partition":0}}'
    received = batch(*[frame(data, START_MS)] * 2)
    assert received.fallbacks == 0
    assert Occurrences(NONCE).distinguish(received) is received
    mixed = batch(frame(data, START_MS), frame(b"{}", START_MS))
    told = Occurrences(NONCE).distinguish(mixed)
    assert told.events == mixed.events
    assert mixed.fallbacks == 1
