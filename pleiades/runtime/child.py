"""Runs a stage in its process: heartbeat, stop signals, exit status.

A child never outlives its parent and never decides about restarts. Its exit status tells how it ended: 0
(drained), that of a `Fatal`, or anything else (a crash).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib import import_module
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

from setproctitle import setproctitle

from pleiades.runtime import logs
from pleiades.runtime.errors import Fatal, GenerationLost, Stopped
from pleiades.runtime.metrics import Metrics
from pleiades.runtime.output import standard_error
from pleiades.runtime.startup import STOP_SIGNALS, die_with_parent

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from pleiades.config.settings import Settings
    from pleiades.runtime.process import ProcessSpec

log = logging.getLogger(__name__)

T = TypeVar("T")

BEAT_SECONDS = 0.25  # between two beats that bring no news
SLOW_SECONDS = 30.0  # the interval at which a call that still lasts is announced
EXIT_ORPHANED = 70  # the parent is gone; nobody reads it
EXIT_WAITING = 75  # after a `GenerationLost` (`EX_TEMPFAIL` of sysexits.h)
EXIT_FATAL_BASE = 100
"""A child that ended with a `Fatal` exits with this plus the program's exit status, so that a Python
traceback (1) or a usage error of the interpreter (2) is not taken for one."""


@dataclass
class Beat:
    """Child → parent: I am alive, and this is how far I am."""

    ready: bool = False
    """Reader: connected; publisher: the destination is open and takes events."""
    allowed_seconds: float = 0.0
    """The silence that the child may keep beyond the usual: its longest blocking call."""
    committed_total: int = 0
    """Publisher: commits of this generation that brought anything new."""
    published_total: int = 0
    lag_seconds: float = 0.0
    position: str = ""
    """Publisher: the committed position in words; empty before it is known."""
    details: object = None
    """Publisher: the committed checkpoint; in a dry run, the counts."""
    problem: str = ""
    """The task that fails at present, and since when; empty: none."""


class ChildContext(Beat):
    """A child's side of its ties to the parent: heartbeat out, stop request in.

    Args:
        beats: one end of a socket that keeps messages apart.
    """

    def __init__(self, beats: Connection) -> None:
        super().__init__()
        self.stop_requested = False
        self._beats = beats
        os.set_blocking(beats.fileno(), False)
        self._caller: ThreadPoolExecutor | None = None
        self._interruptible = False
        self._last = 0.0
        self._shown: tuple[bool, float, str] | None = None
        self._problem_since: float | None = None

    def beat(self, at_once: bool = False) -> None:
        """Show the parent that this process lives. Never blocks; cheap enough for every batch.

        Args:
            at_once: also if the last beat was a moment ago, because there is news.
        """
        now = time.monotonic()
        news = self.ready, self.allowed_seconds, self.problem
        if at_once or news != self._shown or now - self._last >= BEAT_SECONDS:
            self._last, self._shown = now, news
            self._send()

    def report_problem(self, what: str) -> None:
        """Show that a task fails at present, such as `can't publish events in /srv/events`."""
        self._problem_since = self._problem_since or time.time()
        since = datetime.fromtimestamp(self._problem_since, UTC)
        self.problem = f"since {since:%H:%M:%S}Z {what}"

    def clear_problem(self) -> float | None:
        """Note that the task succeeds again; returns the seconds for which it failed, if it did."""
        since, self._problem_since, self.problem = self._problem_since, None, ""
        return None if since is None else max(time.time() - since, 0.0)

    def farewell(self) -> None:
        """Send the last beat, which must arrive: wait for a parent that is busy."""
        os.set_blocking(self._beats.fileno(), True)
        self._send()

    def _send(self) -> None:
        message = pickle.dumps(Beat(*[getattr(self, field.name) for field in fields(Beat)]))
        # If the socket is full, the parent is stopped or busy. It gets the newest state later: each beat
        # tells all of it. If the parent is gone, this process is about to end.
        with contextlib.suppress(OSError):
            os.write(self._beats.fileno(), message)

    @contextlib.contextmanager
    def busy(self, seconds: float) -> Iterator[None]:
        """Announce a call that can block so long: this process may be silent meanwhile."""
        usual, self.allowed_seconds = self.allowed_seconds, self.allowed_seconds + seconds
        self.beat()
        try:
            yield
        finally:
            self.allowed_seconds = usual
            self.beat()

    def run_in_thread(self, call: Callable[[], T], announce: Callable[[float], None]) -> T:
        """Make a call that may block for any time in a thread; this thread goes on beating.

        A disk that takes minutes is no hung process: a restart would not help.

        Args:
            announce: called every `SLOW_SECONDS` with the seconds that the call has lasted.
        """
        # Most processes do not need this module.
        from concurrent.futures import ThreadPoolExecutor, wait

        self._caller = self._caller or ThreadPoolExecutor(1, "aside")
        answer = self._caller.submit(call)
        began, due = time.monotonic(), SLOW_SECONDS
        while not wait([answer], BEAT_SECONDS).done:
            self.beat()
            lasted = time.monotonic() - began
            if lasted >= due:
                announce(lasted)
                due += SLOW_SECONDS
        try:
            return answer.result()
        finally:
            # An error refers to this frame. If the frame referred to the error, the batch of each failed
            # commit would stay in memory until a collection: hundreds while a destination stalls.
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
        """Let a stop request raise `Stopped` at once, also out of a blocking call."""
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
        """Signal handler: note the request, and end an interruptible wait."""
        self.stop_requested = True
        if self._interruptible:
            self._interruptible = False
            raise Stopped("stop requested")


def run(spec: ProcessSpec, settings: Settings, folder: str, beats: Connection) -> None:
    """The target of every child process: run the stage to its end; `folder`: see `Metrics`."""
    child = ChildContext(beats)
    # A terminal sends Ctrl-C and its hangup to the whole process group; the parent alone acts on them.
    for number in STOP_SIGNALS:
        asked = spec.stoppable and number == signal.SIGTERM
        signal.signal(number, child.request_stop if asked else signal.SIG_IGN)
    die_with_parent()
    threading.Thread(target=_leave_with_parent, name="parent-watch", daemon=True).start()
    # They are blocked since before this process began (see `forkserver`).
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    setproctitle(f"pleiades: {spec.name}")
    logs.configure(settings.log_level, settings.log_format, spec.name)
    gc.freeze()
    status = 1
    try:
        child.beat()
        with contextlib.suppress(Stopped):
            metrics = Metrics(spec.name, folder)
            standard_error().count_dropped(metrics.log_lines_dropped.inc)
            import_module(spec.module).run(child, metrics, *spec.arguments)
        status = 0
    except Fatal as error:
        log.error("%s", error)
        status = EXIT_FATAL_BASE + error.exit_status
    except GenerationLost as error:
        log.error("%s; the pipeline starts again from the durable position", error)
        status = EXIT_WAITING
    except BaseException:
        log.exception("%s crashed; the pipeline starts again from the durable position", spec.name)
    logging.shutdown()
    # Not sys.exit, which would wait for threads that write to a process which may be gone.
    os._exit(status)


def _leave_with_parent() -> None:
    # The kernel looks at the forkserver. This thread notices the end of the relay's parent itself.
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(EXIT_ORPHANED)
