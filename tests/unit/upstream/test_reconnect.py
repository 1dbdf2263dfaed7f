from __future__ import annotations

import pytest

from pleiades.upstream.reconnect import MAX_RETRY_FIELD_MS, MIN_CONNECTION_SECONDS, Reconnect

A = ("a", 0)


def ended(
    reconnect: Reconnect, *, seconds: float, reached: int = 1, events: int = 0, idle: bool = False
) -> bool:
    """End a connection; returns True if it was useful."""
    reconnect.opened({A: 1}, 0.0)
    reconnect.received([b"1"] * events, None)
    return reconnect.ended({A: reached}, seconds, idle) or not reconnect.was_short


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
    reconnect = Reconnect(lambda: 0.0)
    assert ended(reconnect, seconds=seconds, reached=reached, events=events, idle=idle) == useful


def test_the_same_repeated_once_more_is_of_no_use() -> None:
    reconnect = Reconnect(lambda: 0.0)
    assert ended(reconnect, seconds=0.1, events=3)
    assert not ended(reconnect, seconds=0.1, events=3)
    assert ended(reconnect, seconds=0.1, events=4)


def test_events_in_one_millisecond_are_new_although_they_end_with_the_same_id() -> None:
    """This includes a connection that brought no more than the previous one."""
    reconnect = Reconnect(lambda: 0.0)
    for ids, is_new in (
        ([b"0", b"2", b"1"], True),
        ([b"2", b"1", b"1"], True),
        ([b"1", b"1"], False),
    ):
        reconnect.opened({A: 1}, 0.0)
        for sse_id in ids:
            reconnect.received([sse_id], None)
        assert reconnect.ended({A: 1}, 0.1, False) == is_new


def test_many_short_ones_are_followed_by_pauses_that_grow_and_a_long_one_by_none() -> None:
    reconnect = Reconnect(lambda: 0.0)
    after = []
    for reached in range(2, 9):
        assert ended(reconnect, seconds=0.1, reached=reached)
        after.append(reconnect.after_end())
    assert after[0] == 0.0, "a cut is normal"
    assert after[1] > 0.0
    assert after == sorted(after)
    assert ended(reconnect, seconds=MIN_CONNECTION_SECONDS)
    assert reconnect.after_end() == 0.0


def test_what_the_stream_asks_for_is_kept_to_within_bounds() -> None:
    reconnect = Reconnect(lambda: 0.0)
    reconnect.opened({}, 0.0)
    reconnect.received([b"1"], 2500)
    assert reconnect.after_end() == 2.5
    reconnect.received([b"1"], 10**9)
    assert reconnect.after_end() == MAX_RETRY_FIELD_MS / 1000


def test_a_retry_after_outlasts_the_backoff_and_not_the_other_way_round() -> None:
    reconnect = Reconnect(lambda: 0.0)
    assert reconnect.after_failure(30.0) == 30.0
    assert reconnect.after_failure() < reconnect.after_failure()
    for _ in range(7):
        assert reconnect.after_failure(1.0) > 1.0


def test_a_useful_connection_ends_the_row_of_failures() -> None:
    reconnect = Reconnect(lambda: 0.0)
    first = reconnect.after_failure()
    assert reconnect.after_failure() > first
    reconnect.after_end()
    assert reconnect.after_failure() == first
