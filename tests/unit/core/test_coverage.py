from __future__ import annotations

import random

import pytest

from pleiades.core.checkpoint import Checkpoint, UnreadableCheckpoint, decode_checkpoint
from pleiades.core.coverage import MAX_INTERVALS, Coverage, Covered, Interval, covered_by
from pleiades.core.sse_id import TopicPartition

EQIAD: TopicPartition = ("eqiad.x", 0)
CODFW: TopicPartition = ("codfw.x", 0)
FAR = 10**9


def test_a_start_covers_what_it_relayed() -> None:
    coverage = covered_by({}, 100, {EQIAD: 501, CODFW: 0}, FAR)
    assert coverage == {EQIAD: (Interval(100, 500),)}


def test_it_ends_at_the_clock_if_the_position_is_ahead() -> None:
    assert covered_by({}, 100, {EQIAD: 9_000}, 400) == {EQIAD: (Interval(100, 400),)}


def test_a_topic_that_got_nothing_after_the_start_is_not_covered() -> None:
    assert covered_by({}, 100, {EQIAD: 100, CODFW: 7}, FAR) == {}


def test_intervals_that_touch_are_one() -> None:
    first = covered_by({}, 100, {EQIAD: 501}, FAR)
    assert covered_by(first, 50, {EQIAD: 201}, FAR) == {EQIAD: (Interval(50, 500),)}
    assert covered_by(first, 500, {EQIAD: 601}, FAR) == {EQIAD: (Interval(100, 600),)}
    apart = covered_by(first, 501, {EQIAD: 601}, FAR)
    assert apart == {EQIAD: (Interval(100, 500), Interval(501, 600))}


def test_of_many_gaps_the_oldest_interval_goes() -> None:
    coverage: Coverage = {}
    for number in range(MAX_INTERVALS + 3):
        coverage = covered_by(coverage, 100 * number, {EQIAD: 100 * number + 11}, FAR)
    assert len(coverage[EQIAD]) == MAX_INTERVALS
    assert coverage[EQIAD][0] == Interval(300, 310)


def dropped(coverage: Coverage, asked_ms: int, *dates: int) -> list[int]:
    covered = Covered()
    covered.connected(coverage, {EQIAD: asked_ms})
    # An id has the event's timestamp + 1.
    return [at for at, date in enumerate(dates) if covered.holds(EQIAD, date + 1)]


def test_events_inside_are_dropped_whatever_their_dates() -> None:
    coverage = {EQIAD: (Interval(100, 200),)}
    dates = (50, 99, 3, 100, 7, 150, 199, 200, 150, 100)
    assert dropped(coverage, 10, *dates) == [3, 4, 5, 6]


def test_a_connection_may_begin_inside() -> None:
    coverage = {EQIAD: (Interval(100, 200),)}
    assert dropped(coverage, 150, 7, 150, 200, 160) == [0, 1]


def test_a_connection_may_begin_behind() -> None:
    coverage = {EQIAD: (Interval(100, 200),)}
    assert dropped(coverage, 200, 200, 150) == []


def test_one_event_ahead_may_pass_several_intervals() -> None:
    coverage = {EQIAD: (Interval(100, 200), Interval(300, 400), Interval(900, 950))}
    assert dropped(coverage, 0, 50, 120, 250, 310, 500, 120, 920, 960) == [1, 3, 6]
    assert dropped(coverage, 0, 500, 120, 920) == [2]


def test_others_are_not_followed() -> None:
    covered = Covered()
    covered.connected({EQIAD: (Interval(100, 200),)}, {CODFW: 0})
    assert not covered
    assert not covered.holds(EQIAD, 151)
    assert not covered.holds(CODFW, 151)


@pytest.mark.parametrize("seed", range(50))
def test_any_log_and_any_starts(seed: int) -> None:
    """Every dropped event was relayed by a start, except for the window's part."""
    rng = random.Random(seed)
    log = [rng.choice((at, at, at - 30, at + 200, 1)) for at in range(100, 1_100, 5)]

    def resolve(asked_ms: int) -> int:
        return next((at for at, date in enumerate(log) if date >= asked_ms), len(log))

    coverage: Coverage = {}
    relayed: set[int] = set()
    for _ in range(3):
        begin_ms = rng.randrange(100, 1_000)
        first = resolve(begin_ms)
        stretch = range(first, min(first + rng.randrange(60), len(log)))
        if not stretch:
            continue
        reached = max(log[at] for at in stretch) + 1
        coverage = covered_by(coverage, begin_ms, {EQIAD: reached}, rng.choice((FAR, reached - 40)))
        relayed.update(stretch)
    asked_ms = rng.randrange(0, 1_100)
    begin = resolve(asked_ms)
    found = {begin + at for at in dropped(coverage, asked_ms, *log[begin:])}
    assert found <= relayed


def test_it_is_stored_with_the_checkpoint() -> None:
    coverage = {EQIAD: (Interval(1, 2), Interval(5, 9)), CODFW: (Interval(3, 4),)}
    checkpoint = Checkpoint({EQIAD: 5}, 1, 2, known_from={EQIAD: 4}, coverage=coverage)
    assert decode_checkpoint(checkpoint.encoded()) == checkpoint


@pytest.mark.parametrize(
    "damage",
    ["5", "[5]", '[["a",0,[[1]]]]', '[["a",0,[[1,"2"]]]]', '[["/",0,[[1,2]]]]', "[[[],0,[]]]"],
)
def test_a_damaged_one_is_told(damage: str) -> None:
    stored = Checkpoint({}, 1, 2).encoded().decode()
    with pytest.raises(UnreadableCheckpoint):
        decode_checkpoint((stored[:-1] + f',"coverage":{damage}}}').encode())


def test_only_what_follows_a_position_is_known() -> None:
    checkpoint = Checkpoint({EQIAD: 1_000, CODFW: 0}, 5, 900)
    known = checkpoint.remembering(100)
    assert known.known_from == {EQIAD: 800, ("", -1): 800}
    assert known.remembering(300) == known, "it went back"
    assert known.restarted(7) == Checkpoint({}, 7, 0, coverage={EQIAD: (Interval(5, 900),)})
