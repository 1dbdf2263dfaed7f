"""What the parent does after a pipeline has ended by itself.

Law: a generation that made progress starts the count of failures anew. Progress is what no generation
before it has brought: a position beyond the one that the program had reached, an event or a dead letter
that is new. To commit repeats once more is none. After `MAX_RESTARTS` restarts
in a row without progress it is the orchestrator's turn. A fatal error is never answered by a restart,
and trouble at the destination that passes always is.
"""

from __future__ import annotations

from dataclasses import dataclass

from pleiades.core.backoff import Backoff

MAX_RESTARTS = 5
"""Restarts in a row without progress before giving up."""
RESTART_BACKOFF = Backoff(first_seconds=0.2, max_seconds=10.0)
HEALTHY_SECONDS = 60.0
"""After a generation that lived this long the pauses begin short again. Progress alone does not
shorten them: a pipeline that commits a little and crashes, time and again, must not hurry."""
STABLE_SECONDS = 600.0
"""A generation that lived this long counts as progress: an idle stream has nothing to commit."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a generation came to its end."""

    component: str
    """The stage that ended first."""
    fatal: bool
    """It said itself that another try is of no use."""
    progressed: bool
    """It committed something that no generation before it had brought."""
    lived_seconds: float
    waiting: bool = False
    """It ended because of trouble at the destination, which passes: for that there is no giving up."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Start again after a pause."""

    after_seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the program."""


@dataclass(slots=True)
class RestartPolicy:
    """Counts the restarts without progress."""

    failures: int = 0
    """In a row, without progress."""
    restarts: int = 0
    """In a row, each after a short life."""

    def decide(self, ended: Ended, jitter: float) -> Restart | GiveUp:
        """What to do after a generation has ended; `jitter` is in [0, 1)."""
        if ended.fatal:
            return GiveUp()
        if ended.progressed or ended.lived_seconds >= STABLE_SECONDS:
            self.failures = 0
        if ended.lived_seconds >= HEALTHY_SECONDS:
            self.restarts = 0
        self.failures += not ended.waiting
        self.restarts += 1
        if self.failures > MAX_RESTARTS:
            return GiveUp()
        return Restart(RESTART_BACKOFF.pause_seconds(self.restarts, jitter))
