"""Output for a person or a program: log lines on standard error, and results on standard output.

Law: a log line never makes its process wait. Nobody may read the pipe, it may be closed, and the disk
behind it may be full or hang: that costs lines, which are counted, and nothing else. A thread writes
them. O_NONBLOCK would be seen by all who share the pipe or terminal, and after a poll that finds room,
another process can fill it first.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache
from queue import SimpleQueue

from pleiades.runtime.errors import Fatal

log = logging.getLogger(__name__)

STDOUT, STDERR = 1, 2
MAX_WAITING = 1000
"""Lines that wait for a stalled reader, in each process; further ones are dropped."""
WAIT_MS = 200
"""The longest that a stop signal waits for a reader of standard output."""
FLUSH_SECONDS = 1.0
"""The longest that the end of a process waits for what is still to be written."""
ESCAPED = "pleiades.escaped"
"""The error handler of encodings that lack a character: it writes `\\u00e9`, as JSON does."""


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)), error.end


codecs.register_error(ESCAPED, _escape)


def show(text: str) -> None:
    """Print the result of a command.

    Raises:
        Fatal: it can't be written.
    """
    if wrong := try_to_show(text):
        raise Fatal(f"can't write to standard output: {wrong}")


def try_to_show(text: str) -> str:
    """Print the result of a command; returns what is wrong if it can't be written, and else nothing."""
    try:
        for line in text.split("\n"):
            # A signal that comes right before a write that blocks does not interrupt it.
            while not _has_room(STDOUT, WAIT_MS):
                pass
            print(line, flush=True)  # noqa: T201  # the one place that prints results
    except OSError as error:
        # Or Python tries once more at its end, and complains.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
        return str(error.strerror)
    return ""


def _has_room(descriptor: int, wait_ms: int | None = None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(wait_ms))


@cache
def standard_error() -> Output:
    """This process's only writer to standard error."""
    return Output(STDERR, sys.stderr.encoding)


class Output:
    """Lines on their way to a descriptor."""

    def __init__(self, descriptor: int, encoding: str = "utf-8") -> None:
        self._descriptor = descriptor
        self._encoding = encoding
        self._waiting: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._dropped = 0
        self._unreported = 0
        self._count: Callable[[int], object] = lambda _: None

    def isatty(self) -> bool:
        """Return whether this is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, line: str) -> None:
        """Write a line, which ends as a line does, or drop it."""
        if self._waiting.qsize() < MAX_WAITING or threading.current_thread() is self._thread:
            self._put(line)
        else:
            self._drop()

    def draw(self, text: str) -> None:
        """Write text that is soon replaced; it never waits behind anything else."""
        if self._waiting.empty():
            self._put(text)

    def flush(self) -> None:
        """Wait for what was written before, but not for long."""
        if self._thread is not None:
            written = threading.Event()
            self._waiting.put(written)
            written.wait(FLUSH_SECONDS)

    def count_dropped(self, count: Callable[[int], object]) -> None:
        """Have `count` called with the number of lines dropped so far, and then for each further one."""
        with self._lock:
            count(self._dropped)
            self._count = count

    def _put(self, text: str) -> None:
        self._waiting.put(text.encode(self._encoding, ESCAPED))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="output", daemon=True)
            # The thread inherits the mask: signals are for the others.
            usual = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            self._thread.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, usual)

    def _drop(self) -> None:
        with self._lock:
            self._dropped += 1
            self._unreported += 1
            self._count(1)

    def _run(self) -> None:
        torn = b""
        while True:
            text = self._waiting.get()
            if isinstance(text, threading.Event):
                text.set()
                continue
            left = memoryview(torn + text)
            try:
                while left:
                    left = left[self._written(left) :]
            except OSError:
                # The next line must not continue this one.
                torn = b"\n" if torn or len(left) < len(text) else b""
                if text.endswith(b"\n"):
                    self._drop()
            else:
                torn = b""
                self._report_dropped()

    def _written(self, text: memoryview) -> int:
        try:
            return os.write(self._descriptor, text)
        except BlockingIOError:
            # Another process has set O_NONBLOCK on what they share.
            _has_room(self._descriptor)
            return 0

    def _report_dropped(self) -> None:
        with self._lock:
            unreported, self._unreported = self._unreported, 0
        if unreported:
            log.warning(
                "%d log lines of this process were dropped before this one: nobody read standard error, "
                "or it could not be written. No event is affected",
                unreported,
            )
