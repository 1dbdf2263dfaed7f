from __future__ import annotations

import pytest

from pleiades.upstream.reconnect import MAX_RETRY_FIELD_MS, MIN_CONNECTION_SECONDS, Reconnect

SOURCE = ("a", 0)
COMMENT = b":ok\n\n"
ERROR = b'event: error\ndata: {"message":"Local: Broker transport failure"}\n\n'
UNREADABLE = b"id: ?\ndata: {}\n\n"


def frames(*timestamps_ms: int) -> bytes:
    return b"".join(b'id: [{"timestamp":%d}]\ndata: {}\n\n' % each for each in timestamps_ms)


class Upstream:
    """One connection after the other; only the ids move the position."""

    def __init__(self) -> None:
        self.reconnect = Reconnect(lambda: 0.0)
        self.position: dict[tuple[str, int], int] = {}

    def connection(self, *blobs: bytes, reached: int = 0, seconds: float = 0.1) -> bool:
        """True if a connection that brought these blobs brought something new."""
        self.reconnect.opened(self.position, 0.0)
        for blob in blobs:
            self.reconnect.received(blob)
        if reached:
            self.position[SOURCE] = reached
        return self.reconnect.ended(self.position, seconds, is_silent=False)


@pytest.mark.parametrize(
    ("blobs", "had_events"),
    [
        ([], False),
        ([COMMENT, ERROR, b"data: \n\n"], False),
        # Before an event was delivered, an id of the service has offsets.
        ([b'id: [{"offset":-1}]\n' + ERROR], False),
        ([frames(1)], True),
        ([UNREADABLE], True),
    ],
)
def test_only_events_count(blobs: list[bytes], had_events: bool) -> None:
    upstream = Upstream()
    assert upstream.connection(*blobs) == had_events
    assert upstream.reconnect.had_events == had_events


@pytest.mark.parametrize(
    ("first", "then", "new"),
    [
        ([frames(1, 2)], [frames(2)], False),
        ([frames(1, 2)], [frames(1, 2, 3)], True),
        ([frames(1, 2)], [frames(2), COMMENT * 3, ERROR], False),
        # The same message after another event.
        ([frames(1), ERROR], [frames(1, 2), ERROR], True),
        # Events of one millisecond, in one read or in several.
        ([frames(1, 2)], [frames(1, 2, 2)], True),
        ([frames(1, 2)], [frames(1, 2), frames(2)], True),
        ([frames(1, 2, 2)], [frames(1, 2), COMMENT, frames(2)], False),
        ([UNREADABLE], [UNREADABLE], False),
        ([UNREADABLE], [UNREADABLE * 2], True),
    ],
)
def test_repeated_events_end_the_same_way_and_new_ones_do_not(
    first: list[bytes], then: list[bytes], new: bool
) -> None:
    upstream = Upstream()
    assert upstream.connection(*first)
    assert upstream.connection(*then) == new


def test_the_position_tells_what_the_last_id_does_not() -> None:
    upstream = Upstream()
    assert upstream.connection(frames(5), reached=5)
    assert upstream.connection(frames(9, 5), reached=9)


def test_neither_the_order_of_an_id_nor_the_other_data_centres_offsets_are_new() -> None:
    upstream = Upstream()
    one = b'id: [{"topic":"a","timestamp":%d},{"topic":"b","offset":%d}]\ndata: {}\n\n'
    other = b'id: [{"offset":%d,"topic":"b"},{"timestamp":%d,"topic":"a"}]\ndata: {}\n\n'
    assert upstream.connection(one % (7, -1))
    assert not upstream.connection(other % (12, 7))
    assert upstream.connection(other % (12, 8))


def test_a_connection_that_ends_late_is_not_short() -> None:
    upstream = Upstream()
    assert not upstream.connection(seconds=0.1)
    assert upstream.reconnect.was_short
    assert not upstream.connection(seconds=MIN_CONNECTION_SECONDS)
    assert not upstream.reconnect.was_short


def test_many_short_ones_are_followed_by_pauses_that_grow_and_a_long_one_by_none() -> None:
    upstream = Upstream()
    reconnect = upstream.reconnect
    after = []
    for number in range(2, 9):
        assert upstream.connection(frames(number))
        after.append(reconnect.after_end())
    assert after[0] == 0.0, "a cut is normal"
    assert after[1] > 0.0
    assert after == sorted(after)
    upstream.connection(seconds=MIN_CONNECTION_SECONDS)
    assert reconnect.after_end() == 0.0


def test_what_the_stream_asks_for_is_kept_to_within_bounds() -> None:
    reconnect = Reconnect(lambda: 0.0)
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
