"""One child process as the parent sees it: what to run, its heartbeat, its end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess

from pleiades.config.settings import Settings
from pleiades.runtime import child
from pleiades.runtime.child import EXIT_FATAL_BASE, Beat, ChildSettings
from pleiades.runtime.metric_store import FOLDER_VARIABLE


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One process to start: `target(life, metrics, *arguments)`."""

    name: str
    target: Callable[..., None]
    arguments: tuple[object, ...]
    stoppable: bool = False
    """SIGTERM asks this one to stop; the others then follow by the end marker."""
    concludes: bool = False
    """When this one ends well, the work is done. Without such a stage there is no end but a stop."""


class Running:
    """One child process."""

    def __init__(self, context: SpawnContext, spec: StageSpec, settings: Settings) -> None:
        self.spec = spec
        self.beats, theirs = context.Pipe(duplex=False)
        self.last_seen = time.monotonic()
        self.allowed_seconds = 0.0
        self.beat: Beat | None = None
        folder = os.environ[FOLDER_VARIABLE]
        own = ChildSettings(spec.name, settings.log_level, settings.log_format, folder)
        self.process: SpawnProcess = context.Process(
            target=child.run,
            args=(spec.target, spec.arguments, own, theirs, spec.stoppable),
            name=spec.name,
            daemon=True,
        )
        # A stop that comes before the child can handle it waits until it can.
        signal.pthread_sigmask(signal.SIG_BLOCK, child.STOP_SIGNALS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, child.STOP_SIGNALS)
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
        """What it said last; False before it said anything."""
        return self.beat is not None and self.beat.ready

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""
        return self.process.exitcode

    @property
    def fatal_status(self) -> int | None:
        """The program's exit status, if this ended with a `Fatal`."""
        status = self.exit_status
        return None if status is None or status < EXIT_FATAL_BASE else status - EXIT_FATAL_BASE

    def kill(self) -> None:
        """End it, soon: a process that waits for a disk in the kernel dies when that answers."""
        if self.exit_status is None:
            self.process.kill()

    def forget(self) -> None:
        """Close what belonged to it; only when it is dead."""
        self.process.close()
        self.beats.close()
