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
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext, SpawnProcess

from setproctitle import setproctitle

from pleiades.core.restart import Ended, GiveUp, RestartPolicy
from pleiades.runtime import child
from pleiades.runtime.child import EXIT_FATAL_BASE, Beat, ChildSettings
from pleiades.runtime.errors import EXIT_FAILED, EXIT_STOPPED
from pleiades.runtime.health import HealthServer
from pleiades.runtime.liveline import LiveLine
from pleiades.runtime.metrics import FOLDER_VARIABLE, Metrics, prepare_folder
from pleiades.runtime.settings import Settings

log = logging.getLogger(__name__)

DRAIN_SECONDS = 9.0
"""From the stop request to the SIGKILL of what is left; with it a stop takes under 10 s."""
TICK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One process to start: `target(life, metrics, *arguments)`."""

    name: str
    target: Callable[..., None]
    arguments: tuple[object, ...]
    stoppable: bool = False
    """SIGTERM asks this one to stop; the others then follow by the end marker."""


Stages = Callable[[SpawnContext, bool], list[StageSpec]]
"""Makes new channels and stages; the flag: there is a position of this run to resume from."""


class _Running:
    """One child process."""

    def __init__(self, context: SpawnContext, spec: StageSpec, settings: Settings) -> None:
        self.spec = spec
        self.beats, theirs = context.Pipe(duplex=False)
        self.last_seen = time.monotonic()
        self.allowed_seconds = 0.0
        self.beat: Beat | None = None
        own = ChildSettings(spec.name, settings.log_level, settings.log_format)
        self.process: SpawnProcess = context.Process(
            target=child.run,
            args=(spec.target, spec.arguments, own, theirs, spec.stoppable),
            name=spec.name,
        )
        self.process.start()
        theirs.close()

    def listen(self) -> None:
        """Take all beats that are there."""
        with contextlib.suppress(EOFError, OSError):
            while self.beats.poll():
                beat = self.beats.recv()
                self.beat = beat
                self.allowed_seconds = beat.allowed_seconds
                self.last_seen = time.monotonic()

    def silent_seconds(self) -> float:
        """For how long it has been silent beyond what it announced."""
        return time.monotonic() - self.last_seen - self.allowed_seconds

    @property
    def ready(self) -> bool:
        return self.beat is not None and self.beat.ready

    def end(self) -> None:
        """Kill it, if it lives, and forget it."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.process.close()
        self.beats.close()


class Supervisor:
    """Runs generations of the pipeline until a stop is requested or nothing helps any more."""

    def __init__(self, settings: Settings, stages: Stages) -> None:
        self._settings = settings
        self._stages = stages
        self._context = multiprocessing.get_context("spawn")
        self._policy = RestartPolicy()
        self._children: list[_Running] = []
        self._opened = False
        self._stops = 0
        self._stop_deadline = 0.0
        self._restarts = 0
        self._published_before = 0
        self._fatal_status = EXIT_FAILED
        self._wake, self._waker = socket.socketpair()

    def run(self) -> int:
        """Relay until the end; returns the exit status."""
        setproctitle("pleiades: parent")
        folder_was_given = FOLDER_VARIABLE in os.environ
        folder = prepare_folder()
        self._metrics = Metrics("parent")
        settings = self._settings
        server = HealthServer(
            settings.metrics_host, settings.metrics_port, self._unhealthy, self._unready
        )
        log.info("metrics on http://%s:%d/metrics", settings.metrics_host or "*", server.port)
        self._live = LiveLine(settings.log_level)
        self._watch_signals()
        try:
            status = self._generations()
        finally:
            self._end_children()
            self._live.close()
            server.close()
            if not folder_was_given:
                shutil.rmtree(folder, ignore_errors=True)
        log.info(
            "stopped: %d events published, %d restarts", self._published_before, self._restarts
        )
        return status

    def _watch_signals(self) -> None:
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)

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
        specs = self._stages(self._context, self._opened)
        self._metrics.describe(spec.name for spec in specs)
        self._children = [_Running(self._context, spec, self._settings) for spec in specs]
        first: _Running | None = None
        while first is None:
            self._wait()
            if self._stops and self._stop_is_over():
                self._end_children()
                return None
            first = self._first_to_end()
            self._live.show(self._published(), self._lag(), self._restarts)
        return self._conclude(first, time.monotonic() - started)

    def _wait(self, seconds: float = TICK_SECONDS) -> None:
        """Wait for a signal, a beat or a child's end, and take note of them."""
        waiting: list[Connection | socket.socket | int] = [self._wake]
        for running in self._children:
            waiting += [running.beats, running.process.sentinel]
        connection.wait(waiting, seconds)
        for running in self._children:
            running.listen()
            if running.spec.name == "publisher" and running.ready:
                self._opened = True
        self._take_signals()
        if os.getpid() == 1:
            self._reap()

    def _take_signals(self) -> None:
        try:
            numbers = self._wake.recv(64)
        except BlockingIOError:
            return
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stops += 1
                if self._stops == 1:
                    self._begin_stop(signal.Signals(number).name)

    def _begin_stop(self, name: str) -> None:
        log.info("%s: stopping; the reader first, then what is in flight is committed", name)
        self._stop_deadline = time.monotonic() + DRAIN_SECONDS
        for running in self._children:
            if running.spec.stoppable and running.process.is_alive():
                running.process.terminate()

    def _stop_is_over(self) -> bool:
        if not any(running.process.is_alive() for running in self._children):
            return True
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

    def _first_to_end(self) -> _Running | None:
        """The child that ended or hangs, if any. While stopping, a clean end is no news."""
        for running in self._children:
            exit_status = running.process.exitcode
            if exit_status is not None and not (self._stops and exit_status == 0):
                return running
        if all(running.process.exitcode == 0 for running in self._children):
            return self._children[0]
        for running in self._children:
            silent = running.silent_seconds()
            if running.process.is_alive() and silent > self._settings.hang_timeout_seconds:
                log.error("%s hangs: no sign of life for %.0f s", running.spec.name, silent)
                return running
        return None

    def _conclude(self, first: _Running, lived_seconds: float) -> Ended | None:
        # A clean end that nobody asked for: the end marker still runs through the pipeline, but
        # the rest is killed all the same; the next generation begins where the commits ended.
        exit_status = first.process.exitcode
        fatal = exit_status is not None and exit_status >= EXIT_FATAL_BASE
        if fatal and exit_status is not None:
            self._fatal_status = exit_status - EXIT_FATAL_BASE
        elif exit_status is not None and exit_status < 0:
            log.error("%s was killed by signal %d", first.spec.name, -exit_status)
        for running in self._children:
            running.listen()
        committed = any(
            running.beat is not None and running.beat.committed_total for running in self._children
        )
        self._end_children()
        if self._stops and not fatal:
            return None
        return Ended(first.spec.name, fatal, committed, lived_seconds)

    def _end_children(self) -> None:
        self._published_before = self._published()
        children, self._children = self._children, []
        for running in children:
            running.end()

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
