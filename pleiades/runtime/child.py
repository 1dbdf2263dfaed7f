"""What every child process does around its stage: signals, heartbeat, end.

A child never outlives its parent, never decides about restarts, and tells by its exit status what
kind of end it was: 0 (drained), a `Fatal`'s status, or anything else (a crash).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from setproctitle import setproctitle

from pleiades.runtime import logs, memory
from pleiades.runtime.errors import Fatal, GenerationLost, Stopped
from pleiades.runtime.metrics import Metrics

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger(__name__)

T = TypeVar("T")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
BEAT_SECONDS = 0.25
"""A child says no more often than this that it lives."""
SLOW_SECONDS = 30.0
"""How often it is said of a call that it lasts."""
_PR_SET_PDEATHSIG = 1
EXIT_ORPHANED = 70
"""A child's own exit status when its parent is gone; nobody is left to read it."""
EXIT_WAITING = 75
"""A child's own exit status after a `GenerationLost` (`EX_TEMPFAIL` of sysexits.h)."""
EXIT_FATAL_BASE = 100
"""A child that ended with a `Fatal` exits with this plus the program's exit status, so that a
Python traceback (1) or a usage error of the interpreter (2) is not taken for one."""


class Beat(NamedTuple):
    """child → parent: I am alive, and this is how far I am."""

    ready: bool
    """reader: connected; publisher: the destination is open and takes events."""
    allowed_seconds: float
    """How long I may now be silent beyond the usual: a blocking read of an idle stream."""
    committed_total: int
    """publisher: commits of this generation that brought anything new."""
    published_total: int
    lag_seconds: float
    position: str
    """publisher: what is committed, as an SSE id; empty before it knows."""
    details: object = None
    """publisher: what is committed; of a dry run, what is counted."""


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """What a child needs besides its stage's own settings."""

    name: str
    log_level: int
    log_format: str
    metrics_folder: str


class Life:
    """A child's side of its ties to the parent: heartbeat out, stop request in."""

    def __init__(self, beats: Connection) -> None:
        self.stop_requested = False
        self.ready = False
        self.allowed_seconds = 0.0
        """For how long this process may be silent beyond the usual: its longest blocking call."""
        self.committed_total = 0
        self.published_total = 0
        self.lag_seconds = 0.0
        self.position = ""
        self.details: object = None
        self._beats = beats
        self._caller: ThreadPoolExecutor | None = None
        self._interruptible = False
        self._last = 0.0
        self._shown: Beat | None = None

    def beat(self, at_once: bool = False) -> None:
        """Show the parent that this process lives; cheap enough to call for every batch.

        Args:
            at_once: also if it was shown a moment ago, for there is something to tell.
        """
        now = time.monotonic()
        beat = self._now()
        urgent = at_once or self._shown is None or beat[:2] != self._shown[:2]
        if not urgent and now - self._last < BEAT_SECONDS:
            return
        self._last = now
        self._shown = beat
        # A full pipe means that the parent is stopped or busy; it has enough beats to read.
        if select.select([], [self._beats], [], 0)[1]:
            with contextlib.suppress(BrokenPipeError):
                self._beats.send(beat)

    def farewell(self) -> None:
        """The last beat, which must arrive: waits for a parent that is busy."""
        with contextlib.suppress(BrokenPipeError):
            self._beats.send(self._now())

    def _now(self) -> Beat:
        return Beat(
            self.ready,
            self.allowed_seconds,
            self.committed_total,
            self.published_total,
            self.lag_seconds,
            self.position,
            self.details,
        )

    @contextlib.contextmanager
    def busy(self, seconds: float) -> Iterator[None]:
        """Within it this process may be silent for longer: it is in a call that can block so long."""
        usual, self.allowed_seconds = self.allowed_seconds, self.allowed_seconds + seconds
        self.beat()
        try:
            yield
        finally:
            self.allowed_seconds = usual
            self.beat()

    def aside(self, call: Callable[[], T], announce: Callable[[float], None]) -> T:
        """Make a call that blocks for as long as it likes, in a thread; this one shows that it lives.

        A disk that takes minutes is no process that hangs: to start that again would not help.

        Args:
            announce: told again and again, but not at once, for how many seconds it has lasted.
        """
        # Only here: most processes need none of it.
        from concurrent.futures import ThreadPoolExecutor, wait

        self._caller = self._caller or ThreadPoolExecutor(1, "aside")
        answer = self._caller.submit(call)
        began = time.monotonic()
        due = SLOW_SECONDS
        while not wait([answer], BEAT_SECONDS).done:
            self.beat()
            if time.monotonic() - began >= due:
                announce(time.monotonic() - began)
                due += SLOW_SECONDS
        try:
            return answer.result()
        finally:
            # An error holds on to this frame, which must not hold on to it: what a commit had in hand
            # would stay until some collection; while a destination stalls, of hundreds of commits.
            del answer

    def pause(self, seconds: float) -> None:
        """Wait, unless a stop is requested.

        Raises:
            Stopped: a stop was requested before or while waiting.
        """
        with self.busy(seconds), self.interruptible():
            threading.Event().wait(seconds)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within it a stop request raises `Stopped` at once, also out of a blocking call."""
        self._interruptible = True
        try:
            self.check()
            yield
        finally:
            self._interruptible = False

    def check(self) -> None:
        """Raise `Stopped` if a stop is requested."""
        if self.stop_requested:
            raise Stopped("stop requested")

    def request_stop(self, _signal: int, _frame: FrameType | None) -> None:
        """Signal handler: only notes the request, or ends the wait it came into."""
        self.stop_requested = True
        if self._interruptible:
            self._interruptible = False
            raise Stopped("stop requested")


def run(
    stage: Callable[..., None],
    arguments: tuple[object, ...],
    settings: ChildSettings,
    beats: Connection,
    stoppable: bool,
) -> None:
    """The target of every child process: run `stage(life, metrics, *arguments)` to its end.

    Args:
        stoppable: SIGTERM asks this stage to stop (the reader). The others end by the end marker
            that then follows the last batch, and ignore it.
    """
    life = Life(beats)
    # A terminal sends Ctrl-C to the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, life.request_stop if stoppable else signal.SIG_IGN)
    _die_with_parent()
    threading.Thread(target=_leave_with_parent, name="parent-watch", daemon=True).start()
    # Both were held back since before this process began (see `Running`).
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    setproctitle(f"pleiades: {settings.name}")
    logs.configure(settings.log_level, settings.log_format, settings.name)
    memory.tune()
    status = 1
    try:
        life.beat()
        stage(life, Metrics(settings.name, settings.metrics_folder), *arguments)
        status = 0
    except Fatal as error:
        log.error("%s", error)
        status = EXIT_FATAL_BASE + error.exit_status
    except GenerationLost as error:
        status = EXIT_WAITING
        log.error("%s; the pipeline starts again from the durable position", error)
    except Stopped:
        status = 0
    except BaseException:
        log.exception(
            "%s crashed; the pipeline starts again from the durable position", settings.name
        )
    logging.shutdown()
    # Not sys.exit: that would wait for feeder threads of channels whose other end may be gone.
    os._exit(status)


def _die_with_parent() -> None:
    # A stopped or hung process can't notice anything itself: the kernel does it for it. The thread
    # below is for where there is no prctl(2), and for a parent that died before this call.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _leave_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(EXIT_ORPHANED)
