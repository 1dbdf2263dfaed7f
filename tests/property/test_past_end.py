"""Connections of a service that is deaf at first to topics requested from past their end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pleiades.core.ids import ParsedIds, read_ids
from pleiades.core.past_end import PastEnd
from pleiades.core.resume_cursor import ResumeCursor
from pleiades.core.sse_id import TopicPartition

A, B = ("a", 0), ("b", 0)
SAME = -1
LAGS = st.sampled_from([0, 40, 200])
STARTED_MS = 1_700_000_000_000


class Written(NamedTuple):
    """An event in the log."""

    number: int
    at_ms: int
    """When it was written."""
    dated_ms: int


class Sent(NamedTuple):
    """An event on its way to the client."""

    source: TopicPartition
    event: Written
    id: bytes


@dataclass
class Service:
    """Two topics in two clusters. One of them lags, and a deaf connection misses some events.

    Modelled after the observed service, not after the tested code.
    """

    lag_ms: int
    deaf: int
    """The number of missed events of a topic that was past its end."""
    now_ms: int = STARTED_MS
    log: dict[TopicPartition, list[Written]] = field(default_factory=lambda: {A: [], B: []})

    def write(self, source: TopicPartition, back_ms: int = 0) -> None:
        """Write an event that may be dated back, or like the one before it."""
        if back_ms == SAME:
            back_ms = 0
        else:
            self.now_ms += 20
        number = len(self.log[source])
        self.log[source].append(Written(number, self.now_ms, self.now_ms - back_ms))

    def end(self, source: TopicPartition, lags: bool) -> int:
        """The number of events that a cluster shows now."""
        until_ms = self.now_ms - (self.lag_ms if lags else 0)
        return sum(event.at_ms <= until_ms for event in self.log[source])

    def connect(self, asked: dict[TopicPartition, int], lags: bool) -> Iterator[Sent | None]:
        """The delivered events, forever; None where it waits for new ones.

        Args:
            asked: a timestamp for each topic.
            lags: the cluster that answers lags.
        """
        places, entries, missing = {}, {}, {}
        for source, time in asked.items():
            end = self.end(source, lags)
            shown = self.log[source][:end]
            found = next((event.number for event in shown if event.dated_ms >= time), None)
            places[source] = end if found is None else found
            missing[source] = self.deaf if found is None else 0
            entries[source] = {"offset": -1 if found is None else found}
        while True:
            ready = [source for source in places if places[source] < self.end(source, lags)]
            if not ready:
                yield None
                continue
            source = ready[0]
            event = self.log[source][places[source]]
            places[source] += 1
            if missing[source]:
                missing[source] -= 1
                continue
            entries[source] = {"timestamp": event.dated_ms + 1}
            named = [{"topic": topic, "partition": 0, **entries[topic, 0]} for topic, _ in entries]
            yield Sent(source, event, orjson.dumps(named))


@dataclass
class Client:
    """A reader that leaves what `PastEnd` says, and remembers which events it took."""

    service: Service
    cursor: ResumeCursor
    at_once: int
    """The number of events in one read."""
    lags: bool = False
    taken: dict[TopicPartition, dict[int, Written]] = field(default_factory=lambda: {A: {}, B: {}})
    """By number, in the order of their first delivery."""
    left: int = 0
    left_of: set[TopicPartition] = field(default_factory=set)
    past_end: PastEnd = field(default_factory=PastEnd)

    def connect(self) -> None:
        """Open a new connection."""
        cursor = self.cursor
        asked = {
            source: cursor.asked_from(source, self.service.now_ms) for source in cursor.position
        }
        self.past_end.connected(asked, cursor.position, STARTED_MS)
        self._sent = self.service.connect(asked, self.lags)

    def read(self, most: int = sys.maxsize) -> None:
        """Take so many events, or all that there are for now."""
        while most > 0 and (sent := list(islice(self._waiting(), min(most, self.at_once)))):
            most -= len(sent)
            ids = [each.id for each in sent]
            place = self.past_end.first_left(read_ids(ids))
            for each in sent[:place]:
                self.taken[each.source].setdefault(each.event.number, each.event)
            self.cursor.observe(read_ids(ids[:place]).greatest())
            if place is not None:
                self.left += 1
                self.left_of.add(sent[place].source)
                self.connect()

    @property
    def is_known(self) -> bool:
        """False if a mirror that lags more might be deaf exactly up to the event that was left."""
        return all(self.taken[source] for source in self.left_of)

    def _waiting(self) -> Iterator[Sent]:
        while sent := next(self._sent):
            yield sent


SOURCES = st.sampled_from([A, B])
RUNS = st.lists(st.sampled_from([0, 0, 0, SAME, 30, 500]), min_size=1, max_size=5)
"""The age in ms of each of some consecutive events of one topic."""


@settings(max_examples=500)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(SOURCES, RUNS),
            st.sampled_from(["cut", "read", "switch"]),
            st.integers(1, 4),
            LAGS,
        ),
        min_size=1,
        max_size=40,
    ),
    deaf=st.sampled_from([0, 1, 5]),
    overlap_ms=st.sampled_from([1, 50]),
    lag_ms=LAGS,
    at_once=st.sampled_from([1, 2, 7]),
)
# A mirror reaches the known event while the connection is deaf, and an old date comes first.
@example(
    steps=[(A, [0, 0, 0, 0, 500]), "switch", "read"], deaf=5, overlap_ms=1, lag_ms=200, at_once=1
)
# The same, where an event was left before.
@example(
    steps=[1, 200, (A, [0, 0, 0, 0, 500]), "cut", "read"], deaf=5, overlap_ms=1, lag_ms=0, at_once=1
)
def test_nothing_is_lost_and_a_connection_costs_at_most_two_more_for_a_topic(
    steps: list[tuple[TopicPartition, list[int]] | str | int],
    deaf: int,
    overlap_ms: int,
    lag_ms: int,
    at_once: int,
) -> None:
    service = Service(lag_ms, deaf)
    client = Client(service, ResumeCursor(STARTED_MS, overlap_ms), at_once)
    client.cursor.observe({A: 0, B: 0})
    # Each topic begins with an event that is not dated back: the start is known by it.
    for source in (A, B):
        service.write(source)
    client.connect()
    opened = 1
    for step in steps:
        if isinstance(step, tuple):
            for back_ms in step[1]:
                service.write(step[0], back_ms)
        elif step == "read":
            client.read()
        elif isinstance(step, int):
            # A time that is no number of events is the mirror's new lag.
            if step not in (0, 40, 200):
                client.read(step)
            elif client.is_known or step < service.lag_ms:
                service.lag_ms = step
        else:
            client.lags ^= step == "switch" and (client.is_known or client.lags)
            client.connect()
            opened += 1
    # After enough later events of each topic, none before them can be missing.
    for _ in range(deaf + 1 + service.lag_ms // 20):
        service.write(A)
        service.write(B)
    client.read()
    assert client.left <= 2 * len(client.taken) * opened, "never a loop"
    for source, taken in client.taken.items():
        written = service.log[source][: max(taken, default=-1) + 1]
        assert sorted(taken) == [event.number for event in written]
        dated_now = [number for number, event in taken.items() if event.dated_ms == event.at_ms]
        assert dated_now == sorted(dated_now)


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


def test_an_event_dated_back_proves_nothing() -> None:
    """A mirror reaches the known event while the connection is deaf, and an old date comes first."""
    past_end = PastEnd()
    known = {A: STARTED_MS + 100}
    past_end.connected({A: STARTED_MS + 90}, known, STARTED_MS)
    assert past_end.first_left(said(STARTED_MS - 5000)) is None
    assert past_end.first_left(said(STARTED_MS + 200)) == 0
    past_end.connected({A: STARTED_MS + 90}, known, STARTED_MS)
    assert past_end.first_left(said(STARTED_MS + 100)) is None
    assert past_end.first_left(said(STARTED_MS + 150)) is None


def test_an_offset_in_the_history_is_proof() -> None:
    past_end = PastEnd()
    past_end.connected({A: STARTED_MS}, {}, STARTED_MS)
    assert past_end.first_left(said(None, 7)) is None
    assert past_end.first_left(said(STARTED_MS + 10)) is None
