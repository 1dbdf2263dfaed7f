from __future__ import annotations

import pytest

from pleiades.core.pauses import MAX_RETRY_FIELD_MS, MIN_CONNECTION_SECONDS, Pauses

A = ("a", 0)


def ended(
    pauses: Pauses, *, seconds: float, reached: int = 1, events: int = 0, idle: bool = False
) -> bool:
    pauses.opened({A: 1}, b"1", 0.0)
    pauses.delivered(events, None)
    return pauses.ended({A: reached}, b"1", seconds, idle)


@pytest.mark.parametrize(
    ("seconds", "reached", "events", "idle", "useful"),
    [
        (0.1, 1, 0, False, False),
        (0.1, 2, 1, False, True),
        (MIN_CONNECTION_SECONDS, 1, 0, False, True),
        (0.1, 1, 0, True, True),
        (0.1, 1, 3, False, True),
    ],
)
def test_of_use(seconds: float, reached: int, events: int, idle: bool, useful: bool) -> None:
    assert ended(Pauses(), seconds=seconds, reached=reached, events=events, idle=idle) == useful


def test_the_same_repeated_once_more_is_of_no_use() -> None:
    pauses = Pauses()
    assert ended(pauses, seconds=0.1, events=3)
    assert not ended(pauses, seconds=0.1, events=3)
    assert ended(pauses, seconds=0.1, events=4)


def test_many_short_ones_are_followed_by_pauses_that_grow_and_a_long_one_by_none() -> None:
    pauses = Pauses()
    after = []
    for reached in range(2, 9):
        assert ended(pauses, seconds=0.1, reached=reached)
        after.append(pauses.after_end(0.0))
    assert after[0] == 0.0, "a cut is normal"
    assert after[1] > 0.0
    assert after == sorted(after)
    assert ended(pauses, seconds=MIN_CONNECTION_SECONDS)
    assert pauses.after_end(0.0) == 0.0


def test_what_the_stream_asks_for_is_kept_to_within_bounds() -> None:
    pauses = Pauses()
    pauses.opened({}, b"", 0.0)
    pauses.delivered(1, 2500)
    assert pauses.after_end(0.0) == 2.5
    pauses.delivered(1, 10**9)
    assert pauses.after_end(0.0) == MAX_RETRY_FIELD_MS / 1000


def test_a_retry_after_outlasts_the_backoff_and_not_the_other_way_round() -> None:
    pauses = Pauses()
    assert pauses.after_failure(1, 0.0, 30.0) == 30.0
    assert pauses.after_failure(10, 0.0, 1.0) > 1.0
    assert pauses.after_failure(1, 0.0, None) < pauses.after_failure(2, 0.0, None)
