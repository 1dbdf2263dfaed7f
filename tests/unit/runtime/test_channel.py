"""What a writer does while nobody takes what it has written."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from typing import Any

from pleiades.runtime.channel import PIPE_BYTES, Channel

PATIENCE_SECONDS = 30
ITEMS = 4


def test_a_flush_shows_that_its_process_lives_until_all_is_taken() -> None:
    channel: Channel[bytes] = Channel(multiprocessing.get_context("spawn"), "x")
    inside: Any = channel
    # As another process has it: in this one a closed queue has none any more.
    reader = Connection(os.dup(inside._queue._reader.fileno()), writable=False)
    for _ in range(ITEMS):
        channel.put(bytes(PIPE_BYTES), lambda: None)
    lived = 0
    taken: list[int] = []

    def take() -> None:
        taken.extend(len(reader.recv_bytes()) for _ in range(ITEMS))

    taker = threading.Thread(target=take, daemon=True)

    def alive() -> None:
        nonlocal lived
        lived += 1
        if lived == 3:
            taker.start()

    channel.flush(alive)
    taker.join(PATIENCE_SECONDS)
    reader.close()
    assert lived >= 3
    assert len(taken) == ITEMS
    assert min(taken) > PIPE_BYTES
