"""Slices meet, a batch is cut without loss, and the end of a topic is detected exactly."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pleiades.core.columns import count_published
from pleiades.core.event import CANARY, OUTSIDE_RANGE, Batch, Event, unpublished
from pleiades.core.range import (
    PAST_EVENTS,
    Bound,
    EmptyRange,
    Ending,
    Range,
    Slice,
    bound_of,
    halves,
    within,
)
from pleiades.core.sse_id import Assignment, TopicPartition

A, B, C = ("eqiad.x", 0), ("codfw.x", 0), ("codfw.y", 3)
few_ms = st.integers(0, 60)


@st.composite
def bounds(draw: st.DrawFn, times: st.SearchStrategy[int]) -> Bound:
    return Bound(draw(times), draw(st.dictionaries(st.sampled_from([A, B]), times, max_size=2)))


@st.composite
def ranges(draw: st.DrawFn, times: st.SearchStrategy[int] = few_ms) -> Range:
    begin = draw(bounds(times))
    # After every begin, including the topics' own.
    latest = max(begin.default_ms, *begin.own_ms.values(), 0)
    later = st.integers(latest, latest + 50)
    end = draw(bounds(later))
    assume(end.default_ms > begin.default_ms)
    return Range(begin, end)


@given(ranges(), st.integers(1, 9), st.sampled_from([A, B, C]), st.integers(1, 200))
def test_each_event_of_a_range_is_in_exactly_one_slice(
    span: Range, parts: int, source: TopicPartition, timestamp_ms: int
) -> None:
    holding = 0
    for number in range(parts):
        try:
            holding += span.cut(Slice(number, parts)).holds(source, timestamp_ms)
        except EmptyRange:
            continue
    assert holding == span.holds(source, timestamp_ms)


@given(ranges(st.integers(0, 2**42)), st.integers(1, 40))
def test_slices_begin_where_the_one_before_ends(span: Range, parts: int) -> None:
    assume(span.end.default_ms - span.begin.default_ms >= parts)
    cut = [span.cut(Slice(number, parts)) for number in range(parts)]
    for source in (A, B, C):
        edges = [(piece.begin.of(source), piece.end.of(source)) for piece in cut]
        assert all(end == begin for (_, end), (begin, _) in pairwise(edges))
        assert (edges[0][0], edges[-1][1]) == (span.begin.of(source), span.end.of(source))


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (Bound(5), Bound(5)),
        (Bound(6), Bound(5)),
        (Bound(1, {A: 9}), Bound(5)),
        (Bound(1), Bound(5, {A: 0})),
    ],
)
def test_a_range_that_ends_before_it_begins_is_none(begin: Bound, end: Bound) -> None:
    with pytest.raises(EmptyRange):
        Range(begin, end)


def test_an_id_says_after_it_and_up_to_and_including_it() -> None:
    # The event of this id is dated 100: an id's timestamp is that + 1.
    position = (Assignment(A, 101), Assignment(B, 900))
    after = Range(bound_of(position, first=True), Bound(1000))
    assert not after.holds(A, 101)
    assert after.holds(A, 102)
    up_to = Range(Bound(0), bound_of(position, first=False))
    assert up_to.holds(A, 101)
    assert not up_to.holds(A, 102)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("time", [None, 0])
def test_an_id_that_says_nothing_of_a_topic_is_no_bound(time: int | None, first: bool) -> None:
    """Inventing a time for it would silently leave out events."""
    with pytest.raises(ValueError, match=r"how far codfw.x/0 had got.*Give a time"):
        bound_of((Assignment(A, 50), Assignment(B, time), Assignment(C, 90)), first)
    with pytest.raises(ValueError, match="names no topic"):
        bound_of((), first)


@given(ranges(), st.sampled_from([A, B, C]), st.integers(1, 200))
def test_by_the_events_own_time_the_begin_is_in_and_the_end_is_not(
    span: Range, source: TopicPartition, time_ms: int
) -> None:
    inside = span.begin.of(source) <= time_ms < span.end.of(source)
    assert span.holds(source, time_ms + 1) == inside
    assert not (span.is_empty(source) and inside)


# ---- batches ----


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    events: list[Event] = []
    greatest = 0
    for number in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(["", "", "not_json", CANARY]))
        time = draw(st.integers(1, 100))
        greatest = max(greatest, time)
        name = f"e{number}"
        if kind == CANARY:
            events.append(unpublished(A, time, CANARY))
        else:
            events.append(Event(name, A, time, "", b"", name.encode(), kind))
    return Batch(0, 1, events, {A: greatest}, 0, 0, A, finished=True)


@given(batches(), st.integers(0, 80), st.integers(1, 60))
def test_within_keeps_what_is_inside_in_its_order(batch: Batch, begin: int, length: int) -> None:
    span = Range(Bound(begin), Bound(begin + length))
    kept, outside = within(batch, span, A)
    assert [event for event in kept.events if event.reason != OUTSIDE_RANGE] == [
        event for event in batch.events if span.holds(A, event.timestamp_ms)
    ]
    assert outside == sum(
        event.reason != CANARY and not span.holds(A, event.timestamp_ms) for event in batch.events
    )
    assert kept[3:] == batch[3:], "an event outside the range moves the position too"


@given(batches(), st.integers(0, 80), st.integers(1, 60), st.data())
def test_a_cut_within_a_range_advances_by_all_that_came_before_it(
    batch: Batch, begin: int, length: int, data: st.DataObject
) -> None:
    """Events outside the range count too: otherwise their repetition looks like a gap."""
    kept, _ = within(batch, Range(Bound(begin), Bound(begin + length)), A)
    count = count_published(kept.events)
    assume(count)
    first, rest = halves(kept, data.draw(st.integers(1, count)))
    last = first.events[-1]
    assert not last.reason
    came = batch.events[: batch.events.index(last) + 1]
    at_least = max((received.timestamp_ms for received in came), default=0)
    reached = first.timestamps_ms.get(A, 0)
    assert at_least <= reached
    assert [*first.events, *rest.events] == kept.events
    assert rest.timestamps_ms == batch.timestamps_ms


def test_what_an_upstream_was_not_asked_for_is_neither_published_nor_moves_the_position() -> None:
    own, other = Event("a", A, 55, "", b"", b"{}"), Event("b", B, 55, "", b"", b"{}")
    batch = Batch(0, 1, [own, other], {A: 55, B: 99}, 0, 0, A)
    kept, outside = within(batch, Range(Bound(50), Bound(60)), A)
    assert (kept.events, kept.timestamps_ms, outside) == ([own], {A: 55}, 1)


def test_what_has_no_time_at_all_is_kept() -> None:
    event = Event("e", ("", -1), 0, "", b"no id", b"{}")
    batch = Batch(0, 1, [event], {}, 0, 0, A)
    assert within(batch, Range(Bound(5), Bound(6)), A) == (batch, 0)


@given(batches(), st.data())
def test_halves_are_the_whole_and_the_first_goes_no_further_than_what_is_in_it(
    batch: Batch, data: st.DataObject
) -> None:
    count = count_published(batch.events)
    assume(count)
    published = data.draw(st.integers(1, count))
    first, rest = halves(batch, published)
    assert count_published(first.events) == published
    assert [*first.events, *rest.events] == batch.events
    assert first.timestamps_ms.get(A, 0) == max(
        (event.timestamp_ms for event in first.events), default=0
    )
    assert not first.finished
    assert rest[3:] == batch[3:]


# ---- the end ----

SETTLE = 20


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[int], int]:
    """Timestamps in the order of the offsets, and the end of a range.

    Each is late by at most `SETTLE`. A few are dated ahead by any amount: too few to be believed.
    """
    steps = draw(st.lists(st.integers(0, 4), min_size=1, max_size=120))
    late = draw(st.lists(st.integers(0, SETTLE), min_size=len(steps), max_size=len(steps)))
    true = [1000 + sum(steps[: place + 1]) for place in range(len(steps))]
    dated = [time - back for time, back in zip(true, late, strict=True)]
    ahead = draw(st.lists(st.integers(0, len(steps) - 1), max_size=PAST_EVENTS - 1, unique=True))
    for place in ahead:
        dated[place] = true[place] + draw(st.integers(SETTLE, 10_000))
    return dated, draw(st.integers(1000, 1000 + sum(steps) + 1))


@given(logs())
def test_nothing_of_the_range_comes_after_its_end(log: tuple[list[int], int]) -> None:
    dated, end_ms = log
    ending = Ending(end_ms, SETTLE)
    over = [ending.observe(time + 1) for time in dated]
    if any(over):
        after = dated[over.index(True) + 1 :]
        assert all(time >= end_ms for time in after), (dated, end_ms)


@given(st.integers(0, 5000), st.integers(0, 30), st.integers(0, 40))
def test_it_ends_soon_where_events_go_on(end_ms: int, before: int, disorder: int) -> None:
    ending = Ending(end_ms, SETTLE)
    for place in range(before):
        assert not ending.observe(max(end_ms - place, 0)), "before the end"
    for place in range(disorder):
        assert not ending.observe(end_ms + 1 + place % SETTLE), "not far enough past it"
    answers = [ending.observe(end_ms + SETTLE + 1) for _ in range(PAST_EVENTS)]
    assert answers == [False] * (PAST_EVENTS - 1) + [True]


def test_an_event_of_the_range_among_those_past_it_begins_the_count_anew() -> None:
    ending = Ending(100, SETTLE)
    for _ in range(PAST_EVENTS - 1):
        assert not ending.observe(200)
    assert not ending.observe(100)
    answers = [ending.observe(200) for _ in range(PAST_EVENTS)]
    assert answers == [False] * (PAST_EVENTS - 1) + [True]
