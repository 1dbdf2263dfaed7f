from __future__ import annotations

import pytest

from pleiades.upstream.reconnect import MAX_RETRY_FIELD_MS, MIN_CONNECTION_SECONDS, Reconnect


def frames(*events: int) -> bytes:
    return b"".join(b"id: 1\ndata: %d\n\n" % number for number in events)


def ended(
    reconnect: Reconnect, *, seconds: float, blob: bytes = b"", is_silent: bool = False
) -> bool:
    """True if the connection was useful."""
    reconnect.opened(0.0)
    reconnect.received(blob)
    return reconnect.ended(seconds, is_silent) or not reconnect.was_short


@pytest.mark.parametrize(
    ("seconds", "blob", "is_silent", "useful"),
    [
        (0.1, b"", False, False),
        (0.1, b":ok\n\n", False, False),
        (0.1, frames(1), False, True),
        (MIN_CONNECTION_SECONDS, b"", False, True),
        (0.1, b"", True, True),
    ],
)
def test_of_use(seconds: float, blob: bytes, is_silent: bool, useful: bool) -> None:
    reconnect = Reconnect(lambda: 0.0)
    assert ended(reconnect, seconds=seconds, blob=blob, is_silent=is_silent) == useful
    assert reconnect.had_events == (b"data" in blob)


def test_the_same_repeated_once_more_is_of_no_use() -> None:
    reconnect = Reconnect(lambda: 0.0)
    assert ended(reconnect, seconds=0.1, blob=frames(1, 2))
    assert not ended(reconnect, seconds=0.1, blob=frames(2))
    # Comments are no events.
    assert not ended(reconnect, seconds=0.1, blob=frames(1, 2) + b":ok\n\n" * 3)
    assert ended(reconnect, seconds=0.1, blob=frames(2, 3))


def test_the_other_data_centre_repeats_the_same_event_with_another_offset() -> None:
    reconnect = Reconnect(lambda: 0.0)
    event = b'id: [{"topic":"a","partition":0,"offset":%d}]\ndata: {"meta":{"offset":%d}}\n\n'
    assert ended(reconnect, seconds=0.1, blob=event % (-1, 700))
    assert not ended(reconnect, seconds=0.1, blob=event % (12, 3))


def test_many_short_ones_are_followed_by_pauses_that_grow_and_a_long_one_by_none() -> None:
    reconnect = Reconnect(lambda: 0.0)
    after = []
    for number in range(2, 9):
        assert ended(reconnect, seconds=0.1, blob=frames(number))
        after.append(reconnect.after_end())
    assert after[0] == 0.0, "a cut is normal"
    assert after[1] > 0.0
    assert after == sorted(after)
    assert ended(reconnect, seconds=MIN_CONNECTION_SECONDS)
    assert reconnect.after_end() == 0.0


def test_what_the_stream_asks_for_is_kept_to_within_bounds() -> None:
    reconnect = Reconnect(lambda: 0.0)
    reconnect.opened(0.0)
    reconnect.asked_to_wait(2500)
    reconnect.asked_to_wait(None)
    assert reconnect.after_end() == 2.5
    reconnect.asked_to_wait(10**9)
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
