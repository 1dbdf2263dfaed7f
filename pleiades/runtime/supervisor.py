"""The parent: starts the processes, watches them, restarts all of them, stops them.

Crash-only: whichever child ends or hangs, the parent kills all others, drops the channels and starts the
pipeline again from the durable position. Signal handlers only wake the loop; one loop acts, as in
gunicorn's arbiter. `core/restart.py` decides; this module carries it out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import connection

from setproctitle import setproctitle

from pleiades.config.settings import Settings
from pleiades.core.restart import Ended, RestartPolicy
from pleiades.core.units import plural
from pleiades.runtime import forkserver, startup
from pleiades.runtime.child import EXIT_WAITING, Beat
from pleiades.runtime.errors import EXIT_FAILED, EXIT_STOPPED
from pleiades.runtime.http import HttpServer, pages
from pleiades.runtime.liveline import LiveLine, Status
from pleiades.runtime.metric_store import metrics_folder
from pleiades.runtime.metrics import Metrics
from pleiades.runtime.notify import Notify
from pleiades.runtime.output import standard_error
from pleiades.runtime.process import EXIT_UNKNOWN, ChildProcess, ProcessSpec

log = logging.getLogger(__name__)

DRAIN_SECONDS = 9.0
"""From the stop request to the SIGKILL of what is left; with it a stop takes under 10 s."""
ONE_STOP_SECONDS = 0.5
"""Stop signals that come so soon after the first count as one: timeout(1) sends its signal to its child,
and then to the child's process group."""
TICK_SECONDS = 0.5
UNKILLABLE_SECONDS = 5.0
"""The time that a killed process may live before it is logged, and before a stop leaves it behind."""

MakeGeneration = Callable[[bool, object], list[ProcessSpec]]
"""Makes new channels and stages. Arguments: whether there is a position of this run to resume from, and
the last `Beat.details` of the generation before."""


