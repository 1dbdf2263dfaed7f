"""Finishes segments in a process of its own: it takes processor time and memory, and the relay goes on.

The process ends with the segment, and its memory is free.
"""

from __future__ import annotations

import subprocess
from typing import Protocol

from pleiades.sinks.archive.finish import COMMAND, Finished, Job, read_answer
from pleiades.sinks.archive.program import start_program


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
        self._process = process = start_program(COMMAND)
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
