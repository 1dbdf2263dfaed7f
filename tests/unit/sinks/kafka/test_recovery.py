"""The position recovered from a topic's last records."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from pleiades.core.checkpoint import Checkpoint
from pleiades.core.readback import Offsets
from pleiades.sinks.kafka import recovery
from pleiades.sinks.kafka.records import NO_STREAM, Published
from pleiades.sinks.kafka.recovery import Evidence, recover
from tests.unit.sinks.kafka.ids import sse_id

EQIAD = ("eqiad.mediawiki.recentchange", 0)
CODFW = ("codfw.mediawiki.recentchange", 0)
OVERLAP_MS = 60
WINDOW_MS = 600
NOW_MS = 1_000_000


def record(
    *reached: tuple[tuple[str, int], int | None],
    stream: str = "mediawiki.recentchange",
    replay: bytes = b"",
    source: tuple[str, int] = EQIAD,
    at: tuple[str, int] = ("events", 0),
) -> Published:
    return Published("id", source, stream, sse_id(*reached), replay, at)


def letter(*reached: tuple[tuple[str, int], int | None]) -> Published:
    return record(*reached, stream=NO_STREAM)


def looked(
    *records: Published,
    streams: tuple[str, ...] = ("recentchange",),
    earlier: list[Published] | None = None,
) -> Evidence:
    look = Evidence(streams, OVERLAP_MS, WINDOW_MS)
    for stretch in (records, earlier or ()):
        if stretch:
            look.read(stretch)
    return look


def test_the_position_is_the_join_of_the_ids() -> None:
    look = looked(
        record((EQIAD, NOW_MS + 5), (CODFW, None)),
        record((EQIAD, NOW_MS + 9), (CODFW, NOW_MS)),
        record((EQIAD, NOW_MS + 7), (CODFW, None)),
    )
    assert look.complete
    found = look.checkpoint()
    assert found is not None
    reached = {EQIAD: NOW_MS + 9, CODFW: NOW_MS}
    begin_ms = NOW_MS - OVERLAP_MS
    assert found == Checkpoint(reached, begin_ms, begin_ms)
    assert found.started_ms < min(reached.values()), "otherwise its topics would count as young"


def test_one_that_shows_no_timestamp_is_looked_for_further_back() -> None:
    look = looked(record((EQIAD, NOW_MS), (CODFW, None)))
    assert not look.complete
    look = looked(record((EQIAD, NOW_MS), (CODFW, None)), earlier=[record((EQIAD, 9), (CODFW, 7))])
    assert look.complete
    assert look.reached == {EQIAD: NOW_MS, CODFW: 7}


def test_one_that_never_delivered_is_asked_for_from_the_oldest_event_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    records = [record((EQIAD, ms), (CODFW, None)) for ms in range(NOW_MS - 90_000, NOW_MS, 10)]
    found = looked(*records).checkpoint()
    assert found is not None
    assert found.position == {EQIAD: NOW_MS - 10, CODFW: 0}
    assert found.started_ms == NOW_MS - 90_000 - WINDOW_MS
    assert "no event of the topic tells how far codfw.mediawiki.recentchange was" in caplog.text


def test_records_of_other_streams_do_not_count() -> None:
    other = record((("eqiad.mediawiki.page-create", 0), NOW_MS), stream="mediawiki.page-create")
    assert looked(other).checkpoint() is None
    assert set(looked(other, record((EQIAD, NOW_MS))).reached) == {EQIAD}


def test_dead_letters_say_of_no_stream_where_it_is() -> None:
    assert looked(letter((EQIAD, NOW_MS), (CODFW, NOW_MS))).checkpoint() is None


def test_where_ids_name_one_topic_only_all_topics_are_asked_from_a_time_on() -> None:
    """A position with these topics only would exclude others, which upstream then never sends."""
    found = looked(record((EQIAD, NOW_MS)), record((EQIAD, NOW_MS + 7))).checkpoint()
    assert found == Checkpoint({}, begin_ms := NOW_MS + 7 - OVERLAP_MS, begin_ms)


def test_what_a_replay_published_tells_nothing_of_an_ingest() -> None:
    live = record((EQIAD, NOW_MS), (CODFW, NOW_MS))
    assert looked(record((EQIAD, NOW_MS + 9999), replay=b"r"), live).reached == {
        EQIAD: NOW_MS,
        CODFW: NOW_MS,
    }
    ahead = record((EQIAD, NOW_MS + 9999), (CODFW, NOW_MS + 9999), replay=b"r")
    assert looked(ahead, live).reached == {EQIAD: NOW_MS, CODFW: NOW_MS}
    only_replays = looked(ahead)
    assert (only_replays.records, only_replays.events) == (1, 0)


def test_old_events_do_not_say_their_stream() -> None:
    assert looked(record((EQIAD, NOW_MS), stream="")).checkpoint()


def test_a_stream_that_is_missing_among_several_is_told(caplog: pytest.LogCaptureFixture) -> None:
    look = looked(record((EQIAD, NOW_MS)), streams=("recentchange", "page-create"))
    assert not look.complete, "it may be further back"
    with caplog.at_level(logging.WARNING):
        assert look.checkpoint() is None
    assert "none of page-create: it does not tell where to go on" in caplog.text
    assert f"--since={NOW_MS - OVERLAP_MS}" in caplog.text


def test_ids_without_any_timestamp_say_nothing() -> None:
    assert looked(record((EQIAD, None))).checkpoint() is None
    assert looked().checkpoint() is None


@pytest.mark.parametrize(
    ("oldest_eqiad", "oldest_codfw", "enough"),
    [
        (NOW_MS - 601, NOW_MS - 601, True),
        (NOW_MS - 600, NOW_MS - 601, False),
        (NOW_MS - 601, NOW_MS - 600, False),
        (NOW_MS - 601, None, False),
    ],
)
def test_what_is_read_must_reach_behind_what_can_be_repeated(
    oldest_eqiad: int, oldest_codfw: int | None, enough: bool
) -> None:
    look = looked(record((EQIAD, NOW_MS), (CODFW, NOW_MS)))
    dated_back = record((EQIAD, 5), (CODFW, 5))
    oldest = record((EQIAD, oldest_eqiad), (CODFW, oldest_codfw))
    stretch = [letter(), dated_back, oldest] if oldest_codfw else [oldest]
    look.read(stretch)
    assert look.covers_window is enough


def test_no_records_cover_nothing() -> None:
    assert not looked().covers_window


# ---- the window ----


def repeatable(look: Evidence, *records: Published) -> list[bool]:
    return [look.can_be_repeated(record) for record in records]


def test_events_within_the_window_can_be_repeated() -> None:
    records = [record((EQIAD, NOW_MS - back_ms)) for back_ms in (601, 600, 0)]
    assert repeatable(looked(*records), *records) == [False, True, True]


def test_an_event_that_is_dated_back_can_be_repeated_like_the_one_before_it() -> None:
    records = [record((EQIAD, NOW_MS - 600)), record((EQIAD, 5)), record((EQIAD, NOW_MS))]
    assert repeatable(looked(*records), *records) == [True, True, True]


def test_an_event_of_a_replay_cannot_be_repeated_and_moves_nothing() -> None:
    old, now = record((EQIAD, NOW_MS - 601)), record((EQIAD, NOW_MS))
    of_replay = record((EQIAD, NOW_MS), replay=b"r")
    assert repeatable(looked(now), of_replay, old, now) == [False, False, True]


def test_each_output_partition_has_its_own_order() -> None:
    now, old = record((EQIAD, NOW_MS)), record((EQIAD, NOW_MS - 601), at=("events", 1))
    assert repeatable(looked(now), now, old) == [True, False]


@pytest.mark.parametrize(
    ("source", "reached"),
    [(EQIAD, (CODFW, NOW_MS)), (EQIAD, (EQIAD, None)), (("other", 0), (("other", 0), 7))],
)
def test_an_event_whose_id_does_not_tell_when_it_came_is_remembered(
    source: tuple[str, int], reached: tuple[tuple[str, int], int | None]
) -> None:
    """The records before it are old, but it may be new."""
    old, now = record((EQIAD, 9)), record((EQIAD, NOW_MS), (CODFW, NOW_MS))
    assert repeatable(looked(now), old, record(reached, source=source)) == [False, True]


def test_a_position_that_is_dated_ahead_is_repeated_from_the_clock_back() -> None:
    """The upstream is asked relative to the clock, from before the event that is dated ahead."""
    hour_ms = 3_600_000
    older, before, ahead = (record((EQIAD, NOW_MS + ms)) for ms in (-601, -600, hour_ms))
    look = Evidence(("recentchange",), OVERLAP_MS, WINDOW_MS, clock_ms=NOW_MS)
    look.read([ahead])
    assert repeatable(look, older, before, ahead) == [False, True, True]
    look.read([before])
    assert not look.covers_window
    look.read([older])
    assert look.covers_window


class Topic:
    """The reader of a topic with one output partition."""

    def __init__(self, records: list[Published]) -> None:
        self._records = records
        self.reads: list[tuple[int, int]] = []

    def read(self, begins: Offsets, ends: Offsets) -> Iterator[Published]:
        """See `TopicReader`."""
        ((at, begin),) = begins.items()
        self.reads.append((begin, ends[at]))
        return iter(self._records[begin : ends[at]])


def test_each_further_stretch_ends_where_the_one_before_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No record is read twice, and the first ones of the last stretch tell how far back it reaches."""
    monkeypatch.setattr(recovery, "FIRST_RECORDS", 10)
    records = [record((EQIAD, NOW_MS + 15 * number)) for number in range(300)]
    at = ("events", 0)
    topic: Any = Topic(records)
    found = looked()
    readback = recover(topic, {at: 0}, {at: 300}, found)
    assert topic.reads == [(290, 300), (260, 290), (140, 260)]
    assert found.records == 300 - readback.begin[at] == 160
