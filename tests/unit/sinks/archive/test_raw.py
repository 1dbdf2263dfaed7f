"""Which segment takes an event, and when one is sealed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pleiades.core.sse_id import UNKNOWN_SOURCE
from pleiades.sinks.archive import raw
from pleiades.sinks.archive.layout import DEAD_LETTERS, OTHER, segment_name, stream_of
from pleiades.sinks.archive.raw import RawSegments
from pleiades.sinks.archive.segment import Segment

HOUR_MS = 3_600_000
NOON_MS = 1_769_860_800_000
SOURCE = ("eqiad.s", 0)


class World:
    """Raw segments with a clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock_ms = NOON_MS + HOUR_MS * 1000
        self.raw = self.begin()

    def begin(self, codec: str = "") -> RawSegments:
        return RawSegments(self.folder, "recentchange", codec, HOUR_MS, 1000, lambda: self.clock_ms)

    def take(self, *times_ms: int, stream: str = "s", text: bytes = b"{}") -> None:
        sources = [SOURCE] * len(times_ms)
        self.raw.take(stream, [text] * len(times_ms), times_ms, sources)

    def commit(self) -> None:
        self.raw.append()
        self.raw.keep()
        self.raw.covered()

    def open(self) -> list[Segment]:
        return [each.segment for each in self.raw if not each.segment.sealed]

    def sealed(self) -> list[Segment]:
        return [each.segment for each in self.raw.sealed]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.raw.close()


def events(segments: Sequence[Segment]) -> list[int]:
    return [segment.events for segment in segments]


def test_an_event_of_a_later_slot_begins_a_segment(world: World) -> None:
    last_ms = NOON_MS + HOUR_MS - 1
    world.take(NOON_MS + 5, last_ms, NOON_MS + HOUR_MS, NOON_MS + HOUR_MS + 1)
    world.take(NOON_MS + HOUR_MS + 2)
    (before,), (after,) = world.sealed(), world.open()
    assert (before.events, before.first_ms, before.last_ms) == (2, NOON_MS + 5, last_ms)
    assert (before.before, before.after) == ({}, {SOURCE: last_ms + 1})
    assert (after.events, after.started_ms) == (3, NOON_MS + HOUR_MS)
    assert (after.before, after.after) == ({SOURCE: last_ms + 1}, {SOURCE: NOON_MS + HOUR_MS + 3})
    assert after.number > before.number


def test_a_late_event_stays_in_the_open_segment(world: World) -> None:
    """Two topics that are read side by side do not close a segment with each event."""
    for number in range(20):
        world.take(NOON_MS + HOUR_MS + number)
        world.take(NOON_MS - number, NOON_MS + HOUR_MS)
    assert world.sealed() == []
    (segment,) = world.open()
    assert (segment.events, segment.started_ms) == (60, NOON_MS + HOUR_MS)
    assert (segment.first_ms, segment.last_ms) == (NOON_MS - 19, NOON_MS + HOUR_MS + 19)
    assert segment.after == {SOURCE: NOON_MS + HOUR_MS + 20}


def test_so_much_text_is_enough(world: World) -> None:
    world.take(NOON_MS, text=b"x" * 998)
    world.take(NOON_MS + 1)
    world.take(NOON_MS + 2, text=b"x" * 3000)
    world.take(NOON_MS + 3)
    # 999 bytes are fewer than 1,000: the second event still belongs to the first segment.
    assert [segment.text_bytes for segment in world.sealed()] == [1002, 3001]
    assert events(world.open()) == [1]


def test_a_quiet_stream_is_sealed_by_the_clock(world: World) -> None:
    world.take(NOON_MS)
    world.clock_ms += HOUR_MS - 1
    world.take(NOON_MS, stream="busy")
    world.raw.seal_due()
    assert world.sealed() == []
    world.clock_ms += 1
    world.raw.seal_due()
    assert [segment.stream for segment in world.sealed()] == ["s"]
    assert [segment.stream for segment in world.open()] == ["busy"]


def test_a_clock_that_was_set_back_seals_as_well(world: World) -> None:
    world.take(NOON_MS)
    world.clock_ms -= HOUR_MS
    world.raw.seal_due()
    assert events(world.sealed()) == [1]


def test_an_event_dated_ahead_does_not_keep_a_segment_open(world: World) -> None:
    now_ms = world.clock_ms = NOON_MS + 10
    world.take(NOON_MS + 24 * HOUR_MS, now_ms)
    (segment,) = world.open()
    assert (segment.events, segment.slot_ms) == (2, NOON_MS)
    world.clock_ms += HOUR_MS
    world.take(now_ms + HOUR_MS)
    assert events(world.sealed()) == [2]
    assert events(world.open()) == [1]


def test_streams_are_apart_and_dead_letters_have_no_position(world: World) -> None:
    world.take(NOON_MS, stream="s")
    world.take(NOON_MS + 1, stream="t")
    world.take(NOON_MS + 2, stream=DEAD_LETTERS)
    found = {segment.stream: segment.after for segment in world.open()}
    assert found == {"s": {SOURCE: NOON_MS + 1}, "t": {SOURCE: NOON_MS + 2}, DEAD_LETTERS: {}}


