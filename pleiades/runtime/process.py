"""One child process as the parent sees it: start, heartbeat, end."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext

from pleiades.config.settings import Settings
from pleiades.runtime import child, forkserver
from pleiades.runtime.child import EXIT_FATAL_BASE, Beat

BEAT_BYTES = 512 * 1024  # more than the kernel takes as one message
REPORT_SECONDS = 1.0  # for the forkserver to report the exit status of a dead child
EXIT_UNKNOWN = 255  # of a child whose forkserver died first, as `multiprocessing` gives it


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to start: `module.run(child, metrics, *arguments)`."""

    name: str
    module: str
    arguments: tuple[object, ...]
    stoppable: bool = False
    """SIGTERM asks this one to stop; the others then follow by the end marker."""
    concludes: bool = False
    """When this one ends well, the work is done. Without such a stage only a stop ends the program."""


class ChildProcess:
    """One running stage.

    Args:
        folder: see `Metrics`.

    Raises:
        OSError: the process could not be started.
    """

    def __init__(
        self, context: ForkServerContext, settings: Settings, folder: str, spec: ProcessSpec
    ) -> None:
        self.spec = spec
        self.beat = Beat()
        self._last_seen = time.monotonic()
        self._exit_status: int | None = None
        # It keeps messages apart, and takes one whole or not at all: a sender never has to wait.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.beats = Connection(ours.detach(), writable=False)
        os.set_blocking(self.beats.fileno(), False)
        with Connection(theirs.detach()) as writer:
            arguments = spec, settings, folder, writer
            self._process = context.Process(target=child.run, args=arguments, daemon=True)
            forkserver.start(self._process, folder)
        self.pid = self._process.pid or 0
        self._pidfd = None
        # It fails for a process that is dead already, and in Linux before 5.3.
        with contextlib.suppress(OSError):
            self._pidfd = os.pidfd_open(self.pid)
        self.sentinel = self._process.sentinel if self._pidfd is None else self._pidfd
        """Becomes ready when the process is dead. The forkserver's word alone does not say that: the
        forkserver can die first."""
        self._ended = select.poll()
        self._ended.register(self.sentinel)

    def listen(self) -> None:
        """Take the beats that have come."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while message := os.read(self.beats.fileno(), BEAT_BYTES):
                self.beat = pickle.loads(message)  # noqa: S301  # a process of ours wrote it
                self._last_seen = time.monotonic()

    def silent_seconds(self) -> float:
        """Its silence beyond the time that it announced, in seconds."""
        return time.monotonic() - self._last_seen - self.beat.allowed_seconds

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""
        if self._exit_status is None and self._ended.poll(0):
            self._process.join(REPORT_SECONDS)
            if self._process.exitcode is None:
                # The forkserver is hung, and nobody else can tell.
                forkserver.kill()
                self._process.join()
            self._exit_status = self._process.exitcode
        return self._exit_status

    @property
    def fatal_status(self) -> int | None:
        """The program's exit status, if this ended with a `Fatal`."""
        status = self.exit_status
        if status is None or not EXIT_FATAL_BASE <= status < EXIT_UNKNOWN:
            return None
        return status - EXIT_FATAL_BASE

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended. A process that a disk holds in the kernel dies later."""
        if self.exit_status is None:
            with contextlib.suppress(ProcessLookupError):
                if self._pidfd is None:
                    os.kill(self.pid, number)
                else:
                    signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Close what belonged to it, once it is dead."""
        self._process.close()
        self.beats.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
