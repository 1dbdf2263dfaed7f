"""The position as an offset's metadata."""

from __future__ import annotations

import random
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.checkpoint import Checkpoint, ReplayProgress, UnreadableCheckpoint
from pleiades.core.coverage import Interval
from pleiades.core.readback import (
    MAX_SEGMENTS,
    UNKNOWN_LETTERS,
    OutputPartition,
    Readback,
    Segment,
)
from pleiades.core.sse_id import UNKNOWN_SOURCE
from pleiades.runtime.errors import Fatal
from pleiades.sinks.kafka.offset_metadata import (
    MAX_METADATA_BYTES,
    Stored,
    encode,
    read_stored,
)

NOW_MS = 1_790_000_000_000

AT = ("out", 0)
OTHERS = [("out", 1), ("out-dead-letters", 0)]

times = st.integers(0, NOW_MS * 2)
offsets = st.fixed_dictionaries(
    {AT: st.integers(0, 2**40)}, optional=dict.fromkeys(OTHERS, st.integers(0, 2**63 - 1))
)
sources = st.tuples(st.from_regex(r"[a-zA-Z0-9._-]{1,40}", fullmatch=True), st.integers(0, 99))
positions = st.dictionaries(sources, times, max_size=6)


@st.composite
def all_stored(draw: st.DrawFn) -> Stored:
    position = draw(positions)
    named = sources | st.sampled_from([UNKNOWN_SOURCE, UNKNOWN_LETTERS, *sorted(position)])
    reached = st.dictionaries(named, times, min_size=1, max_size=4)
    closed = []
    for _ in range(draw(st.integers(0, 3))):
        begin = draw(offsets)
        end = {at: offset + draw(st.integers(0, 2**20)) for at, offset in begin.items()}
        end = {at: min(offset, 2**63 - 1) for at, offset in end.items()}
        closed.append(Segment(begin, end, draw(reached), draw(times)))
    first = draw(reached | st.just({}))
    last = {source: draw(times) for source in first}
    begins = {at: draw(st.integers(0, 2**40)) for at in (AT, *OTHERS)}
    counts = st.fixed_dictionaries({source: st.integers(0, 2**40) for source in position})
    finished = (
        st.frozensets(st.sampled_from(sorted(position))) if position else st.just(frozenset())
    )
    done = draw(st.none() | st.builds(ReplayProgress, counts, finished, st.booleans()))
    interval = st.builds(Interval, times, times)
    checkpoint = Checkpoint(
        position,
        draw(times),
        draw(times),
        done,
        draw(st.dictionaries(named.filter(lambda source: source != UNKNOWN_LETTERS), times)),
        draw(
            st.dictionaries(
                sources, st.lists(interval, min_size=1, max_size=2).map(tuple), max_size=2
            )
        ),
    )
    if draw(st.booleans()):
        checkpoint = replace(checkpoint, known_from={}).remembering(600_000)
    return Stored(
        checkpoint,
        Readback(begins, draw(times), first, last, tuple(closed)),
        draw(st.from_regex(r"[0-9a-f]{1,32}", fullmatch=True)),
    )


def read_metadata(metadata: str) -> Stored:
    """Read metadata that holds only a position."""
    return read_stored({AT: metadata}, AT)


def texts_of(stored: Stored) -> dict[OutputPartition, str]:
    return encode(stored.checkpoint, stored.readback, stored.writer, AT)


def encoded(stored: Stored) -> str:
    return texts_of(stored)[AT]


@given(all_stored())
def test_what_is_stored_is_read(stored: Stored) -> None:
    texts = texts_of(stored)
    assert all(len(text.encode()) <= MAX_METADATA_BYTES for text in texts.values())
    read = read_stored(texts, AT)
    assert read.checkpoint == stored.checkpoint
    assert read.writer == stored.writer
    if '"unit_ms":1,' in texts[AT]:
        assert read.readback == stored.readback


@given(st.text() | st.binary().map(lambda raw: "zlib:" + raw.decode("latin-1")))
def test_anything_is_a_position_or_unreadable(metadata: str) -> None:
    with pytest.raises(UnreadableCheckpoint):
        read_metadata(metadata)


@given(all_stored(), st.data())
def test_one_that_is_cut_short_is_unreadable(stored: Stored, data: st.DataObject) -> None:
    metadata = encoded(stored)
    with pytest.raises(UnreadableCheckpoint):
        read_metadata(metadata[: data.draw(st.integers(0, len(metadata) - 1))])


