"""The position as an offset's metadata."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.position import Checkpoint, Done, UnreadableCheckpoint
from pleiades.core.span import Mark, Span
from pleiades.runtime.errors import Fatal
from pleiades.sinks.kafka.stored import MAX_METADATA_BYTES, Stored, read_metadata

NOW_MS = 1_790_000_000_000

times = st.integers(0, NOW_MS * 2)
sources = st.tuples(st.from_regex(r"[a-zA-Z0-9._-]{1,40}", fullmatch=True), st.integers(0, 99))
positions = st.dictionaries(sources, times, max_size=8)


@st.composite
def all_stored(draw: st.DrawFn) -> Stored:
    position = draw(positions)
    mark = None
    if draw(st.booleans()):
        named = sources if not position else sources | st.sampled_from(sorted(position))
        mark = Mark(draw(times), draw(st.dictionaries(named, times, max_size=8)))
    counts = st.fixed_dictionaries({source: st.integers(0, 2**40) for source in position})
    finished = (
        st.frozensets(st.sampled_from(sorted(position))) if position else st.just(frozenset())
    )
    done = draw(st.none() | st.builds(Done, counts, finished, st.booleans()))
    return Stored(
        Checkpoint(position, draw(times), draw(times), done),
        Span(draw(times), mark),
        draw(st.from_regex(r"[0-9a-f]{1,32}", fullmatch=True)),
    )


@given(all_stored())
def test_what_is_stored_is_read(stored: Stored) -> None:
    metadata = stored.metadata()
    assert len(metadata.encode()) <= MAX_METADATA_BYTES
    assert read_metadata(metadata) == stored


@given(st.text() | st.binary().map(lambda raw: "zlib:" + raw.decode("latin-1")))
def test_anything_is_a_position_or_unreadable(metadata: str) -> None:
    with pytest.raises(UnreadableCheckpoint):
        read_metadata(metadata)


@given(all_stored(), st.data())
def test_one_that_is_cut_short_is_unreadable(stored: Stored, data: st.DataObject) -> None:
    metadata = stored.metadata()
    with pytest.raises(UnreadableCheckpoint):
        read_metadata(metadata[: data.draw(st.integers(0, len(metadata) - 1))])


def many(streams: int) -> Stored:
    position = {
        (f"{centre}.mediawiki.stream-{number}", 0): NOW_MS + number * 7919
        for number in range(streams)
        for centre in ("eqiad", "codfw")
    }
    before = {source: reached - 599_000 for source, reached in position.items()}
    return Stored(Checkpoint(position, NOW_MS, NOW_MS), Span(NOW_MS, Mark(NOW_MS, before)), "ab")


def test_many_streams_are_packed() -> None:
    assert many(2).metadata().startswith("{"), "the usual one is to be read by people too"
    metadata = many(64).metadata()
    assert len(metadata) <= MAX_METADATA_BYTES
    assert not metadata.startswith("{")
    assert read_metadata(metadata) == many(64)


def test_more_than_fits_is_refused_with_what_to_do() -> None:
    with pytest.raises(Fatal, match="Give fewer streams"):
        many(500).metadata()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 2}, "format version is 2"),
        ({"version": True}, "format version is True"),
        ({"position": [["../x", 0, 1]]}, "no position"),
        ({"position": [["a", 0, -1]]}, "no position"),
        ({"position": [["a", 0, 1], ["a", 0, 2]]}, "no position"),
        ({"started_ms": "1"}, "no position"),
        ({"mark": [1, [1, 2, 3], []]}, "can't be read"),
        ({"mark": [-1, [None], []]}, "no position"),
        ({"mark": [1, [None], [["/", 0, 1]]]}, "no position"),
        ({"writer": "\x1b[31m"}, "who wrote it"),
        ({"done": 5}, "can't be read"),
        ({"done": [False, []]}, "can't be read"),
        ({"done": [False, [[1]]]}, "can't be read"),
        ({"done": [0, [[1, False]]]}, "no progress of a replay"),
        ({"done": [False, [[-1, False]]]}, "no progress of a replay"),
        ({"done": [False, [[True, False]]]}, "no progress of a replay"),
        ({"done": [False, [[1, 1]]]}, "no progress of a replay"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, object], why: str) -> None:
    plain = Stored(Checkpoint({("a", 0): 5}, 0, 0), Span(0), "ab").metadata()
    with pytest.raises(UnreadableCheckpoint, match=why):
        read_metadata(orjson.dumps(orjson.loads(plain) | change).decode())


def test_what_unpacks_without_end_is_unreadable() -> None:
    import base64
    import zlib

    bomb = base64.b85encode(zlib.compress(b" " * 50_000_000, 9)).decode()
    with pytest.raises(UnreadableCheckpoint, match="too large"):
        read_metadata("zlib:" + bomb)
