"""Connections of a service that is deaf at first to topics requested from past their end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import orjson
from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.ids import ParsedIds, read_ids
from pleiades.core.past_end import PastEnd
from pleiades.core.resume_cursor import ResumeCursor
from pleiades.core.sse_id import TopicPartition

A, B = ("a", 0), ("b", 0)
STARTED_MS = 1_700_000_000_000


@dataclass
class Service:
    """Two topics; a step writes an event, and a deaf connection misses some.

    Modelled after the observed service, not after the tested code.
    """

    log: dict[TopicPartition, list[int]] = field(default_factory=lambda: {A: [], B: []})

    def connect(self, asked: dict[TopicPartition, int], deaf: int) -> Iterator[bytes]:
        """The ids of the delivered events; `None` first, when it waits for new events.

        Args:
            asked: a timestamp for each topic.
            deaf: the number of missed events of a topic that was past its end.
        """
        places, entries, missing = {}, {}, {}
        for source, time in asked.items():
            found = next((n for n, at in enumerate(self.log[source]) if at >= time), None)
            places[source] = len(self.log[source]) if found is None else found
            missing[source] = deaf if found is None else 0
            entries[source] = {"offset": -1 if found is None else found}
        while True:
            delivered = False
            for source, place in places.items():
                if place == len(self.log[source]):
                    continue
                places[source] += 1
                if missing[source]:
                    missing[source] -= 1
                    continue
                entries[source] = {"timestamp": self.log[source][place] + 1}
                delivered = True
                yield orjson.dumps(
                    [{"topic": topic, "partition": 0, **entries[topic, 0]} for topic, _ in entries]
                )
                break
            if not delivered and all(place == len(self.log[at]) for at, place in places.items()):
                yield b""


@given(
    steps=st.lists(
        st.one_of(st.sampled_from([A, B]), st.just("cut"), st.just("read")), min_size=1, max_size=60
    ),
    deaf=st.integers(0, 5),
    overlap_ms=st.integers(1, 50),
)
def test_nothing_is_lost_and_no_topic_costs_more_than_one_connection(
    steps: list[TopicPartition | str], deaf: int, overlap_ms: int
) -> None:
    service, past_end, course = Service(), PastEnd(), ResumeCursor(STARTED_MS, overlap_ms)
    course.observe({A: 0, B: 0})
    taken: dict[TopicPartition, set[int]] = {A: set(), B: set()}
    reconnects = 0
    now_ms = STARTED_MS

    def connected() -> Iterator[bytes]:
        asked = {source: course.asked_from(source, now_ms) for source in course.position}
        past_end.connected(asked, course.position, STARTED_MS)
        return service.connect(asked, deaf)

    def read(ids: Iterator[bytes]) -> Iterator[bytes]:
        nonlocal reconnects
        while sse_id := next(ids):
            told = read_ids([sse_id])
            if past_end.first_left(told) is not None:
                reconnects += 1
                assert reconnects <= 2, "one reconnect per topic, never a loop"
                ids = connected()
                continue
            before = dict(course.position)
            course.observe(told.greatest())
            for source, (time,) in told.timestamps_ms.items():
                # An id that does not move the position is a repeat, or another topic's entry.
                if time and time > before[source]:
                    taken[source].add(time - 1)
        return ids

    ids = connected()
    for step in [*steps, "read"]:
        if isinstance(step, tuple):
            now_ms += 20
            service.log[step].append(now_ms)
        elif step == "cut":
            ids = connected()
        else:
            ids = read(ids)
    # After one more event of each topic, none before it can be missing.
    for source in (A, B):
        for _ in range(deaf + 1):
            now_ms += 20
            service.log[source].append(now_ms)
    ids = read(ids)
    for source in (A, B):
        last = max(taken[source], default=0)
        assert taken[source] == {time for time in service.log[source] if time <= last}


def said(timestamp_ms: int | None, offset: int = -1) -> ParsedIds:
    entry: dict[str, object] = {"topic": A[0], "partition": A[1]}
    shown = {"offset": offset} if timestamp_ms is None else {"timestamp": timestamp_ms}
    return read_ids([orjson.dumps([entry | shown])])


def test_a_mirror_that_lags_is_not_taken_for_the_history() -> None:
    """The skipped event is not mirrored yet, and falls into the deaf time with the one before it."""
    past_end = PastEnd()
    for last_ms in (10, 20, 30):
        past_end.connected({A: STARTED_MS}, {}, STARTED_MS)
        assert past_end.first_left(said(STARTED_MS + last_ms)) == 0
    past_end.connected({A: STARTED_MS}, {}, STARTED_MS)
    assert past_end.first_left(said(STARTED_MS + 40)) is None, "never a loop"


def test_the_event_that_was_left_is_taken_when_it_comes_again() -> None:
    past_end = PastEnd()
    past_end.connected({A: STARTED_MS}, {}, STARTED_MS)
    assert past_end.first_left(said(STARTED_MS + 10)) == 0
    past_end.connected({A: STARTED_MS}, {}, STARTED_MS)
    assert past_end.first_left(said(STARTED_MS + 10)) is None
    assert past_end.first_left(said(STARTED_MS + 99)) is None


def test_what_asking_again_would_not_find_is_taken() -> None:
    """An imported edit of years ago; unless it shows that the start time was ignored."""
    past_end = PastEnd()
    past_end.connected({A: STARTED_MS}, {}, STARTED_MS)
    assert past_end.first_left(said(STARTED_MS - 10**11)) is None
    both = {"topic": A[0], "partition": A[1], "timestamp": STARTED_MS - 10**11}
    for offset, left in ((-1, None), (0, 0)):
        past_end.connected(None, {}, STARTED_MS)
        other = {"topic": B[0], "partition": B[1], "offset": offset}
        assert past_end.first_left(read_ids([orjson.dumps([both, other])])) == left


def test_an_offset_in_the_history_is_proof() -> None:
    past_end = PastEnd()
    past_end.connected({A: STARTED_MS}, {}, STARTED_MS)
    assert past_end.first_left(said(None, 7)) is None
    assert past_end.first_left(said(STARTED_MS + 10)) is None
