"""Bounded channels between two stages, each a `multiprocessing.Queue` with one writer and one reader.

A queue that a SIGKILLed process touched can't be used again: a reader killed inside `get()` took the
read lock with it, and a writer killed mid-write leaves half a message in the pipe. So every
generation of the pipeline gets new channels, and no channel has two writers or two readers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import queue
import struct
from collections.abc import Callable
from multiprocessing.context import SpawnContext
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from pleiades.runtime import faultpoints

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

T = TypeVar("T")

CAPACITY = 8
"""Items in one channel. An item is what waited in the socket: 512 KiB at most where events are of
usual size; so a stalled destination costs about 4 MiB per channel."""

PIPE_BYTES = 1024 * 1024
"""As much as a process without privileges may ask for (pipe(7))."""

POLL_SECONDS = 0.5
"""How often somebody who waits shows that it lives and looks whether it should stop."""


class Channel(Generic[T]):
    """One direction from one process to another. Full: `put` waits. That is the back-pressure."""

    def __init__(self, context: SpawnContext, name: str, capacity: int = CAPACITY) -> None:
        self.name = name
        self._queue: Queue[T] = context.Queue(capacity)
        _widen(self._queue)

    def put(self, item: T, alive: Callable[[], None]) -> None:
        """Hand over one item; while the channel is full, call `alive` every half second.

        `alive` may raise to end the wait; the item is then not in the channel.
        """
        if faultpoints.armed(faultpoints.SENT + self.name):
            self._die_half_written(item)
        while True:
            alive()
            try:
                self._queue.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return

    def get(self, timeout_seconds: float) -> T | None:
        """The next item, or None if none came in time."""
        try:
            return self._queue.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def depth(self) -> int:
        """Items waiting; an estimate. 0 where the platform can't tell."""
        try:
            return self._queue.qsize()
        except NotImplementedError:
            return 0

    def _die_half_written(self, item: T) -> NoReturn:
        """What a SIGKILL inside the write of the queue's own thread leaves behind."""
        inside: Any = self._queue
        message = pickle.dumps(item)
        # The length as `multiprocessing.connection` writes it, and less than that.
        half = struct.pack("!i", len(message)) + message[: len(message) // 2]
        with inside._wlock:  # noqa: SLF001  # where the queue's own thread would be
            os.write(inside._writer.fileno(), half)  # noqa: SLF001  # as above
        faultpoints.die()

    def flush(self, alive: Callable[[], None]) -> None:
        """Wait until everything put is in the pipe, and call `alive` every half second: whoever takes it
        may wait for a destination that stalls. For an orderly end of the writer; at every other end
        what is not yet in the pipe is lost (`child.run` leaves by `os._exit`), and is to be.
        """
        inside: Any = self._queue
        self._queue.close()
        feeder = inside._thread  # noqa: SLF001  # what join_thread() joins, without an end
        while feeder is not None and feeder.is_alive():
            alive()
            feeder.join(POLL_SECONDS)


def _widen(queue_: Queue[Any]) -> None:
    """Let a whole item go through the pipe at once: of 64 KiB, the default, writer and reader would wait
    for each other several times for each.
    """
    inside: Any = queue_
    # A user who has too many pipes already gets a narrow one, which is as right and less fast.
    with contextlib.suppress(OSError):
        fcntl.fcntl(inside._writer.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)  # noqa: SLF001  # above
