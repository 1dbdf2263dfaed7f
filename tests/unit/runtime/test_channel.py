"""The two ends of a channel, as its writer and reader see each other."""

from __future__ import annotations

import os
import pickle
import random
import threading
from collections.abc import Callable

import pytest

from pleiades.core.event import Frames
from pleiades.runtime.channel import CAPACITY, PIPE_BYTES, Channel
from tests.harness.waiting import until

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


@pytest.mark.parametrize("size", [0, 1, PIPE_BYTES - 100, PIPE_BYTES, 3 * PIPE_BYTES])
def test_frames_of_any_size_come_as_they_were_sent(size: int) -> None:
    channel: Channel[Frames] = Channel("x")
    sent = [Frames(number, 1, random.randbytes(size), b"id", 3, 4) for number in range(3)]

    def send() -> None:
        for frames in sent:
            channel.put(frames, lambda: None)

    writer = in_thread(send)
    assert [channel.get(PATIENCE_SECONDS) for _ in sent] == sent
    writer.join(PATIENCE_SECONDS)


def in_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def test_the_depth_counts_what_waits_also_if_the_pipe_has_no_room_for_it() -> None:
    channel: Channel[bytes] = Channel("x")
    assert channel.depth() == 0
    for _ in range(ITEMS):
        channel.put(b"", lambda: None)
    assert channel.depth() == ITEMS
    writing = threading.Event()
    writer = in_thread(lambda: channel.put(bytes(2 * PIPE_BYTES), writing.set))
    assert writing.wait(PATIENCE_SECONDS)
    until(lambda: channel.depth() == ITEMS + 1, "the item that does not fit")
    for left in reversed(range(ITEMS + 1)):
        assert channel.get(PATIENCE_SECONDS) is not None
        assert channel.depth() == left
    writer.join(PATIENCE_SECONDS)


def test_both_ends_count_although_they_are_in_two_processes() -> None:
    """Each has its own counter, and does not take the other's."""
    channel: Channel[int] = Channel("x")
    if not (writer := os.fork()):
        counts = []
        for number in range(ITEMS):
            channel.put(number, lambda: None)
            counts.append(channel.untaken())
        os._exit(counts != [1, 2, 3, 4])
    assert os.waitpid(writer, 0)[1] == 0
    assert channel.depth() == ITEMS
    assert channel.get(PATIENCE_SECONDS) == 0
    assert channel.depth() == ITEMS - 1


def test_an_item_that_is_begun_is_written_to_its_end_while_its_process_shows_that_it_lives() -> (
    None
):
    channel: Channel[bytes] = Channel("x")
    taken: list[bytes | None] = []
    takers: list[threading.Thread] = []
    lived = 0

    def alive() -> None:
        nonlocal lived
        lived += 1
        if lived == 3:
            takers.append(in_thread(lambda: taken.append(channel.get(PATIENCE_SECONDS))))
        if lived > 1:
            raise Enough

    with pytest.raises(Enough):
        channel.put(bytes(2 * PIPE_BYTES), alive)
    takers[0].join(PATIENCE_SECONDS)
    assert lived >= 3
    assert taken == [bytes(2 * PIPE_BYTES)]


def test_what_can_not_be_sent_fails_for_whoever_puts_it() -> None:
    channel: Channel[object] = Channel("x")
    with pytest.raises((AttributeError, pickle.PicklingError)):
        channel.put(lambda: None, lambda: None)
    assert channel.depth() == 0
