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
import select
import struct
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

_HEADER = struct.Struct("!ii")
"""Before each item: the length of what is pickled, and of the buffer after it; -1: there is none."""

POLL_SECONDS = 0.5  # the interval at which a waiting process beats and looks for a stop request


class Channel(Generic[T]):
    """One direction from one process to another. A full channel blocks `put`: the back-pressure."""

    def __init__(self, name: str, capacity: int = CAPACITY) -> None:
        self.name = name
        self._capacity = capacity
        self._reader, self._writer = Pipe(duplex=False)
        # With the default of 64 KiB, writer and reader wait for each other several times per item. A
        # user who has many pipes already gets a small one, which works and is slower.
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._writer.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(self._writer.fileno(), False)
        self._freed = _counter(capacity)
        """Places that the reader freed and the writer has not seen yet."""
        self._announced = _counter(0)
        """Items that the writer put and the reader has not seen yet."""
        self._places = 0
        """The writer's: items that it may put."""
        self._waiting = 0
        """The reader's: items seen and not taken."""

    def put(self, item: T, alive: Callable[[], None]) -> None:
        """Hand over one item; while the channel or its pipe is full, call `alive` every half second.

        `alive` may raise to end the wait. An item whose writing has begun is completed first.
        """
        if faultpoints.armed(faultpoints.SENT + self.name):
            self._die_half_written(item)
        message = _message(item)
        alive()
        while not self._places:
            if _ready(self._freed, select.POLLIN, POLL_SECONDS):
                self._places = _taken(self._freed)
            else:
                alive()
        self._places -= 1
        os.eventfd_write(self._announced.fileno(), 1)
        self._write(message, alive)

    def get(self, timeout_seconds: float) -> T | None:
        """The next item, or None if none came in time."""
        if not _ready(self._reader, select.POLLIN, timeout_seconds):
            return None
        body_bytes, buffer_bytes = _HEADER.unpack(self._read(_HEADER.size))
        body = self._read(body_bytes)
        buffers = [] if buffer_bytes < 0 else [self._read(buffer_bytes)]
        self._waiting -= 1
        os.eventfd_write(self._freed.fileno(), 1)
        item: T = pickle.loads(body, buffers=buffers)  # noqa: S301  # a process of ours wrote it
        return item

    def untaken(self) -> int:
        """The number of items that the reader has not taken, for the writer."""
        self._places += _taken(self._freed)
        return self._capacity - self._places

    def depth(self) -> int:
        """The number of items that wait, for the reader. The writer would take the reader's counter."""
        self._waiting += _taken(self._announced)
        return self._waiting

    def _write(self, left: list[memoryview], alive: Callable[[], None]) -> None:
        # Without blocking, and without a thread: it would take turns with this one at every item.
        ended = None
        while left:
            try:
                written = os.writev(self._writer.fileno(), left)
            except BlockingIOError:
                if not _ready(self._writer, select.POLLOUT, POLL_SECONDS):
                    try:
                        alive()
                    except Exception as error:  # raised below
                        ended = error
                continue
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left:
                left[0] = left[0][written:]
        if ended is not None:
            raise ended

    def _read(self, size: int) -> bytes:
        pieces = []
        while size:
            pieces.append(os.read(self._reader.fileno(), size))
            if not pieces[-1]:
                raise EOFError(f"{self.name} ended within an item")
            size -= len(pieces[-1])
        # Of one piece it is that piece, not a copy.
        return b"".join(pieces)

    def _die_half_written(self, item: T) -> NoReturn:
        """Leave what a SIGKILL within a write leaves."""
        message = b"".join(_message(item))
        os.write(self._writer.fileno(), message[: len(message) // 2])
        faultpoints.die()


def _message(item: object) -> list[memoryview]:
    """An item as it is written. A `PickleBuffer` in it is not copied: frames travel as they came."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(item, pickle.HIGHEST_PROTOCOL, buffer_callback=buffers.append)
    if not buffers:
        return [memoryview(_HEADER.pack(len(body), -1) + body)]
    (blob,) = (buffer.raw() for buffer in buffers)
    return [memoryview(_HEADER.pack(len(body), len(blob)) + body), blob]


def _counter(value: int) -> Connection:
    # A `Connection` closes itself and can be passed to a child process.
    return Connection(os.eventfd(value, os.EFD_NONBLOCK | os.EFD_CLOEXEC))


def _taken(counter: Connection) -> int:
    try:
        return os.eventfd_read(counter.fileno())
    except BlockingIOError:
        return 0


def _ready(end: Connection[Any, Any], event: int, timeout_seconds: float) -> bool:
    poll = select.poll()
    poll.register(end.fileno(), event)
    return bool(poll.poll(timeout_seconds * 1000))
