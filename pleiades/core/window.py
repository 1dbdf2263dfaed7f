"""Identities of published events, remembered for as long as the upstream can repeat them.

Law: per topic-partition a queue of (timestamp, identity) **in delivery order**, and one set over
all. From the left of a queue is dropped what is older than its horizon, and dropping stops at the
first that is not. What is left begins at or before the first offset with a timestamp at or after
the horizon: and that is where upstream begins to repeat. A fixed number of identities has no such
relation to what is repeated: one timestamp an hour ahead, or a burst, and it doubles events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from pleiades.core.wire import UNKNOWN_SOURCE, TopicPartition


class Window:
    """The identities that a repeat is recognised by.

    Args:
        window_ms: how far behind the position identities are kept.
        max_entries: bound of memory; beyond it the oldest are forgotten (see `take_forgotten`).
    """

    def __init__(self, window_ms: int, max_entries: int) -> None:
        self._forgotten = 0
        self._window_ms = window_ms
        self._max_entries = max_entries
        self._identities: set[str] = set()
        self._queues: dict[TopicPartition, deque[tuple[int, str]]] = {}

    def __len__(self) -> int:
        return len(self._identities)

    def __contains__(self, identity: str) -> bool:
        return identity in self._identities

    def add(self, source: TopicPartition, timestamp_ms: int, identity: str) -> bool:
        """Remember an event; False if it is remembered already, so a repeat."""
        if identity in self._identities:
            return False
        self._identities.add(identity)
        queue = self._queues.get(source)
        if queue is None:
            queue = self._queues[source] = deque()
        queue.append((timestamp_ms, identity))
        if len(self._identities) > self._max_entries:
            self._forget_one()
        return True

    def advance(self, position: Mapping[TopicPartition, int], clock_ms: int) -> None:
        """Drop what the upstream can't repeat any more once `position` is durable."""
        horizons = {
            source: min(reached, clock_ms) - self._window_ms
            for source, reached in position.items()
            if reached
        }
        # Of unknown source: it can come again for as long as any topic can repeat that far back.
        horizons[UNKNOWN_SOURCE] = min(horizons.values(), default=0)
        for source, queue in self._queues.items():
            horizon_ms = horizons.get(source, 0)
            while queue and queue[0][0] < horizon_ms:
                self._identities.discard(queue.popleft()[1])

    def take_forgotten(self) -> int:
        """How many were forgotten early, because of the bound, since this was last asked."""
        forgotten, self._forgotten = self._forgotten, 0
        return forgotten

    def _forget_one(self) -> None:
        longest = max(self._queues.values(), key=len)
        self._identities.discard(longest.popleft()[1])
        self._forgotten += 1