class Supervisor:
    """Runs generations of the pipeline until a stop is requested or a restart is of no use.

    Args:
        modules: what the children need to import.
    """

    def __init__(
        self,
        settings: Settings,
        stages: MakeGeneration,
        modules: Sequence[str] = (),
        display: LiveLine | None = None,
    ) -> None:
        self._settings = settings
        self._make_generation = stages
        self._modules = modules
        self._display = display or LiveLine(quiet=settings.log_level > logging.INFO)
        self._start: Callable[[ProcessSpec], ChildProcess]
        self._policy = RestartPolicy()
        self._children: list[ChildProcess] = []
        self._stops = 0
        self._stop_began = 0.0
        self._restarts = 0
        self._published_before = 0
        self._fatal_status = EXIT_FAILED
        self._last = Beat()
        """Position and details of all beats so far; no position before there is one of this run."""
        self._wake, self._waker = socket.socketpair()
        self._notify = Notify()

    def run(self) -> int:
        """Relay until the end; returns the exit status."""
        setproctitle("pleiades: parent")
        settings = self._settings
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._wake)
            stack.enter_context(self._waker)
            stack.callback(self._watch_signals())
            folder = stack.enter_context(metrics_folder())
            stack.enter_context(startup.in_root_directory())
            # It imports while this process goes on.
            context = forkserver.launch(self._modules, folder)
            self._start = partial(ChildProcess, context, settings, folder)
            self._metrics = Metrics("parent", folder)
            standard_error().count_dropped(self._metrics.log_lines_dropped.inc)
            served = pages(self._unhealthy, self._unready, self._processes)
            server = HttpServer(settings.metrics_host, settings.metrics_port, served)
            stack.callback(server.close)
            host = settings.metrics_host or "*"
            shown = f"[{host}]" if ":" in host else host
            log.info("metrics on http://%s:%d/metrics", shown, server.port)
            stack.callback(
                lambda: self._display.close(self._published(), self._restarts, self._last.details)
            )
            stack.callback(self._end_children)
            status = self._generations()
        if self._last.position:
            log.info("last position: %s", self._last.position)
        published = plural(self._published_before, "event")
        log.info("stopped: %s published, %s", published, plural(self._restarts, "restart"))
        return status

    def _watch_signals(self) -> Callable[[], object]:
        """Have signals wake the loop; returns what ends that."""
        before = [(number, signal.getsignal(number)) for number in startup.STOP_SIGNALS]
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        startup.on_stop_signals(lambda _number, _frame: None)

        def unwatch() -> None:
            signal.set_wakeup_fd(-1)
            # Whoever waits for a reader of the results can be stopped, too.
            for number, handler in before:
                signal.signal(number, handler or signal.SIG_DFL)

        return unwatch

    def _generations(self) -> int:
        while True:
            ended = self._one_generation()
            if ended is None:
                return EXIT_STOPPED
            if ended.fatal:
                return self._fatal_status
            # Jitter spreads out instances that failed together; it guards no secret.
            pause_seconds = self._policy.pause_seconds(ended, random.random())  # noqa: S311
            self._restarts += 1
            self._metrics.process_restarts.labels(ended.component).inc()
            self._metrics.goroutine_restarts.labels(ended.component).inc()
            if pause_seconds is None:
                log.error(
                    "gave up: %s ended %d times in a row without any progress. Committed events "
                    "are safe, and a new start resumes after them; the log above says why",
                    ended.component,
                    self._policy.failures,
                )
                return EXIT_FAILED
            log.warning(
                "%s ended; starting all processes again from the durable position in %.1f s. "
                "No event is lost",
                ended.component,
                pause_seconds,
            )
            deadline = time.monotonic() + pause_seconds
            while not self._stops and (left := deadline - time.monotonic()) > 0:
                self._wait(min(left, TICK_SECONDS))
                self._show(
                    0.0, f"{ended.component} ended, all processes start again in {left:.0f} s"
                )
            if self._stops:
                return EXIT_STOPPED

    def _one_generation(self) -> Ended | None:
        """Run the pipeline to its end; None: it was stopped or has done its work."""
        started = time.monotonic()
        try:
            specs = self._make_generation(bool(self._last.position), self._last.details)
        except OSError as error:
            log.error("can't start %s: %s", "the pipeline", error)
            return Ended("parent", False, False, time.monotonic() - started)
        self._metrics.describe(spec.name for spec in specs)
        # The last one, which opens the destination, takes longest until it is ready.
        for spec in reversed(specs):
            self._take_signals()
            if self._stops:
                return None
            try:
                self._children.insert(0, self._start(spec))
            except OSError as error:
                log.error("can't start %s: %s", spec.name, error)
                self._end_children()
                return Ended(spec.name, False, False, time.monotonic() - started)
        while True:
            self._wait()
            first, children = self._first_to_end(), self._children
            concluded = any(child.spec.concludes and child.exit_status == 0 for child in children)
            if concluded or (first is None and self._stops and self._stop_is_over()):
                self._end_children()
                return None
            if first is not None:
                return self._conclude(first, time.monotonic() - started)
            lag_seconds = max(child.beat.lag_seconds for child in children)
            problems = [child.beat.problem for child in children if child.beat.problem]
            self._show(lag_seconds, "; ".join(problems))

    def _show(self, lag_seconds: float, problem: str) -> None:
        details = self._last.details
        self._display.show(Status(self._published(), lag_seconds, self._restarts, details, problem))

    def _wait(self, seconds: float = TICK_SECONDS) -> None:
        """Wait for a signal, a beat or a child's end, and take note of them."""
        waiting: list[connection.Connection | socket.socket | int] = [self._wake]
        for child in self._children:
            # One that has ended stays ready.
            if child.exit_status is None:
                waiting += [child.beats, child.sentinel]
        connection.wait(waiting, seconds)
        for child in self._children:
            self._listen(child)
        self._take_signals()
        self._notify.turn(self._unready)
        if os.getpid() == 1:
            self._reap()

    def _listen(self, child: ChildProcess) -> None:
        child.listen()
        last = self._last
        last.position = child.beat.position or last.position
        last.details = child.beat.details or last.details

    def _take_signals(self) -> None:
        try:
            numbers = self._wake.recv(64)
        except BlockingIOError:
            return
        for number in numbers:
            if number not in startup.STOP_SIGNALS:
                continue
            if not self._stops:
                self._begin_stop(signal.Signals(number).name)
            elif time.monotonic() - self._stop_began > ONE_STOP_SECONDS:
                self._stops += 1

    def _begin_stop(self, name: str) -> None:
        self._stops = 1
        self._stop_began = time.monotonic()
        self._notify.stopping()
        log.info("%s: stopping; first the reader, then events in flight are committed", name)
        for child in self._children:
            if child.spec.stoppable:
                child.send(signal.SIGTERM)

    def _stop_is_over(self) -> bool:
        late = time.monotonic() - self._stop_began >= DRAIN_SECONDS
        if self._stops > 1:
            log.warning("second signal: leaving at once; the next start resumes without loss")
        elif late:
            log.warning(
                "could not finish within %.0f s: leaving; the next start fetches again what is not "
                "committed",
                DRAIN_SECONDS,
            )
        return late or self._stops > 1

    def _first_to_end(self) -> ChildProcess | None:
        """The child that ended or hangs, if any.

        A clean end is expected while stopping, and where the work has an end.
        """
        ending = self._stops or any(child.spec.concludes for child in self._children)
        for child in self._children:
            if child.exit_status is not None and not (ending and child.exit_status == 0):
                return child
        if all(child.exit_status == 0 for child in self._children):
            return self._children[0]
        # A child that is stopped within a write leaves half a message in the pipe, and its reader waits
        # for the rest. Both fall silent, and the one with the shorter announced wait is named here. All
        # are restarted either way.
        for child in self._silent_children():
            if child.exit_status is None:
                log.error(
                    "%s hangs: no sign of life for %.0f s (or it waits for a process that hangs)",
                    child.spec.name,
                    child.silent_seconds(),
                )
                return child
        return None

    def _silent_children(self) -> list[ChildProcess]:
        limit = self._settings.hang_timeout_seconds
        return [child for child in self._children if child.silent_seconds() > limit]

    def _conclude(self, first: ChildProcess, lived_seconds: float) -> Ended | None:
        # After an unexpected clean end, an end marker may still run through the pipeline. The rest is
        # killed all the same: the last commit tells where to resume.
        fatal_status, exit_status = first.fatal_status, first.exit_status
        if fatal_status is not None:
            self._fatal_status = fatal_status
        elif exit_status == EXIT_UNKNOWN:
            log.error("%s died with the forkserver, which was killed", first.spec.name)
        elif exit_status is not None and exit_status < 0:
            level = logging.DEBUG if self._stops else logging.ERROR
            log.log(level, "%s was killed by signal %d", first.spec.name, -exit_status)
        committed = self._end_children()
        if self._stops and fatal_status is None:
            return None
        fatal, waiting = fatal_status is not None, exit_status == EXIT_WAITING
        return Ended(first.spec.name, fatal, committed > 0, lived_seconds, waiting)

    def _end_children(self) -> int:
        """Kill all that live; returns how often this generation committed something new."""
        for child in self._children:
            child.send(signal.SIGKILL)
        self._await_their_end()
        # Until they are dead they commit.
        for child in self._children:
            self._listen(child)
        self._published_before = self._published()
        children, self._children = self._children, []
        for child in children:
            child.close()
        return sum(child.beat.committed_total for child in children)

    def _await_their_end(self) -> None:
        """Wait until the killed are dead. They hold the destination: no other may start before."""
        began = time.monotonic()
        said = False
        while alive := [child for child in self._children if child.exit_status is None]:
            connection.wait([self._wake, *(child.sentinel for child in alive)], TICK_SECONDS)
            self._take_signals()
            self._notify.turn(self._unready)
            lasted = time.monotonic() - began
            names = ", ".join(child.spec.name for child in alive)
            if lasted <= UNKILLABLE_SECONDS:
                continue
            if self._stops:
                log.error(
                    "leaving %s behind, which can't be killed: a disk does not answer it. It ends when "
                    "the disk answers; until then a new start finds the destination held",
                    names,
                )
                logging.shutdown()
                # Any other way to exit waits for the child.
                os._exit(EXIT_FAILED)
            if not said:
                log.error(
                    "%s can't be killed: a disk does not answer it. Waiting until the disk answers; no "
                    "event is lost",
                    names,
                )
            said = True

    def _reap(self) -> None:
        """As PID 1, reap orphans that the kernel hands over. `multiprocessing` reaps its forkserver."""
        with contextlib.suppress(ChildProcessError):
            while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if dead.si_pid == forkserver.pid():
                    return
                os.waitpid(dead.si_pid, 0)

    def _published(self) -> int:
        return self._published_before + sum(child.beat.published_total for child in self._children)

    def _processes(self) -> dict[str, int]:
        return {"parent": os.getpid()} | {child.spec.name: child.pid for child in self._children}

    def _unhealthy(self) -> list[str]:
        if not self._children:
            return ["the pipeline is between two generations"]
        return [f"{child.spec.name} shows no sign of life" for child in self._silent_children()]

    def _unready(self) -> list[str]:
        unready = []
        for child in self._children:
            if not child.beat.ready:
                why = f": {child.beat.problem}" if child.beat.problem else ""
                unready.append(f"{child.spec.name} is not ready{why}")
        return self._unhealthy() + unready
