"""Bounded channels between two processes, each with one writer and one reader.

A channel is a pipe and two event counters. It has no lock that a killed process could keep, and no
named semaphore that a killed parent would leave behind. A writer killed within a write leaves half a
message in the pipe, so every generation of the pipeline gets new channels.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import queue
import select
import struct
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Generic, NoReturn, TypeVar

from pleiades.runtime import faultpoints

T = TypeVar("T")

CAPACITY = 8
"""Items in one channel. An item is what one read of the socket gave, at most 512 KiB where events have
the usual size, so a stalled destination costs about 4 MiB per channel."""

PIPE_BYTES = 1024 * 1024  # as much as an unprivileged process may ask for (pipe(7))

POLL_SECONDS = 0.5  # the interval at which a waiting process beats and looks for a stop request


class Channel(Generic[T]):
    """One direction from one process to another. A full channel blocks `put`: the back-pressure."""

    def __init__(self, name: str, capacity: int = CAPACITY) -> None:
        self.name = name
        self._reader, self._writer = Pipe(duplex=False)
        # With the default of 64 KiB, writer and reader wait for each other several times per item. A
        # user who has many pipes already gets a small one, which works and is slower.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._writer.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._freed = _counter(capacity)
        """Places that the reader freed and the writer has not seen yet."""
        self._announced = _counter(0)
        """Items that the writer put and the reader has not seen yet."""
        self._places = 0
        """The writer's: items that it may put."""
        self._waiting = 0
        """The reader's: items seen and not taken."""
        self._outbox: queue.SimpleQueue[bytes | None] | None = None
        self._feeder: threading.Thread

    def put(self, item: T, alive: Callable[[], None]) -> None:
        """Hand over one item; while the channel is full, call `alive` every half second.

        `alive` may raise to end the wait; the item is then not in the channel.
        """
        if faultpoints.armed(faultpoints.SENT + self.name):
            self._die_half_written(item)
        alive()
        while not self._places:
            if _readable(self._freed, POLL_SECONDS):
                self._places = _taken(self._freed)
            else:
                alive()
        self._places -= 1
        os.eventfd_write(self._announced.fileno(), 1)
        self._send(pickle.dumps(item, pickle.HIGHEST_PROTOCOL))

    def get(self, timeout_seconds: float) -> T | None:
        """The next item, or None if none came in time."""
        if not _readable(self._reader, timeout_seconds):
            return None
        message = self._reader.recv_bytes()
        self._waiting -= 1
        os.eventfd_write(self._freed.fileno(), 1)
        item: T = pickle.loads(message)  # noqa: S301  # a process of ours wrote it
        return item

    def depth(self) -> int:
        """The number of items that wait; for the reader."""
        self._waiting += _taken(self._announced)
        return self._waiting

    def flush(self, alive: Callable[[], None]) -> None:
        """Wait until all items are in the pipe, and call `alive` every half second: the reader may wait
        for a destination that stalls. For an orderly end: nothing is put afterwards.
        """
        self._send(None)
        while self._feeder.is_alive():
            alive()
            self._feeder.join(POLL_SECONDS)

    def _send(self, message: bytes | None) -> None:
        if self._outbox is None:
            self._outbox = queue.SimpleQueue()
            self._feeder = threading.Thread(target=self._feed, args=(self._outbox,), daemon=True)
            self._feeder.start()
        self._outbox.put(message)

    def _feed(self, outbox: queue.SimpleQueue[bytes | None]) -> None:
        """Write in a thread: the next item is made while the reader takes this one."""
        while (message := outbox.get()) is not None:
            self._writer.send_bytes(message)

    def _die_half_written(self, item: T) -> NoReturn:
        """Leave what a SIGKILL within a write leaves."""
        message = pickle.dumps(item)
        # The length as `multiprocessing.connection` writes it, and less than that.
        half = struct.pack("!i", len(message)) + message[: len(message) // 2]
        os.write(self._writer.fileno(), half)
        faultpoints.die()


def _counter(value: int) -> Connection:
    # A `Connection` closes itself and can be passed to a child process.
    return Connection(os.eventfd(value, os.EFD_NONBLOCK | os.EFD_CLOEXEC))


def _taken(counter: Connection) -> int:
    try:
        return os.eventfd_read(counter.fileno())
    except BlockingIOError:
        return 0


def _readable(end: Connection[Any, Any], timeout_seconds: float) -> bool:
    poll = select.poll()
    poll.register(end.fileno(), select.POLLIN)
    return bool(poll.poll(timeout_seconds * 1000))
