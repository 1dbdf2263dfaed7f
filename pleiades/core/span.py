"""From which publish time on a restart must read a destination to know all that can be repeated.

A destination that keeps its records in the order of their writing, and can be read from a time on, is
its own window. What a restart needs of it is where to begin, and for that one mark is enough.

Laws:
- A mark (t, p) says: what was published before t was published when the position was p, or less.
- The upstream repeats nothing that was delivered at a position below `min(position, clock) - window`.
  Once that is true of a mark's position, nothing before the mark is needed any more: the mark becomes
  where reading begins, and a new one is made. So what is read covers one to two windows, however often
  the relay is restarted. (If a restart held all it read to have come at its own position, restarts
  more frequent than the window would let it grow for ever.)
- A clock that is set back makes later records carry earlier times: where reading begins goes back
  with it, and a new mark is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from pleiades.core.position import Checkpoint, Position
from pleiades.core.wire import TopicPartition


class Mark(NamedTuple):
    """What was published before `time_ms` was published at this position or less."""

    time_ms: int
    position: Position


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a destination that a restart must read."""

    since_ms: int
    """Publish time of the first record that is needed, ms since 1970, or earlier."""
    mark: Mark | None = None
    last_ms: int = 0
    """The latest publish time that was used."""

    def publishing(self, now_ms: int) -> Span:
        """Before something is published with this time."""
        # After a restart the mark alone tells how late a time has been used.
        marked_ms = self.mark.time_ms if self.mark else 0
        if now_ms >= max(self.since_ms, self.last_ms, marked_ms):
            return replace(self, last_ms=now_ms)
        return Span(min(self.since_ms, now_ms), None, now_ms)

    def committed(self, checkpoint: Checkpoint, window_ms: int) -> Span:
        """After everything published so far is covered by this checkpoint."""
        # Not from the next millisecond on: more may be published within this one.
        mark = Mark(max(self.since_ms, self.last_ms), checkpoint.position)
        if self.mark is None:
            return replace(self, mark=mark)
        if _repeatable(self.mark.position, checkpoint, window_ms):
            return self
        return Span(self.mark.time_ms, mark, self.last_ms)

    def reached(
        self, source: TopicPartition, time_ms: int, position: Mapping[TopicPartition, int]
    ) -> int:
        """The greatest timestamp that `source` can have delivered when a record was published.

        Args:
            source: where the record's event came from.
            time_ms: the record's publish time.
            position: the stored one, which holds for all that is not before the mark.
        """
        if self.mark is not None and time_ms < self.mark.time_ms:
            position = self.mark.position
        # One of unknown source can be repeated for as long as any can.
        return position.get(source, max(position.values(), default=0))


def _repeatable(position: Position, checkpoint: Checkpoint, window_ms: int) -> bool:
    """Whether something delivered at this position can still be repeated after the checkpoint."""
    # What a replay has finished is not asked for again.
    finished = frozenset() if checkpoint.done is None else checkpoint.done.finished
    return any(
        reached >= min(checkpoint.position.get(source, 0), checkpoint.clock_ms) - window_ms
        for source, reached in position.items()
        if reached and source not in finished
    )
