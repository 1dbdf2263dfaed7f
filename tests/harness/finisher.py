"""Finishes segments of an archive in the process of the test."""

from __future__ import annotations

from pleiades.sinks.archive.finish import Finished, Job, finish


class InlineFinisher:
    """See `Finisher`; its job is done when the result is taken."""

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
