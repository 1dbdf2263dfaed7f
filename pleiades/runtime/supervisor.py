"""The parent: starts the processes, watches them, starts all of them again, stops them.

Crash-only: whichever child ends or hangs, all others are killed, the channels are thrown away and the
pipeline begins anew from the durable position. What a killed process held, and a queue it touched, are
gone; durable truth is not. Signal handlers only enqueue; one loop acts (the way of gunicorn's arbiter).
What is decided is in `core/restart.py`; here is how it is done.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Protocol

from setproctitle import setproctitle

from pleiades.config.settings import Settings
from pleiades.core.restart import Ended, GiveUp, RestartPolicy
from pleiades.core.units import plural
from pleiades.runtime.child import EXIT_WAITING, STOP_SIGNALS, Beat
from pleiades.runtime.errors import EXIT_FAILED, EXIT_STOPPED
from pleiades.runtime.http import HttpServer
from pleiades.runtime.liveline import LiveLine
from pleiades.runtime.metric_store import metrics_folder
from pleiades.runtime.metrics import Metrics
from pleiades.runtime.notify import Notify
from pleiades.runtime.pages import pages
from pleiades.runtime.stage import Running, StageSpec

log = logging.getLogger(__name__)

DRAIN_SECONDS = 9.0
"""From the stop request to the SIGKILL of what is left; with it a stop takes under 10 s."""
TICK_SECONDS = 0.5
LEAVE_SECONDS = 5.0
"""So long a stop waits for what it has killed."""
UNKILLABLE_SECONDS = 5.0
"""After which it is said that a process does not die."""


Stages = Callable[[SpawnContext, bool, object], list[StageSpec]]
"""Makes new channels and stages. The flag: there is a position of this run to resume from; the rest:
`Beat.details` as the generation before told it last."""


class Display(Protocol):
    """What a person sees meanwhile."""

    def show(self, published: int, lag_seconds: float, restarts: int, details: object) -> None:
        """Called about twice a second; `details` as in `Beat`."""

    def close(self, published: int, restarts: int, details: object) -> None:
        """Called at the end, when all processes have ended and their metrics can still be read."""


class Supervisor:
    """Runs generations of the pipeline until a stop is requested or nothing helps any more."""

    def __init__(self, settings: Settings, stages: Stages, display: Display | None = None) -> None:
        self._settings = settings
        self._stages = stages
        self._display = display or LiveLine(settings.log_level)
        self._context = multiprocessing.get_context("spawn")
        self._policy = RestartPolicy()
        self._children: list[Running] = []
        self._stops = 0
        self._stop_deadline = 0.0
        self._restarts = 0
        self._published_before = 0
        self._fatal_status = EXIT_FAILED
        self._position = ""
        """The last that is known to be durable, as an SSE id; empty before there is one of this run."""
        self._details: object = None
        """The last that a stage told of its work."""
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
            self._metrics = Metrics("parent", stack.enter_context(metrics_folder()))
            served = pages(self._unhealthy, self._unready, self._processes)
            server = HttpServer(settings.metrics_host, settings.metrics_port, served)
            stack.callback(server.close)
            host = settings.metrics_host or "*"
            log.info(
                "metrics on http://%s:%d/metrics", f"[{host}]" if ":" in host else host, server.port
            )
            stack.callback(self._close_display)
            stack.callback(self._end_children)
            status = self._generations()
        if self._position:
            log.info("last position: %s", self._position)
        log.info(
            "stopped: %s published, %s",
            plural(self._published_before, "event"),
            plural(self._restarts, "restart"),
        )
        return status

    def _close_display(self) -> None:
        self._display.close(self._published(), self._restarts, self._details)

    def _watch_signals(self) -> Callable[[], object]:
        """Have signals wake the loop; returns what ends that."""
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda _number, _frame: None)
        return lambda: signal.set_wakeup_fd(-1)

    def _generations(self) -> int:
        while True:
            ended = self._one_generation()
            if ended is None:
                return EXIT_STOPPED
            if ended.fatal:
                return self._fatal_status
            # Jitter spreads out instances that failed together; it guards no secret.
            verdict = self._policy.decide(ended, random.random())  # noqa: S311
            self._restarts += 1
            self._metrics.process_restarts.labels(ended.component).inc()
            self._metrics.goroutine_restarts.labels(ended.component).inc()
            if isinstance(verdict, GiveUp):
                log.error(
                    "gave up: %s ended %d times in a row without any progress. What was "
                    "committed is safe and a new start resumes from it; the log above says why",
                    ended.component,
                    self._policy.failures,
                )
                return EXIT_FAILED
            log.warning(
                "%s ended; starting all processes again from the durable position in %.1f s. "
                "Nothing is lost",
                ended.component,
                verdict.after_seconds,
            )
            if self._rest(verdict.after_seconds):
                return EXIT_STOPPED

    def _one_generation(self) -> Ended | None:
        """Run the pipeline to its end; None if that was asked for."""
        started = time.monotonic()
        specs = self._stages(self._context, bool(self._position), self._details)
        self._metrics.describe(spec.name for spec in specs)
        for spec in specs:
            self._take_signals()
            if self._stops:
                return None
            try:
                self._children.append(Running(self._context, spec, self._settings))
            except OSError as error:
                log.error("can't start %s: %s", spec.name, error)
                self._end_children()
                return Ended(spec.name, False, False, time.monotonic() - started)
        first: Running | None = None
        while first is None:
            self._wait()
            first = self._first_to_end()
            if self._is_concluded() or (first is None and self._stops and self._stop_is_over()):
                self._end_children()
                return None
            self._display.show(self._published(), self._lag(), self._restarts, self._details)
        return self._conclude(first, time.monotonic() - started)

    def _wait(self, seconds: float = TICK_SECONDS) -> None:
        """Wait for a signal, a beat or a child's end, and take note of them."""
        waiting: list[Connection | socket.socket | int] = [self._wake]
        for running in self._children:
            # What has ended stays ready for ever: waiting for it would be no waiting.
            if running.exit_status is None:
                waiting += [running.beats, running.process.sentinel]
        connection.wait(waiting, seconds)
        for running in self._children:
            running.listen()
            self._learn(running.beat)
        self._take_signals()
        self._notify.turn(self._unready)
        if os.getpid() == 1:
            self._reap()

    def _learn(self, beat: Beat | None) -> None:
        if beat is not None:
            self._position = beat.position or self._position
            self._details = beat.details or self._details

    def _take_signals(self) -> None:
        try:
            numbers = self._wake.recv(64)
        except BlockingIOError:
            return
        for number in numbers:
            if number in STOP_SIGNALS:
                self._stops += 1
                if self._stops == 1:
                    self._begin_stop(signal.Signals(number).name)

    def _begin_stop(self, name: str) -> None:
        self._notify.stopping()
        log.info("%s: stopping; the reader first, then what is in flight is committed", name)
        self._stop_deadline = time.monotonic() + DRAIN_SECONDS
        for running in self._children:
            if running.spec.stoppable and running.process.is_alive():
                running.process.terminate()

    def _stop_is_over(self) -> bool:
        if self._stops > 1:
            log.warning("second signal: leaving at once; the next start resumes without loss")
            return True
        if time.monotonic() >= self._stop_deadline:
            log.warning(
                "could not finish within %.0f s: leaving; what is not committed is fetched "
                "again at the next start",
                DRAIN_SECONDS,
            )
            return True
        return False

    def _first_to_end(self) -> Running | None:
        """The child that ended or hangs, if any.

        A clean end is no news while stopping, nor where there is an end to the work.
        """
        ending = self._stops or any(running.spec.concludes for running in self._children)
        for running in self._children:
            if running.exit_status is not None and not (ending and running.exit_status == 0):
                return running
        if all(running.exit_status == 0 for running in self._children):
            return self._children[0]
        # A child that is stopped in the middle of a write leaves half a message in the pipe, and
        # `Queue.get` waits for the rest beyond its timeout. So the one that hangs and the one that
        # reads from it both fall silent, and who is named here is who announced the shorter wait.
        # All are started afresh either way.
        for running in self._children:
            silent = running.silent_seconds()
            if running.exit_status is None and silent > self._settings.hang_timeout_seconds:
                log.error(
                    "%s hangs: no sign of life for %.0f s (or it waits for a process that hangs)",
                    running.spec.name,
                    silent,
                )
                return running
        return None

    def _is_concluded(self) -> bool:
        return any(
            running.spec.concludes and running.exit_status == 0 for running in self._children
        )

    def _conclude(self, first: Running, lived_seconds: float) -> Ended | None:
        # After a clean end that nobody asked for, an end marker may still run through the
        # pipeline; the rest is killed all the same, for commits tell where to begin again.
        fatal_status, exit_status = first.fatal_status, first.exit_status
        if fatal_status is not None:
            self._fatal_status = fatal_status
        elif exit_status is not None and exit_status < 0:
            level = logging.DEBUG if self._stops else logging.ERROR
            log.log(level, "%s was killed by signal %d", first.spec.name, -exit_status)
        committed = self._end_children()
        if self._stops and fatal_status is None:
            return None
        return Ended(
            first.spec.name,
            fatal_status is not None,
            committed > 0,
            lived_seconds,
            exit_status == EXIT_WAITING,
        )

    def _end_children(self) -> int:
        """Kill all that live; returns how often this generation committed something new."""
        for running in self._children:
            running.kill()
        self._await_their_end()
        committed = 0
        for running in self._children:
            running.listen()
            if running.beat is not None:
                committed += running.beat.committed_total
            self._learn(running.beat)
        # After the kill, for until then they commit.
        self._published_before = self._published()
        children, self._children = self._children, []
        for running in children:
            running.forget()
        return committed

    def _await_their_end(self) -> None:
        """Until the killed are dead. No other may begin before: they hold the destination."""
        began = time.monotonic()
        said = False
        while alive := [running for running in self._children if running.exit_status is None]:
            connection.wait([self._wake, *(one.process.sentinel for one in alive)], TICK_SECONDS)
            self._take_signals()
            self._notify.turn(self._unready)
            lasted = time.monotonic() - began
            if self._stops and lasted > LEAVE_SECONDS:
                log.error(
                    "leaving %s behind, which can't be killed: a disk does not answer it. It ends when "
                    "that does; until then a new start finds the destination held",
                    ", ".join(one.spec.name for one in alive),
                )
                logging.shutdown()
                # Whatever else there is to do at the end would wait for it.
                os._exit(EXIT_FAILED)
            if lasted > UNKILLABLE_SECONDS and not said:
                said = True
                log.error(
                    "%s can't be killed: a disk does not answer it. Waiting until that does; nothing is "
                    "lost",
                    ", ".join(one.spec.name for one in alive),
                )

    def _rest(self, seconds: float) -> bool:
        """Wait before a restart; True if a stop came meanwhile."""
        deadline = time.monotonic() + seconds
        while not self._stops and (left := deadline - time.monotonic()) > 0:
            self._wait(min(left, TICK_SECONDS))
        return self._stops > 0

    def _reap(self) -> None:
        """As PID 1, bury the orphans that the kernel hands over, but not our own children."""
        own = {running.process.pid for running in self._children}
        with contextlib.suppress(ChildProcessError):
            while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if dead.si_pid in own:
                    return
                os.waitpid(dead.si_pid, 0)

    def _published(self) -> int:
        return self._published_before + sum(
            running.beat.published_total for running in self._children if running.beat is not None
        )

    def _processes(self) -> dict[str, int]:
        children = {running.spec.name: running.process.pid for running in self._children}
        return {"parent": os.getpid()} | {name: pid for name, pid in children.items() if pid}

    def _lag(self) -> float:
        return max(
            (running.beat.lag_seconds for running in self._children if running.beat is not None),
            default=0.0,
        )

    def _unhealthy(self) -> list[str]:
        children = self._children
        if not children:
            return ["the pipeline is between two generations"]
        limit = self._settings.hang_timeout_seconds
        return [
            f"{running.spec.name} shows no sign of life"
            for running in children
            if running.silent_seconds() > limit
        ]

    def _unready(self) -> list[str]:
        children = self._children
        wrong = self._unhealthy()
        wrong += [f"{running.spec.name} is not ready" for running in children if not running.ready]
        return wrong
