"""Ids read by their differences say what they say when each is read by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.ids import Entry, Ids
from pleiades.core.position import Position, join
from pleiades.core.wire import MalformedId, parse_id

TOPICS = ("eqiad.x", "codfw.x", "timestamp")
numbers = st.integers(10**12, 10**12 + 3) | st.integers(0, 10**15)
# What is nearly as usual: nested, said twice, spelt otherwise.
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
    """Ids of which each is made from the one before by changing a few bytes of it, or is another."""
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


@given(sequences())
def test_what_is_new_and_what_is_current(sent: list[bytes]) -> None:
    ids = Ids()
    reached: Position = {}
    expected: Position = {}
    for sse_id in sent:
        try:
            assignments = parse_id(sse_id)
        except MalformedId:
            with pytest.raises(MalformedId):
                ids.read(sse_id)
            continue
        news = ids.read(sse_id)
        assert set(news) <= set(assignments)
        assert ids.current == {entry.source: entry for entry in assignments}
        reached = join(reached, _times(news))
        expected = join(expected, _times(assignments))
        assert reached == expected


def _times(entries_: Iterable[Entry]) -> Position:
    times: Position = {}
    for source, timestamp_ms in entries_:
        times = join(times, {source: timestamp_ms or 0})
    return times


def test_only_what_changed_is_read() -> None:
    def sse_id(*times: int) -> bytes:
        named: list[dict[str, Any]] = [
            {"topic": topic, "partition": 0, "timestamp": time}
            for topic, time in zip(TOPICS, times, strict=False)
        ]
        return orjson.dumps(named)

    first, second = ("eqiad.x", 0), ("codfw.x", 0)
    ids = Ids()
    assert len(ids.read(sse_id(10**12, 10**12))) == 2
    assert ids.read(sse_id(10**12 + 1, 10**12)) == ((first, 10**12 + 1),)
    assert ids.read(sse_id(10**12 + 1, 10**12 + 7)) == ((second, 10**12 + 7),)
    assert ids.read(sse_id(10**12 + 1, 10**12 + 9)) == ((second, 10**12 + 9),)
    assert ids.read(sse_id(10**12 + 5, 10**12 + 9)) == ((first, 10**12 + 5),)
    assert len(ids.read(sse_id(10**12 + 6, 10**12 + 8))) == 2
    assert not ids.ambiguous
