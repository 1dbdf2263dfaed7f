"""The uploader as the publisher sees it: started, told what is new, listened to, started again.

Law: nothing here waits for the uploader, however slow or broken it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from pleiades.core.backoff import Backoff
from pleiades.core.units import rough_duration
from pleiades.runtime.metrics import UploadMetrics
from pleiades.sinks.archive.program import start_program
from pleiades.sinks.archive.upload import Settings, Status, decode_status, read_state

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "pleiades.sinks.archive.upload_program")
RESTARTS = Backoff(first_seconds=1.0, max_seconds=60.0)
REMIND_SECONDS = 600.0
"""The interval at which a problem that lasts is logged again."""
STOP_SECONDS = 3.0
"""Longer than the uploader takes to end."""
READ_BYTES = 1 << 16


class Uploads:
    """The uploads of one manifest.

    The kernel ends the uploader with the thread that starts it, so all calls come from the same thread,
    which lives as long as the process.
    """

    def __init__(self, settings: Settings, metrics: UploadMetrics) -> None:
        self.status = Status()
        """The last report."""
        self._settings = settings
        self._metrics = metrics
        self._length = 0
        self._sent = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._read = b""
        self._ends = 0
        """How often it ended without having uploaded anything."""
        self._start_at = 0.0
        self._failing_since: float | None = None
        self._logged_at = 0.0
        self._logged = ""

    def announce(self, length: int) -> None:
        """Tell it up to which length the manifest is valid; its segments are in their places."""
        self._length = length
        self.poll()

    def is_done(self) -> bool:
        """True if everything that was announced is uploaded, or can't be uploaded any more."""
        if self._length == 0:
            return True
        with contextlib.suppress(OSError):
            state = read_state(Path(self._settings.state))
            # Its file may be of uploads to another target.
            is_own = state is not None and state.target == self._settings.target
            return is_own and state is not None and state.length >= self._length
        return False

    def poll(self) -> None:
        """Start it if it is not there, take its reports, and count."""
        if self._process is None and time.monotonic() >= self._start_at:
            self._start()
        if self._process is not None:
            self._send()
            self._receive()
        oldest = self.status.oldest_pending
        lag_seconds = 0.0 if oldest is None else max(time.time() - oldest, 0.0)
        self._metrics.lag.set(lag_seconds)
        self._remind()

    def close(self) -> None:
        """End it. An upload that is interrupted is repeated at the next start."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            _pipe(process.stdin).close()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _pipe(process.stdout).close()

    def _start(self) -> None:
        try:
            process = start_program(COMMAND)
        except OSError as error:
            log.warning("the uploader can't be started: %s; segments stay here", error.strerror)
            self._restart_later()
            return
        for pipe in (process.stdin, process.stdout):
            os.set_blocking(_pipe(pipe).fileno(), False)
        self._process, self._read, self._sent = process, b"", -1
        # A pipe takes so much at once.
        os.write(_pipe(process.stdin).fileno(), self._settings.encoded())
        self.status = self.status._replace(
            uploaded=0, uploaded_bytes=0, errors=0, skipped=0, removed=0
        )

    def _send(self) -> None:
        if self._process is None or self._sent == self._length:
            return
        # It is full while the uploader is stopped; the next call tries again.
        with contextlib.suppress(OSError):
            os.write(_pipe(self._process.stdin).fileno(), b"%d\n" % self._length)
            self._sent = self._length

    def _receive(self) -> None:
        if self._process is None:
            return
        output = _pipe(self._process.stdout).fileno()
        with contextlib.suppress(BlockingIOError):
            while read := os.read(output, READ_BYTES):
                *lines, self._read = (self._read + read).split(b"\n")
                for line in lines:
                    self._take(decode_status(line))
            self._ended()

    def _ended(self) -> None:
        if self._process is not None:
            self.close()
            log.warning(
                "the uploader ended and is started again: closed segments stay here until then"
            )
        self._restart_later()

    def _restart_later(self) -> None:
        self._ends += 1
        self._start_at = time.monotonic() + RESTARTS.pause_seconds(self._ends, 0.5)

    def _take(self, status: Status) -> None:
        before, self.status = self.status, status
        metrics = self._metrics
        metrics.pending.set(status.pending_segments)
        metrics.pending_bytes.set(status.pending_bytes)
        metrics.uploaded.inc(status.uploaded - before.uploaded)
        metrics.uploaded_bytes.inc(status.uploaded_bytes - before.uploaded_bytes)
        metrics.errors.inc(status.errors - before.errors)
        metrics.skipped.inc(status.skipped - before.skipped)
        metrics.removed.inc(status.removed - before.removed)
        if status.uploaded > before.uploaded:
            self._ends = 0
        if status.message:
            log.warning("%s", status.message)
        if not status.problem and self._failing_since is not None:
            lasted = rough_duration(time.monotonic() - self._failing_since)
            log.info("uploads to %s work again, after %s", self._settings.target, lasted)
            self._failing_since, self._logged = None, ""

    def _remind(self) -> None:
        problem = self.status.problem
        if not problem:
            return
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if problem != self._logged or now - self._logged_at >= REMIND_SECONDS:
            self._logged, self._logged_at = problem, now
            log.warning("%s", problem)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("it was started with pipes")
    return pipe
