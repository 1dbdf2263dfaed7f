"""The contract between the publisher and a destination.

Every sink passes the same suite, tests/contract/test_sinks.py. The publisher calls from one thread:

    open → (is_published | write)* → commit → … → close

- `open` makes the destination ready, keeps other instances out, and says what is durable.
- `write` takes events in upstream order. They need not be durable or visible yet.
- `commit` returns when everything written **and** the checkpoint are durable: the events first or
  both together, never the checkpoint first. It does not give up: trouble that can pass is waited for.
- After a crash at any point, `open` gives a checkpoint that covers no event that is not published.
  Events that are published beyond it are known: by `Opened.window`, by `is_published`, and at the
  latest by `commit`, which leaves them as they are.
- `close` is safe at any time, also twice; it commits nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pleiades.core.position import Checkpoint
from pleiades.core.wire import DeadLetter, Event, TopicPartition


class Remembered(NamedTuple):
    """A published event, as far as a repeat is recognised by it."""

    source: TopicPartition
    reached_ms: int
    """The greatest timestamp that `source` had delivered when it was published, dropped events
    included; more only keeps it longer. The stored position's is never too small."""
    identity: str


@dataclass(frozen=True, slots=True)
class Opened:
    """What a destination knew when it was opened."""

    checkpoint: Checkpoint | None
    """None: nothing is stored, or it was asked to ignore it."""
    window: list[Remembered] = field(default_factory=list)
    """In the order of delivery; empty where the sink recognises all repeats itself."""
    all_told: bool = False
    """Events need not be asked about one by one, while nothing about them is odd: `window` has all there
    is to know, or the next `commit` finds what was there."""


class Committed(NamedTuple):
    """What became of what was written."""

    dead_letters: list[DeadLetter]
    """Those written, and the events that the destination refused for their size."""
    repeated: int = 0
    """Of the events, how many were there already, and were left as they are."""


class Sink(Protocol):
    """A destination of events."""

    def open(self, resume: bool) -> Opened:
        """Prepare the destination; with `resume` false its stored position is ignored.

        Raises:
            Fatal: it can't be used, and waiting would not help.
            DestinationHeld: another instance publishes there.
        """

    def is_published(self, event: Event | DeadLetter) -> bool:
        """Whether the destination has an event which the publisher does not remember.

        See also `Opened.all_told`.
        """

    def write(self, events: list[Event], dead_letters: list[DeadLetter]) -> None:
        """Take events to be published with the next commit."""

    def commit(self, checkpoint: Checkpoint) -> Committed:
        """Make everything written and the checkpoint durable; waits for as long as that takes.

        Raises:
            Fatal: it can't be done, and waiting would not help.
            DestinationHeld: another instance has taken over.
            GenerationLost: a new process can, this one can't.
        """

    def tend(self) -> None:
        """Called at least every half second while there is nothing to write."""

    def close(self) -> None:
        """Let go of the destination; what is not committed is forgotten."""
