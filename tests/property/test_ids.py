"""Ids that are read together have the content that each has by itself."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pleiades.core import usual
from pleiades.core.ids import read_ids
from pleiades.core.position import MAX_SOURCES, Position, join
from pleiades.core.sse_id import MAX_SSE_ID_BYTES, Assignment, MalformedId, TopicPartition, parse_id
from pleiades.core.usual import MAX_PATTERN_BYTES, usual_frames

USUAL = b'[{"topic":"a","partition":0,"timestamp":1000000000000}]'
TOPICS = ("eqiad.x", "codfw.x", "timestamp")
numbers = st.integers(10**12, 10**12 + 3) | st.integers(0, 10**15)
# Nearly usual entries: nested, duplicated, spelt differently.
entries = st.one_of(
    st.builds(
        lambda topic, number: b'{"topic":"%b","partition":0,"timestamp":%d}' % (topic, number),
        st.sampled_from([topic.encode() for topic in TOPICS]),
        numbers,
    ),
    st.sampled_from(
        [
            b'{"topic":"a","partition":0,"offset":-1}',
            b'{"topic":"a","partition":0,"x":{"timestamp":1000000000000},"timestamp": 1000000000000}',
            b'{"topic":"a","partition":0,"timestamp":1000000000000,"timestamp":1000000000001}',
            b'{"topic":"a","partition":0,"timestamp":1000000000000,"timestamp": 1000000000001}',
            b'{"topic":"a","partition":0,"timestamp":1000000000000,"timest\\u0061mp":1000000000002}',
            b'{"topic":"a","partition":0,"timestamp":1000000000000.0}',
            b'{"topic":"a","partition":0,"timestamp":0100000000000}',
            b"{}",
        ]
    ),
)
changes: st.SearchStrategy[int] = st.sampled_from(list(b"0123456789" * 3 + b'",}. -\\a'))
whole_ids = st.lists(entries, max_size=3).map(lambda found: b"[" + b",".join(found) + b"]")


@st.composite
def sequences(draw: st.DrawFn) -> list[bytes]:
    """A sequence of ids, each a copy of the previous one with a few changed bytes, or a new id."""
    sent = [draw(whole_ids)]
    for _ in range(draw(st.integers(0, 12))):
        last = bytearray(sent[-1])
        places = [place for place, byte in enumerate(last) if chr(byte).isdigit()]
        if places and draw(st.integers(0, 4)) > 0:
            for _ in range(draw(st.integers(1, 3))):
                place: int = draw(st.sampled_from(places))
                last[place] = draw(changes)
            sent.append(bytes(last))
        else:
            sent.append(draw(whole_ids))
    return sent


@st.composite
def alike(draw: st.DrawFn) -> list[bytes]:
    """Ids of one form, as upstream sends them, with a damaged one now and then."""
    usual = st.sampled_from(
        [
            b'{"topic":"eqiad.x","partition":0,"timestamp":%d}',
            b'{"timestamp":%d,"topic":"codfw.x","partition":0}',
            b'{"topic":"eqiad.x","partition":1,"timestamp":%d}',
        ]
    )
    named = draw(
        st.lists(usual, min_size=1, max_size=3, unique=True)
        | st.lists(
            usual
            | st.sampled_from(
                [
                    b'{"topic":"codfw.y","partition":0,"offset":-%d}',
                    b'{"topic":"e","partition":0,"timestamp":%d,"timest\\u0061mp":1000000000000}',
                    b'{"topic":"a","partition":0,"x":{"timestamp":%d}}',
                    b'{"topic":"b","partition":0,"x":{},"timestamp":%d}',
                    b'{"topic":"c","partition":0,"\\u0078":1,"timestamp":%d}',
                    b'{"topic":"timestamp","partition":0,"timestamp":%d}',
                    b'{"topic":"d","partition":0,"timestamp":%d.0}',
                ]
            ),
            min_size=1,
            max_size=3,
        )
    )
    form = b"[" + b",".join(named) + b"]"
    times = st.integers(10**12, 10**12 + 3)
    sent = [
        form % tuple(draw(st.lists(times, min_size=len(named), max_size=len(named))))
        for _ in range(draw(st.integers(1, 6)))
    ]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        number = draw(st.integers(0, len(sent) - 1))
        place = draw(st.integers(0, len(sent[number])))
        length = draw(st.integers(0, 1))
        other = draw(st.sampled_from([b"", b"0", b"9", b"x", b'"', b"{", b" ", b"\\", sent[0]]))
        sent[number] = sent[number][:place] + other + sent[number][place + length :]
    return sent


@given(sequences() | alike(), st.integers(1, 13))
@example([b"x" + USUAL, USUAL], 2)
@example([USUAL.replace(b"a", b"b"), USUAL], 2)
@example([USUAL + b"x", USUAL], 2)
@settings(max_examples=300)
def test_together_they_say_what_each_says(sent: list[bytes], at_once: int) -> None:
    for start in range(0, len(sent), at_once):
        some = sent[start : start + at_once]
        told = read_ids(some)
        said = [_said(one) for one in some]
        sources = dict.fromkeys(source for entries_ in said for source, _ in entries_ or ())
        assert list(told.timestamps_ms) == list(sources)
        assert told.timestamps_ms == {
            source: [_greatest(source, entries_) for entries_ in said] for source in sources
        }
        position: Position = {}
        for entries_ in said:
            for source, timestamp_ms in entries_ or ():
                position = join(position, {source: timestamp_ms or 0})
        assert told.greatest() == position


def framed(sent: list[bytes], data: bytes = b"{}") -> bytes:
    return b"".join(b"event: message\nid: %b\ndata: %b\n\n" % (one, data) for one in sent)


@given(alike() | sequences())
@example([b"x" + USUAL, USUAL])
@example([USUAL.replace(b"a", b"b"), USUAL])
@example([USUAL + b"x", USUAL])
@settings(max_examples=300)
def test_the_ids_of_usual_frames_say_what_each_says(sent: list[bytes]) -> None:
    found = usual_frames(framed(sent))
    if found is not None:
        assert found.ids == read_ids(sent)
        assert {len(one) for one in sent} == {found.id_bytes}
        assert list(found.data) == [b"{}"] * len(sent)


def _said(sse_id: bytes) -> tuple[Assignment, ...] | None:
    try:
        return parse_id(sse_id)
    except MalformedId:
        return None


def _greatest(source: TopicPartition, said: tuple[Assignment, ...] | None) -> int | None:
    times = [time for named, time in said or () if named == source and time is not None]
    return max(times, default=None)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The ids that were parsed, each by itself."""
    usual._pattern_for.cache_clear()
    seen: list[bytes] = []

    def noted(sse_id: bytes) -> tuple[Assignment, ...]:
        seen.append(sse_id)
        return parse_id(sse_id)

    monkeypatch.setattr(usual, "parse_id", noted)
    return seen


