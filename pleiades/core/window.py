"""Identities of published events, remembered for as long as the upstream can repeat them.

Law: per topic-partition a queue **in delivery order**, and one set over all. Each entry carries the
greatest timestamp that the topic-partition had delivered up to it, dropped events included. From the
left of a queue is dropped what carries less than its horizon. Upstream begins to repeat at the first
offset with a timestamp at or after what is asked, and all that lies before that offset carries less
than that: so while nothing is asked from before the horizon, what can be repeated is remembered.

- A fixed number of identities has no such relation to what is repeated: one timestamp an hour ahead,
  or a burst, and it doubles events.
- An entry's own timestamp would not do: after a canary, which is not remembered, an event dated years
  back would be forgotten at once, and repeated from the canary on.
- Where the position lies beyond the clock, the clock limits both what is asked and the horizon. Upstream
  may still be repeating, from where the connection asked, when the clock has gone on: the horizon
  waits until that topic-partition is past its old position.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

from pleiades.core.position import MAX_SOURCES, Position
from pleiades.core.wire import UNKNOWN_SOURCE, TopicPartition


class _Queue:
    """The identities of one topic-partition, in delivery order."""

    def __init__(self) -> None:
        self.length = 0
        self._groups: deque[tuple[int, deque[str]]] = deque()
        """Each holds those in a row that carry the same timestamp: as a rule a batch."""

    def append(self, greatest_ms: int, identities: Sequence[str]) -> None:
        """Put in some that carry this timestamp."""
        self.length += len(identities)
        if self._groups and self._groups[-1][0] == greatest_ms:
            self._groups[-1][1].extend(identities)
        else:
            self._groups.append((greatest_ms, deque(identities)))

    def take_before(self, horizon_ms: int) -> Iterator[Iterable[str]]:
        """Take out what carries less, from the left up to the first that does not."""
        while self._groups and self._groups[0][0] < horizon_ms:
            _, identities = self._groups.popleft()
            self.length -= len(identities)
            yield identities

    def take_oldest(self, most: int) -> Iterator[str]:
        """Take out the first ones."""
        for _ in range(min(most, self.length)):
            _, identities = self._groups[0]
            yield identities.popleft()
            self.length -= 1
            if not identities:
                self._groups.popleft()


class Window:
    """The identities that a repeat is recognised by.

    Args:
        window_ms: how far behind the position identities are kept; at least the overlap.
        max_entries: bound of memory; beyond it the oldest are forgotten (see `take_forgotten`).
    """

    def __init__(self, window_ms: int, max_entries: int) -> None:
        self._forgotten = 0
        self._window_ms = window_ms
        self._max_entries = max_entries
        self._identities: set[str] = set()
        self._queues: dict[TopicPartition, _Queue] = {}
        self._greatest: Position = {UNKNOWN_SOURCE: 0}
        """What the next entry carries; of unknown source the greatest of all."""
        self._connected_at: Position = {}
        self._connected_ms = 0

    def __len__(self) -> int:
        return len(self._identities)

    def __contains__(self, identity: str) -> bool:
        return identity in self._identities

    def restore(
        self,
        position: Mapping[TopicPartition, int],
        entries: Iterable[tuple[TopicPartition, int, str]],
    ) -> None:
        """Remember what the destination holds, before anything else is remembered.

        Args:
            position: the stored one.
            entries: in delivery order, each with its source, the greatest timestamp which that had
                delivered by then, dropped events included, and the identity. What was dropped is
                rarely known any more; the stored position is never too small.
        """
        for source, timestamp_ms, identity in entries:
            self.add(source, timestamp_ms, identity)
        self.observe(position)

    def observe(self, timestamps_ms: Mapping[TopicPartition, int]) -> None:
        """Take note of the timestamps of a batch, **before** its events are added.

        That the greatest of the batch then counts for all of it keeps some a little longer.
        """
        greatest = self._greatest
        for source, timestamp_ms in timestamps_ms.items():
            known = greatest.get(source)
            if known is None and len(greatest) > MAX_SOURCES:
                # An upstream that invents names gets no place for each.
                source = UNKNOWN_SOURCE  # noqa: PLW2901  # it is one of these from here on
                known = greatest[source]
            if known is None or timestamp_ms > known:
                greatest[source] = timestamp_ms
        greatest[UNKNOWN_SOURCE] = max(greatest.values())

    def add(self, source: TopicPartition, timestamp_ms: int, identity: str) -> bool:
        """Remember an event; False if it is remembered already, so a repeat."""
        if identity in self._identities:
            return False
        greatest_ms = self._greatest.get(source)
        if greatest_ms is None or timestamp_ms > greatest_ms:
            self.observe({source: timestamp_ms})
            if source not in self._greatest:
                source = UNKNOWN_SOURCE
            greatest_ms = self._greatest[source]
        self._identities.add(identity)
        self._append(source, greatest_ms, (identity,))
        return True

    def add_all(self, sources: Sequence[TopicPartition], identities: Sequence[str]) -> bool:
        """Remember events of a batch, after its timestamps were observed; False, and nothing is, if one
        of them is a repeat.

        Args:
            sources: of each event; all are in the timestamps of the batch.
            identities: as many, in the same order.
        """
        new = set(identities)
        if len(new) < len(identities) or not self._identities.isdisjoint(new):
            return False
        greatest = self._greatest
        if not all(source in greatest for source in set(sources)):
            return False
        self._identities |= new
        start = 0
        for source, run in groupby(sources):
            stop = start + len(list(run))
            self._append(source, greatest[source], identities[start:stop])
            start = stop
        return True

    def _append(self, source: TopicPartition, greatest_ms: int, identities: Sequence[str]) -> None:
        queue = self._queues.get(source)
        if queue is None:
            queue = self._queues[source] = _Queue()
        queue.append(greatest_ms, identities)
        excess = len(self._identities) - self._max_entries
        while excess > 0:
            longest = max(self._queues.values(), key=attrgetter("length"))
            for identity in longest.take_oldest(excess):
                self._identities.discard(identity)
                self._forgotten += 1
            excess = len(self._identities) - self._max_entries

    def connected(self, position: Mapping[TopicPartition, int], clock_ms: int) -> None:
        """A new connection asked relative to this position, at this clock or later."""
        self._connected_at = {
            source: reached for source, reached in position.items() if reached > clock_ms
        }
        self._connected_ms = clock_ms

    def advance(self, position: Mapping[TopicPartition, int], clock_ms: int) -> None:
        """Drop what the upstream can't repeat any more once `position` is durable."""
        horizons = {
            source: min(
                reached,
                self._connected_ms if self._connected_at.get(source) == reached else clock_ms,
            )
            - self._window_ms
            for source, reached in position.items()
            if reached
        }
        # Of unknown source: it can come again for as long as any topic can repeat that far back.
        horizons[UNKNOWN_SOURCE] = min(horizons.values(), default=0)
        for source, queue in self._queues.items():
            horizon_ms = horizons.get(source, 0)
            for identities in queue.take_before(horizon_ms):
                self._identities.difference_update(identities)

    def take_forgotten(self) -> int:
        """How many were forgotten early, because of the bound, since this was last asked."""
        forgotten, self._forgotten = self._forgotten, 0
        return forgotten
