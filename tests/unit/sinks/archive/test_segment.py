"""The state of segments in a checkpoint."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.checkpoint import UnreadableCheckpoint
from pleiades.sinks.archive.codecs import CODECS
from pleiades.sinks.archive.manifest import Entry
from pleiades.sinks.archive.segment import Closing, Segment, Segments, read_segments

STREAMS = st.from_regex(r"[A-Za-z0-9._-]{1,30}", fullmatch=True)
COUNTS = st.integers(0, 2**53)
TIMES = st.integers(0, 4_000_000_000_000)
POSITIONS = st.dictionaries(st.tuples(STREAMS, st.integers(0, 99)), TIMES, max_size=3)
SEGMENTS = st.builds(
    Segment,
    *(COUNTS, st.sampled_from(CODECS), STREAMS),
    *(TIMES, TIMES, TIMES, TIMES, TIMES, POSITIONS, POSITIONS),
    *(COUNTS, COUNTS, COUNTS, COUNTS, st.booleans(), st.booleans()),
)


@st.composite
def closings(draw: st.DrawFn) -> Closing:
    stream = draw(STREAMS)
    name = f"stream={stream}/date=2026-01-31/hour=12/20260131T120000.000Z-00000001.ndjson.zst"
    counts = (draw(COUNTS), draw(COUNTS), draw(COUNTS))
    times = (draw(TIMES), draw(TIMES))
    positions = (draw(POSITIONS), draw(POSITIONS))
    entry = Entry(draw(COUNTS), name, stream, *counts, *times, *positions, "0" * 64, draw(COUNTS))
    return Closing(entry, draw(COUNTS), draw(st.booleans()))


ALL_SEGMENTS = st.builds(
    Segments,
    st.lists(SEGMENTS, max_size=3).map(tuple),
    st.lists(closings(), max_size=2).map(tuple),
    st.dictionaries(STREAMS, POSITIONS, max_size=2),
    COUNTS,
    COUNTS,
)
SEGMENT = Segment(7, "zst", "recentchange", 0, 1, 2, 2, 3, {}, {("a", 0): 4}, 5, 6, 7, 8)
ENTRY = Entry(
    sequence=1,
    name="stream=a/date=2026-01-31/hour=12/20260131T120000.000Z-00000001.ndjson.zst",
    stream="a",
    events=1,
    file_bytes=2,
    text_bytes=3,
    first_ms=4,
    last_ms=5,
    before={},
    after={("a", 0): 6},
    sha256="0" * 64,
)
STORED = Segments((SEGMENT,), (Closing(ENTRY, 6, finished=True),), {"a": {("a", 0): 6}}, 7, 1)


def through_json(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value))


@given(ALL_SEGMENTS)
def test_it_is_read_as_it_was_stored(segments: Segments) -> None:
    assert read_segments(through_json(segments.stored())) == segments


def test_a_checkpoint_of_a_destination_without_segments() -> None:
    assert read_segments(None) == Segments()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda parts: (
        st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all parts of a JSON value."""
    if not isinstance(value, dict | list):
        return [at]
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return [at, *(place for key, part in parts for place in places(part, (*at, key)))]


@given(st.data(), JSON)
def test_whatever_is_damaged_is_read_or_unreadable(data: st.DataObject, other: Any) -> None:
    stored = through_json({"all": STORED.stored()})
    *way, last = data.draw(st.sampled_from(places(stored["all"], ("all",))))
    within = stored
    for key in way:
        within = within[key]
    within[last] = other
    try:
        read = read_segments(stored["all"])
    except UnreadableCheckpoint:
        return
    # Whatever was read can be stored, and read again.
    assert read_segments(through_json(read.stored())) == read


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, -1),
        (1, "lz4"),
        (2, "../../etc"),
        (2, ""),
        (4, "yesterday"),
        (8, [["a", 0]]),
        (9, [["a/b", 0, 1]]),
        (12, True),
        (14, 1),
    ],
)
def test_values_that_describe_no_segment(at: int, value: Any) -> None:
    stored = deepcopy(through_json(STORED.stored()))
    stored["segments"][0][at] = value
    with pytest.raises(UnreadableCheckpoint):
        read_segments(stored)


@pytest.mark.parametrize(
    "closing", [[5, 1, True], ["{}", 1, True], [ENTRY.encoded().decode(), 1, "yes"]]
)
def test_values_that_describe_no_closing_segment(closing: list[Any]) -> None:
    stored = through_json(STORED.stored()) | {"closing": [closing]}
    with pytest.raises(UnreadableCheckpoint):
        read_segments(stored)