def sse_id(*times: int | None) -> bytes:
    named: list[dict[str, Any]] = [
        {
            "topic": topic,
            "partition": 0,
            **({"offset": -1} if time is None else {"timestamp": time}),
        }
        for topic, time in zip(TOPICS, times, strict=False)
    ]
    return orjson.dumps(named)


@pytest.mark.parametrize("second", [None, 10**12])
def test_only_a_form_is_parsed(parsed: list[bytes], second: int | None) -> None:
    sent = [sse_id(10**12 + number * 7, second) for number in range(100)]
    first, other = ("eqiad.x", 0), ("codfw.x", 0)
    for _ in range(3):
        found = usual_frames(framed(sent))
        assert found is not None
        told = found.ids.timestamps_ms
        assert told[first] == [10**12 + number * 7 for number in range(100)]
        assert told[other] == [second] * 100
    assert parsed == [sse_id(10**12, second)]


def test_frames_of_several_forms_are_not_usual() -> None:
    sent = [sse_id(10**12 + 5, None), sse_id(10**12 + 5, 10**12 + 8)]
    assert usual_frames(framed(sent)) is None
    assert read_ids(sent).timestamps_ms == {
        ("eqiad.x", 0): [10**12 + 5] * 2,
        ("codfw.x", 0): [None, 10**12 + 8],
    }


def peak_of(call: Callable[[], object]) -> int:
    """The peak memory of a call, in bytes."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def named(number: int, timestamp_ms: int) -> bytes:
    return b'[{"topic":"hostile-%d","partition":0,"timestamp":%d}]' % (number, timestamp_ms)


def test_ids_that_name_another_topic_each_take_room_for_what_they_say() -> None:
    sent = [named(number, 10**12 + number) for number in range(4_000)]
    assert peak_of(lambda: read_ids(sent)) < 8 << 20
    told = read_ids(sent)
    assert not told.aligned
    # As many topics as a position can hold, each with its own timestamp.
    assert told.greatest() == {
        (f"hostile-{number}", 0): 10**12 + number for number in range(MAX_SOURCES)
    }
    later = read_ids([*sent, named(0, 10**12 + 7)])
    assert later.timestamps_ms["hostile-0", 0] == [10**12, 10**12 + 7]


@pytest.mark.parametrize("length", [MAX_PATTERN_BYTES + 1, MAX_SSE_ID_BYTES, 8 << 20])
def test_a_long_id_becomes_no_pattern(length: int) -> None:
    long = USUAL[:-1] + b" " * (length - len(USUAL)) + b"]"
    usual._pattern_for.cache_clear()
    blob = framed([long])
    assert peak_of(lambda: usual_frames(blob)) < 2 * length + (2 << 20)
    assert usual_frames(blob) is None
    assert usual._pattern_for.cache_info().currsize == 0
    assert read_ids([long]).greatest() == ({} if length > MAX_SSE_ID_BYTES else {("a", 0): 10**12})