def test_an_unknown_source_has_no_position(world: World) -> None:
    world.raw.take("s", [b"{}"], [NOON_MS], [UNKNOWN_SOURCE])
    assert world.open()[0].after == {}


def test_streams_beyond_the_limit_share_a_segment(world: World) -> None:
    for number in range(raw.MAX_STREAMS + 10):
        world.take(NOON_MS + number, stream=f"s{number}")
    found = {segment.stream: segment for segment in world.open()}
    # The shared one is the only one above the limit.
    assert len(found) == raw.MAX_STREAMS + 1
    assert (found[OTHER].events, found[OTHER].after) == (10, {})
    # Streams that have their segment keep it.
    world.take(NOON_MS + 100, stream="s0")
    assert events(world.open())[0] == 2


def test_too_many_that_wait_to_be_closed_let_open_ones_grow(world: World) -> None:
    for slot in range(raw.MAX_SEALED + 5):
        world.take(NOON_MS + slot * HOUR_MS, NOON_MS + slot * HOUR_MS + 1)
    assert len(world.sealed()) == raw.MAX_SEALED
    assert events(world.open()) == [10]
    world.clock_ms += 100 * HOUR_MS
    world.raw.seal_due()
    assert len(world.sealed()) == raw.MAX_SEALED
    world.raw.sealed.pop()
    world.take(NOON_MS + 200 * HOUR_MS)
    assert events(world.open()) == [1]


def test_a_new_start_has_no_position_before(world: World) -> None:
    world.take(NOON_MS)
    world.raw.begin_anew()
    world.take(NOON_MS + 1)
    assert events(world.sealed()) == [1]
    assert world.open()[0].before == {}


def test_a_start_goes_on_with_open_segments(world: World) -> None:
    world.take(NOON_MS, text=b"one")
    world.commit()
    stored = world.raw.state()
    world.take(NOON_MS + 1, text=b"not covered")
    world.raw.append()
    world.raw.close()
    world.raw = world.begin()
    world.raw.recover(stored)
    world.take(NOON_MS + 2, text=b"two")
    world.commit()
    (segment,) = world.open()
    assert world.raw.path_of(segment.number).read_bytes() == b"one\ntwo\n"
    assert (segment.events, segment.commits) == (2, 2)


def test_another_format_begins_a_segment(world: World) -> None:
    world.take(NOON_MS)
    world.commit()
    stored = world.raw.state()
    world.raw.close()
    world.raw = world.begin("gz")
    world.raw.recover(stored)
    world.take(NOON_MS + 1)
    assert [segment.codec for segment in world.sealed()] == [""]
    assert [segment.codec for segment in world.open()] == ["gz"]


def test_a_start_removes_only_its_own_files(world: World, tmp_path: Path) -> None:
    world.take(NOON_MS)
    world.commit()
    stored = world.raw.state()
    left = ["recentchange.7", "recentchange.8.finished"]
    kept = [
        "recentchange.9",
        "recentchange.9.finished",
        "recentchange",
        "recentchange.x",
        "other.3",
    ]
    for name in left + kept:
        (tmp_path / name).touch()
    world.raw.close()
    world.raw = world.begin()
    world.raw.recover(stored)
    world.raw.remove_others({9})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "recentchange.1"])
    # The number of a file that was there is not used again.
    world.raw.begin_anew()
    world.take(NOON_MS)
    assert world.open()[0].number == 10


def test_a_removed_file_costs_only_what_was_committed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.take(NOON_MS, NOON_MS + 1)
    world.commit()
    world.raw.path_of(1).unlink()
    world.take(NOON_MS + 2, text=b"kept")
    world.commit()
    assert "was removed: 2 events of s" in caplog.text
    (segment,) = world.open()
    assert (segment.number, segment.events, segment.before) == (2, 1, {SOURCE: NOON_MS + 2})
    assert world.raw.path_of(2).read_bytes() == b"kept\n"


@pytest.mark.parametrize(
    ("topic", "stream"),
    [
        ("eqiad.mediawiki.recentchange", "mediawiki.recentchange"),
        ("codfw.mediawiki.recentchange", "mediawiki.recentchange"),
        ("eqiad.codfw.x", "x"),
        ("mine", "mine"),
        ("eqiad.", OTHER),
        ("", OTHER),
    ],
)
def test_the_stream_of_a_topic(topic: str, stream: str) -> None:
    assert stream_of((topic, 0)) == stream


@pytest.mark.parametrize(
    ("stream", "first_ms", "name"),
    [
        ("s", NOON_MS + 5, "stream=s/date=2026-01-31/hour=12/20260131T120000.005Z-1.ndjson"),
        ("..", 0, "stream=../date=1970-01-01/hour=00/19700101T000000.000Z-1.ndjson"),
        (DEAD_LETTERS, 0, "dead-letters/date=1970-01-01/hour=00/19700101T000000.000Z-1.ndjson"),
    ],
)
def test_the_name_of_a_segment(stream: str, first_ms: int, name: str) -> None:
    assert segment_name(stream, first_ms, "1", "ndjson") == name
