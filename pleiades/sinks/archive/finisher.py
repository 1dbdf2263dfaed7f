"""Finishes segments in a process of its own: it takes processor time and memory, and the relay goes on.

The process ends with the segment, and its memory is free.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Protocol

from pleiades.sinks.archive.finish import COMMAND, Finished, Job, finish, read_answer

_CODE = Path(__file__).resolve().parents[3]
"""The folder of the package `pleiades`: the process runs the same code, wherever it is installed."""


class Finisher(Protocol):
    """Finishes one segment at a time."""

    def start(self, job: Job) -> None:
        """Begin with a segment.

        Raises:
            OSError: there is no process for it.
        """

    def take(self) -> Finished | None:
        """The result, once; None: there is none yet.

        Raises:
            OSError: the job failed, for example because the disk is full. It can be repeated.
            DamagedSegment: somebody damaged the raw file.
        """

    def close(self) -> None:
        """End at once; what was begun can be repeated."""


class FinisherProcess:
    """The usual finisher."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, job: Job) -> None:
        """See `Finisher.start`."""
        path = os.pathsep.join(filter(None, (str(_CODE), os.environ.get("PYTHONPATH"))))
        self._process = process = subprocess.Popen(  # noqa: S603  # our own program
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env={**os.environ, "PYTHONPATH": path},
        )
        if process.stdin is None:
            raise AssertionError("it has a pipe")
        # Shorter than a pipe's buffer.
        with process.stdin:
            process.stdin.write(job.encoded())

    def take(self) -> Finished | None:
        """See `Finisher.take`."""
        process = self._process
        if process is None or process.poll() is None or process.stdout is None:
            return None
        self._process = None
        with process.stdout:
            answer = process.stdout.read()
        if process.returncode < 0:
            raise OSError(0, f"signal {-process.returncode} ended it")
        try:
            return read_answer(answer)
        except ValueError:
            raise OSError(0, f"it ended with status {process.returncode}") from None

    def close(self) -> None:
        """See `Finisher.close`."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


class InlineFinisher:
    """Finishes in this process; for the probe of a file system, and for tests."""

    def __init__(self) -> None:
        self._job: Job | None = None

    def start(self, job: Job) -> None:
        """See `Finisher.start`."""
        self._job = job

    def take(self) -> Finished | None:
        """See `Finisher.take`."""
        job, self._job = self._job, None
        return None if job is None else finish(job)

    def close(self) -> None:
        """See `Finisher.close`."""
        self._job = None
