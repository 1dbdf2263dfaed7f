"""The contract between the publisher and a destination.

Every sink passes the same suite, tests/contract/test_sinks.py. The publisher calls from one thread:

    open → (is_published | write)* → commit → … → close

- `open` makes the destination ready, keeps other instances out, and says what is durable.
- `write` takes events in upstream order. They need not be durable or visible yet.
- `commit` returns when everything written **and** the checkpoint are durable: the events first or
  both together, never the checkpoint first. It does not give up: trouble that can pass is waited for.
- After a crash at any point, `open` gives a checkpoint that covers no event that is not published, and
  in `Opened.window` every event that is published and may come again. A destination forgets an event
  only if `Checkpoint.known_from` says so. What users do with published events, and clocks, change
  nothing of it.
- `close` is safe at any time, also twice; it commits nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pleiades.core.position import Checkpoint
from pleiades.core.wire import Event, TopicPartition


class Remembered(NamedTuple):
    """A published event, as far as a repeat is recognised by it."""

    source: TopicPartition
    reached_ms: int
    """The greatest timestamp that `source` had delivered when it was published, dropped events
    included; more only keeps it longer. The stored position's is never too small."""
    fingerprint: bytes
    """Of its identity; see `core.fingerprint`."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a destination knew when it was opened."""

    checkpoint: Checkpoint | None
    """The stored one; None: nothing is stored."""
    window: Iterable[Remembered] = ()
    """For each source in the order of delivery. It may be read while it is taken, and only once, before
    anything else is asked of the sink."""
    all_told: bool = True
    """False: of an event that is not in the window the sink must be asked (`is_published`)."""


class Committed(NamedTuple):
    """What became of what was written."""

    dead_letters: list[Event]
    """Those written, and the events that the destination refused for their size."""
    repeated: int = 0
    """Of the events, how many were there already, and were left as they are."""


class Sink(Protocol):
    """A destination of events."""

    def open(self, resume: bool) -> Opened:
        """Prepare the destination.

        Args:
            resume: false: a new start is wanted. The stored checkpoint is given all the same, for what
                it says of published events; but what is damaged need not be mended.

        Raises:
            Fatal: it can't be used, and waiting would not help.
            DestinationHeld: another instance publishes there.
        """

    def is_published(self, event: Event) -> bool:
        """Whether the destination has an event which the publisher does not remember.

        See also `Opened.all_told`.
        """

    def write(self, events: list[Event]) -> None:
        """Take events and dead letters (see `Event.reason`), to be published with the next commit."""

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
