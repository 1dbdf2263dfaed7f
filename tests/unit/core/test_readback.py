"""The parts of a topic that a restart reads back, step by step."""

from __future__ import annotations

from pleiades.core.checkpoint import Checkpoint
from pleiades.core.readback import UNKNOWN_LETTERS, Readback, Segment, runs
from pleiades.core.sse_id import UNKNOWN_SOURCE, TopicPartition

EQIAD = ("eqiad.x", 0)
CODFW = ("codfw.x", 0)
OUT = ("out", 0)
DEAD = ("dead", 0)
WINDOW_MS = 100


def checkpoint(eqiad_ms: int, codfw_ms: int = 0, clock_ms: int = 10**6) -> Checkpoint:
    return Checkpoint({EQIAD: eqiad_ms, CODFW: codfw_ms}, 0, clock_ms).remembering(WINDOW_MS)


def published(
    readback: Readback, at: Checkpoint, *events: TopicPartition, letters: bool = False
) -> Readback:
    return readback.committed(at, events, (UNKNOWN_SOURCE,) * letters, "dead")


def test_a_mark_is_due_when_a_part_of_the_window_is_published() -> None:
    readback = published(Readback({OUT: 5}, 0), checkpoint(1_000), EQIAD)
    assert not readback.is_mark_due(checkpoint(1_025))
    assert readback.is_mark_due(checkpoint(1_026))
    assert not readback.is_mark_due(checkpoint(1_026, clock_ms=1_020)), "the clock limits"


def test_nothing_published_needs_no_mark() -> None:
    readback = Readback({OUT: 5}, 0)
    assert not readback.is_mark_due(checkpoint(10_000))
    assert list(readback.parts({OUT: 9})) == []


def test_a_segment_goes_when_its_last_event_cannot_be_repeated() -> None:
    readback = published(Readback({OUT: 0}, 0), checkpoint(1_000), EQIAD).marked({OUT: 7}, 1)
    assert list(readback.parts({OUT: 9})) == [Segment({OUT: 0}, {OUT: 7}, {EQIAD: 1_000}, 0)]
    assert published(readback, checkpoint(1_100)).closed
    assert not published(readback, checkpoint(1_101)).closed


def test_what_stands_still_keeps_its_own_only() -> None:
    both = published(Readback({OUT: 0}, 0), checkpoint(1_000, 1_000), EQIAD, CODFW)
    later = both.marked({OUT: 7}, 1)
    for eqiad_ms in range(1_000, 9_000, 50):
        later = published(later, checkpoint(eqiad_ms, 1_000), EQIAD)
        if later.is_mark_due(checkpoint(eqiad_ms, 1_000)):
            later = later.marked({OUT: eqiad_ms}, 1)
    first, *others = later.parts({OUT: 9_000})
    assert first == Segment({OUT: 0}, {OUT: 7}, {CODFW: 1_000}, 0)
    assert len(others) <= 4
    assert min(part.begin[OUT] for part in others) >= 8_950 - WINDOW_MS - 100


def test_a_new_start_keeps_what_the_earlier_one_published() -> None:
    readback = published(Readback({OUT: 0}, 0), checkpoint(1_000), EQIAD)
    restarted = checkpoint(1_000).restarted(100)
    readback = published(readback, restarted)
    assert readback.is_mark_due(restarted)
    readback = readback.marked({OUT: 7}, 1)
    readback = published(readback, checkpoint(200), EQIAD)
    assert [part.reached for part in readback.parts({OUT: 9})] == [{EQIAD: 1_000}, {EQIAD: 200}]


def test_dead_letters_of_unknown_source_keep_no_events() -> None:
    """They may belong to the idle topic."""
    idle = checkpoint(1_000, 500)
    readback = published(Readback({OUT: 0, DEAD: 0}, 0), idle, EQIAD, letters=True)
    readback = readback.marked({OUT: 7, DEAD: 1}, 1)
    readback = published(readback, checkpoint(9_000, 500))
    (part,) = readback.parts({OUT: 9, DEAD: 1})
    assert part == Segment({DEAD: 0}, {DEAD: 1}, {UNKNOWN_LETTERS: 1_000}, 0)


def test_the_nearest_are_merged_and_what_lies_between_is_read() -> None:
    closed = tuple(
        Segment({OUT: begin}, {OUT: begin + 10}, {EQIAD: begin}, begin)
        for begin in (0, 1_000, 1_015, 5_000, 5_010)
    )
    merged = Readback({OUT: 6_000}, 0, closed=closed).merged(4)
    assert [(each.begin[OUT], each.end[OUT]) for each in merged.closed] == [
        (0, 10),
        (1_000, 1_025),
        (5_000, 5_010),
        (5_010, 5_020),
    ]
    assert merged.closed[1].reached == {EQIAD: 1_015}
    assert merged.closed[1].since_ms == 1_000
    assert merged.oldest_ms == 0


def test_parts_without_a_gap_are_read_as_one() -> None:
    parts = [
        Segment({OUT: 0}, {OUT: 10}, {EQIAD: 5}, 0),
        Segment({OUT: 10}, {OUT: 20}, {EQIAD: 7}, 0),
        Segment({OUT: 20}, {OUT: 30}, {EQIAD: 6}, 0),
        Segment({OUT: 31}, {OUT: 40}, {EQIAD: 8}, 0),
    ]
    assert [len(run) for run in runs(parts)] == [2, 1, 1]


def test_of_a_topic_that_was_made_anew_all_is_read_and_nothing_that_is_not_there() -> None:
    readback = published(Readback({OUT: 0}, 0), checkpoint(1_000), EQIAD).marked({OUT: 700}, 1)
    readback = published(readback, checkpoint(1_010), EQIAD)
    assert list(readback.parts({OUT: 5, DEAD: 3})) == [
        Segment({OUT: 0}, {OUT: 5}, {EQIAD: 1_000}, 0),
        Segment({OUT: 0, DEAD: 0}, {OUT: 5, DEAD: 3}, {EQIAD: 1_010}, 1),
    ]
    assert readback.marked({OUT: 5}, 1).closed[1].begin == {OUT: 0}
