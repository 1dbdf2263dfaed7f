"""Decides what the parent does when a generation of the pipeline has ended by itself.

Law: a generation that made progress starts the count of failures anew. Progress is a position, an event
or a dead letter that no generation before it has brought; committing repeats again is none. After
`MAX_RESTARTS` restarts in a row without progress it is the orchestrator's turn. A fatal error is never
answered by a restart. A destination that is unavailable for a while always is.
"""

from __future__ import annotations

from dataclasses import dataclass

from pleiades.core.backoff import Backoff

MAX_RESTARTS = 5
"""Restarts in a row without progress before the program gives up."""
RESTART_BACKOFF = Backoff(first_seconds=0.2, max_seconds=10.0)
HEALTHY_SECONDS = 10.0
"""A generation that made progress and lived this long is replaced at once. Progress alone is not enough:
a pipeline that commits a little and crashes, time and again, must not hurry."""
STABLE_SECONDS = 600.0
"""A generation that lived this long counts as progress: an idle stream has nothing to commit."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a generation."""

    component: str
    """The process that ended first."""
    fatal: bool
    """The process reported that another try is of no use."""
    progressed: bool
    """The generation committed something new."""
    lived_seconds: float
    waiting: bool = False
    """The destination is unavailable, which passes: the program never gives up on that."""


@dataclass(slots=True)
class RestartPolicy:
    """Counts the restarts."""

    failures: int = 0
    """In a row, without progress."""
    short_lives: int = 0
    """In a row."""

    def pause_seconds(self, ended: Ended, jitter: float) -> float | None:
        """The pause before the next generation; None: give up. `jitter` is in [0, 1)."""
        if ended.fatal:
            return None
        stable = ended.lived_seconds >= STABLE_SECONDS
        if ended.progressed or stable:
            self.failures = 0
        self.failures += not ended.waiting
        if self.failures > MAX_RESTARTS:
            return None
        if stable or (ended.progressed and ended.lived_seconds >= HEALTHY_SECONDS):
            self.short_lives = 0
            return 0.0
        self.short_lives += 1
        return RESTART_BACKOFF.pause_seconds(self.short_lives, jitter)
