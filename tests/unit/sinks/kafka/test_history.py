"""What the last records of a topic say of the position."""

from __future__ import annotations

import logging

import pytest

from pleiades.core.position import Checkpoint
from pleiades.core.wire import Assignment
from pleiades.sinks.kafka.history import covers, found_in, own_of
from pleiades.sinks.kafka.records import NO_STREAM, Published

EQIAD = ("eqiad.mediawiki.recentchange", 0)
CODFW = ("codfw.mediawiki.recentchange", 0)
OVERLAP_MS = 60
NOW_MS = 1_000_000


def record(
    *reached: tuple[tuple[str, int], int | None], stream: str = "mediawiki.recentchange"
) -> Published:
    return Published("id", EQIAD, 1, tuple(Assignment(*each) for each in reached), stream)


def letter(*reached: tuple[tuple[str, int], int | None]) -> Published:
    return record(*reached, stream=NO_STREAM)


def test_the_position_is_the_join_of_the_ids() -> None:
    records = [
        record((EQIAD, NOW_MS + 5), (CODFW, None)),
        record((EQIAD, NOW_MS + 9), (CODFW, NOW_MS)),
        record((EQIAD, NOW_MS + 7), (CODFW, None)),
    ]
    found, reached = found_in(records, ("recentchange",), OVERLAP_MS)
    assert reached == {EQIAD: NOW_MS + 9, CODFW: NOW_MS}
    assert found == Checkpoint(reached, begin_ms := NOW_MS - OVERLAP_MS, begin_ms)
    assert found.started_ms < min(reached.values()), "else its topics would count as young"


def test_a_topic_that_delivered_nothing_stays_in_the_position() -> None:
    found, _ = found_in([record((EQIAD, NOW_MS), (CODFW, None))], ("recentchange",), 60)
    assert found is not None
    assert found.position == {EQIAD: NOW_MS, CODFW: 0}


def test_records_of_other_streams_do_not_count() -> None:
    other = record((("eqiad.mediawiki.page-create", 0), NOW_MS), stream="mediawiki.page-create")
    assert found_in([other], ("recentchange",), OVERLAP_MS).checkpoint is None
    _, reached = found_in([other, record((EQIAD, NOW_MS))], ("recentchange",), OVERLAP_MS)
    assert set(reached) == {EQIAD}


def test_dead_letters_say_of_no_stream_where_it_is() -> None:
    found = found_in([letter((EQIAD, NOW_MS), (CODFW, NOW_MS))], ("recentchange",), OVERLAP_MS)
    assert found == (None, {})


def test_where_ids_name_one_topic_only_all_topics_are_asked_from_a_time_on() -> None:
    """A position of them would leave out what else there may be, which upstream then never sends."""
    records = [record((EQIAD, NOW_MS)), record((EQIAD, NOW_MS + 7))]
    found, reached = found_in(records, ("recentchange",), OVERLAP_MS)
    assert found == Checkpoint({}, begin_ms := NOW_MS + 7 - OVERLAP_MS, begin_ms)
    assert reached == {EQIAD: NOW_MS + 7}


def test_what_a_replay_published_tells_nothing_of_an_ingest() -> None:
    live = record((EQIAD, NOW_MS), (CODFW, NOW_MS))
    ahead = record((EQIAD, NOW_MS + 9999))
    assert own_of([ahead, live, ahead]) == [live]
    assert own_of([ahead, record((CODFW, NOW_MS))]) == []
    # Perhaps the stream has no other topic: then these are an ingest's.
    assert own_of([ahead, ahead]) == [ahead, ahead]


def test_old_events_do_not_say_their_stream() -> None:
    assert found_in([record((EQIAD, NOW_MS), stream="")], ("recentchange",), OVERLAP_MS).checkpoint


def test_a_stream_that_is_missing_among_several_is_told(caplog: pytest.LogCaptureFixture) -> None:
    streams = ("recentchange", "page-create")
    with caplog.at_level(logging.WARNING):
        assert found_in([record((EQIAD, NOW_MS))], streams, OVERLAP_MS).checkpoint is None
    assert "none of page-create: it does not tell where to go on" in caplog.text
    assert f"--since={NOW_MS - OVERLAP_MS}" in caplog.text


def test_ids_without_any_timestamp_say_nothing() -> None:
    assert found_in([record((EQIAD, None))], ("recentchange",), OVERLAP_MS).checkpoint is None
    assert found_in([], ("recentchange",), OVERLAP_MS).checkpoint is None


@pytest.mark.parametrize(
    ("oldest_eqiad", "oldest_codfw", "enough"),
    [
        (NOW_MS - 601, NOW_MS - 601, True),
        (NOW_MS - 600, NOW_MS - 601, False),
        (NOW_MS - 601, NOW_MS - 600, False),
        (NOW_MS - 601, None, True),
    ],
)
def test_the_tail_must_reach_behind_what_can_be_repeated(
    oldest_eqiad: int, oldest_codfw: int | None, enough: bool
) -> None:
    records = [
        record((EQIAD, oldest_eqiad), (CODFW, oldest_codfw)),
        record((EQIAD, NOW_MS), (CODFW, NOW_MS)),
    ]
    reached = {EQIAD: NOW_MS, CODFW: NOW_MS}
    assert covers(records, reached, 600) is enough
    assert covers([letter(), *records], reached, 600) is enough, "a dead letter tells nothing"


def test_no_records_cover_nothing() -> None:
    assert not covers([], {EQIAD: NOW_MS}, 600)
