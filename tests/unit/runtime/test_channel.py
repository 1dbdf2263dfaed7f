"""The two ends of a channel, as its writer and reader see each other."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable

import pytest

from pleiades.runtime.channel import CAPACITY, PIPE_BYTES, Channel

PATIENCE_SECONDS = 30
ITEMS = 4


class Enough(Exception):
    pass


def after(calls: int) -> Callable[[], None]:
    """Ends a wait at its last call."""
    left = iter(range(calls - 1))

    def alive() -> None:
        if next(left, None) is None:
            raise Enough

    return alive


def test_items_come_in_order_and_none_comes_twice() -> None:
    channel: Channel[int] = Channel("x")
    for number in range(CAPACITY):
        channel.put(number, lambda: None)
    got = [channel.get(PATIENCE_SECONDS) for _ in range(CAPACITY)]
    assert got == list(range(CAPACITY))
    assert channel.get(0.0) is None


def test_a_full_channel_holds_its_writer_up_until_one_item_is_taken() -> None:
    channel: Channel[int] = Channel("x", 2)
    channel.put(0, lambda: None)
    channel.put(1, lambda: None)
    with pytest.raises(Enough):
        channel.put(2, after(3))
    assert channel.get(PATIENCE_SECONDS) == 0
    channel.put(3, lambda: None)
    with pytest.raises(Enough):
        channel.put(4, after(2))
    assert [channel.get(PATIENCE_SECONDS) for _ in range(2)] == [1, 3]
    assert channel.get(0.0) is None, "an item came that was never put"


def test_the_depth_counts_what_waits_also_if_the_pipe_has_no_room_for_it() -> None:
    channel: Channel[bytes] = Channel("x")
    assert channel.depth() == 0
    for _ in range(ITEMS):
        channel.put(bytes(PIPE_BYTES), lambda: None)
    assert channel.depth() == ITEMS
    channel.get(PATIENCE_SECONDS)
    assert channel.depth() == ITEMS - 1
    channel.put(b"", lambda: None)
    assert channel.depth() == ITEMS
    for _ in range(ITEMS):
        channel.get(PATIENCE_SECONDS)
    assert channel.depth() == 0


def test_a_flush_shows_that_its_process_lives_until_all_is_taken() -> None:
    channel: Channel[bytes] = Channel("x")
    for _ in range(ITEMS):
        channel.put(bytes(PIPE_BYTES), lambda: None)
    lived = 0
    taken: list[bytes | None] = []

    def take() -> None:
        taken.extend(channel.get(PATIENCE_SECONDS) for _ in range(ITEMS))

    taker = threading.Thread(target=take, daemon=True)

    def alive() -> None:
        nonlocal lived
        lived += 1
        if lived == 3:
            taker.start()

    channel.flush(alive)
    taker.join(PATIENCE_SECONDS)
    assert lived >= 3
    assert taken == [bytes(PIPE_BYTES)] * ITEMS


def test_what_can_not_be_sent_fails_for_whoever_puts_it() -> None:
    channel: Channel[object] = Channel("x")
    with pytest.raises((AttributeError, pickle.PicklingError)):
        channel.put(lambda: None, lambda: None)
