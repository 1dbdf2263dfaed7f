"""From where on a restart reads a topic back."""

from __future__ import annotations

from dataclasses import replace

from pleiades.core.position import Checkpoint, Done
from pleiades.core.span import Mark, Span

EQIAD = ("eqiad.x", 0)
CODFW = ("codfw.x", 0)
WINDOW_MS = 100


def checkpoint(eqiad_ms: int, clock_ms: int = 10**6) -> Checkpoint:
    return Checkpoint({EQIAD: eqiad_ms, CODFW: 0}, 0, clock_ms)


def test_it_begins_where_publishing_began_and_marks_the_first_commit() -> None:
    span = Span(50).publishing(60).committed(checkpoint(1_000), WINDOW_MS)
    assert span.since_ms == 50
    assert span.mark == Mark(60, {EQIAD: 1_000, CODFW: 0})


def test_the_mark_becomes_the_beginning_once_nothing_before_it_can_be_repeated() -> None:
    span = Span(50).publishing(60).committed(checkpoint(1_000), WINDOW_MS)
    for position_ms in (1_050, 1_100):
        span = span.publishing(70).committed(checkpoint(position_ms), WINDOW_MS)
        assert span.since_ms == 50, "an event at 1,000 can still be asked for"
    span = span.publishing(80).committed(checkpoint(1_101), WINDOW_MS)
    assert span.since_ms == 60
    assert span.mark == Mark(80, {EQIAD: 1_101, CODFW: 0})


def test_what_a_replay_has_finished_holds_up_nothing() -> None:
    begun = Checkpoint({EQIAD: 1_000, CODFW: 500}, 0, 9_000)
    span = Span(50).publishing(60).committed(begun, WINDOW_MS)
    later = Checkpoint({EQIAD: 1_101, CODFW: 500}, 0, 9_000, Done())
    assert span.publishing(70).committed(later, WINDOW_MS).since_ms == 50
    finished = replace(later, done=Done(finished=frozenset({CODFW})))
    assert span.publishing(70).committed(finished, WINDOW_MS).since_ms == 60


def test_a_position_ahead_of_the_clock_waits_for_the_clock() -> None:
    span = Span(50).publishing(60).committed(checkpoint(1_000), WINDOW_MS)
    span = span.publishing(70).committed(checkpoint(9_000, clock_ms=1_100), WINDOW_MS)
    assert span.since_ms == 50
    span = span.publishing(80).committed(checkpoint(9_000, clock_ms=1_101), WINDOW_MS)
    assert span.since_ms == 60


def test_a_clock_that_is_set_back_takes_the_beginning_with_it() -> None:
    span = Span(5_000).publishing(5_000).committed(checkpoint(1_000), WINDOW_MS)
    span = span.publishing(400)
    assert (span.since_ms, span.mark) == (400, None)
    span = span.committed(checkpoint(1_001), WINDOW_MS)
    assert span.mark == Mark(400, {EQIAD: 1_001, CODFW: 0})


def test_what_lies_before_the_mark_came_at_its_position() -> None:
    span = Span(50, Mark(60, {EQIAD: 1_000}))
    position = {EQIAD: 2_000, CODFW: 7}
    assert span.reached(EQIAD, 59, position) == 1_000
    assert span.reached(EQIAD, 60, position) == 2_000
    assert span.reached(CODFW, 60, position) == 7
    assert span.reached(("", -1), 60, position) == 2_000, "of unknown source: as long as any"