def many(streams: int, segments: int = MAX_SEGMENTS) -> Stored:
    """All topics are active, so that each segment contains records of each topic."""
    rng = random.Random(streams)
    position = {
        (f"{centre}.mediawiki.stream-{number}", 0): NOW_MS - rng.randrange(3_600_000)
        for number in range(streams)
        for centre in ("eqiad", "codfw")
    }

    def ago(ms: int) -> dict[tuple[str, int], int]:
        return {source: reached - rng.randrange(ms) for source, reached in position.items()}

    closed = [
        Segment({AT: number}, {AT: number + 1}, ago(4_000_000), NOW_MS)
        for number in range(segments)
    ]
    checkpoint = Checkpoint(position, NOW_MS, NOW_MS).remembering(600_000)
    return Stored(checkpoint, Readback({AT: 99}, NOW_MS, ago(1), ago(1), tuple(closed)), "ab")


def test_the_usual_one_is_to_be_read_by_people_too() -> None:
    assert encoded(many(1)).startswith("{")


@pytest.mark.parametrize("streams", [20, 64, 120])
def test_many_streams_are_packed_and_what_is_read_back_only_grows(streams: int) -> None:
    stored = many(streams)
    metadata = encoded(stored)
    assert len(metadata) <= MAX_METADATA_BYTES
    assert not metadata.startswith("{")
    read = read_stored(texts_of(stored), AT)
    assert read.checkpoint == stored.checkpoint
    ends = {AT: 100}
    parts = list(read.readback.parts(ends))
    for before in stored.readback.parts(ends):
        holding = [
            part
            for part in parts
            if part.begin[AT] <= before.begin[AT] and part.end[AT] >= before.end[AT]
        ]
        (part,) = holding
        assert all(part.reached[source] >= ms for source, ms in before.reached.items())


def test_more_than_fits_is_refused_with_what_to_do() -> None:
    with pytest.raises(Fatal, match="Give fewer streams"):
        encoded(many(500))


def test_any_number_of_output_partitions_fits() -> None:
    stored = many(1)
    begins = {("out", number): 10**12 + number for number in range(5_000)}
    texts = texts_of(stored._replace(readback=replace(stored.readback, begin=begins)))
    assert max(map(len, texts.values())) < 1_500
    read = read_stored(texts, AT)
    assert read.readback.begin == begins


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 2}, "format version is 2"),
        ({"version": True}, "format version is True"),
        ({"position": [["../x", 0, 1]]}, "no position"),
        ({"position": [["a", 0, -1]]}, "no position"),
        ({"position": [["a", 0, 1], ["a", 0, 2]]}, "no position"),
        ({"started_ms": "1"}, "no position"),
        ({"writer": "\x1b[31m"}, "who wrote it"),
        ({"done": 5}, "can't be read"),
        ({"done": [False, []]}, "can't be read"),
        ({"done": [False, [[1]]]}, "can't be read"),
        ({"done": [0, [[1, False]]]}, "no progress of a replay"),
        ({"done": [False, [[-1, False]]]}, "no progress of a replay"),
        ({"done": [False, [[True, False]]]}, "no progress of a replay"),
        ({"done": [False, [[1, 1]]]}, "no progress of a replay"),
        ({"known_from": 1}, "can't be read"),
        ({"known_from": ["x", []]}, "can't be read"),
        ({"known_from": [[99], []]}, "no position"),
        ({"known_from": [[1, 2], []]}, "can't be read"),
        ({"segments": [[1]]}, "where to read"),
        ({"offsets": [-1]}, "where to read"),
        ({"offsets": ["1"]}, "where to read"),
        ({"open": [0, [1, 1, 1], []]}, "what to read"),
        ({"open": [0, [0], []]}, "what to read"),
        ({"open": ["0", [], []]}, "what to read"),
        ({"open": [0, [1.5], [1]]}, "what to read"),
        ({"others": [["/", 1]]}, "what to read"),
        ({"unit_ms": None}, "what to read"),
        ({"coverage": [["a", 0, [[1]]]]}, "can't be read"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, object], why: str) -> None:
    plain = encoded(Stored(Checkpoint({("a", 0): 5}, 0, 0), Readback({AT: 1}, 0), "ab"))
    with pytest.raises(UnreadableCheckpoint, match=why):
        read_metadata(orjson.dumps(orjson.loads(plain) | change).decode())


def test_what_unpacks_without_end_is_unreadable() -> None:
    import base64
    import zlib

    bomb = base64.b85encode(zlib.compress(b" " * 50_000_000, 9)).decode()
    with pytest.raises(UnreadableCheckpoint, match="too large"):
        read_metadata("zlib:" + bomb)
