"""Fingerprints of published events, remembered for as long as the upstream can repeat the events.

Law: there is one queue for each topic-partition, **in delivery order**, and one set over all. Each entry
carries the greatest timestamp that the topic-partition had delivered up to it, dropped events included.
Entries that carry less than the horizon are removed from the left of a queue. The upstream begins to
repeat at the first offset with a timestamp at or after the requested one, and all entries before that
offset carry less. So while nothing is requested from before the horizon, every event that can be
repeated is remembered.

- A fixed number of identities would not do: it has no such relation to what is repeated, and one
  timestamp an hour ahead, or a burst, would cause duplicates.
- An entry's own timestamp would not do: after a canary, which is not remembered, an event dated years
  back would be forgotten at once, and repeated from the canary on.
- If the position lies beyond the clock, the clock limits both the request and the horizon. When the
clock
  has advanced, the upstream may still be repeating from where the connection asked. So the horizon waits
  until that topic-partition is past its old position.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

from pleiades.core.position import MAX_SOURCES, Position
from pleiades.core.sse_id import UNKNOWN_SOURCE, TopicPartition


class _Queue:
    """The fingerprints of one topic-partition, in delivery order."""

    def __init__(self) -> None:
        self.length = 0
        self._groups: deque[tuple[int, deque[bytes]]] = deque()
        """Runs of fingerprints that carry the same timestamp: usually a batch."""

    def append(self, greatest_ms: int, fingerprints: Sequence[bytes]) -> None:
        """Append fingerprints that carry this timestamp."""
        self.length += len(fingerprints)
        if self._groups and self._groups[-1][0] == greatest_ms:
            self._groups[-1][1].extend(fingerprints)
        else:
            self._groups.append((greatest_ms, deque(fingerprints)))

    def take_before(self, horizon_ms: int) -> Iterator[Iterable[bytes]]:
        """Remove, from the left, what carries less, up to the first entry that does not."""
        while self._groups and self._groups[0][0] < horizon_ms:
            _, fingerprints = self._groups.popleft()
            self.length -= len(fingerprints)
            yield fingerprints

    def take_oldest(self, most: int) -> Iterator[bytes]:
        """Remove the first entries."""
        for _ in range(min(most, self.length)):
            _, fingerprints = self._groups[0]
            yield fingerprints.popleft()
            self.length -= 1
            if not fingerprints:
                self._groups.popleft()


class Window:
    """The fingerprints by which repeats are recognised.

    Args:
        window_ms: how far behind the position fingerprints are kept; at least the overlap.
        max_entries: bounds memory; beyond it the oldest are forgotten (see `take_forgotten`).
    """

    def __init__(self, window_ms: int, max_entries: int) -> None:
        self._forgotten = 0
        self._window_ms = window_ms
        self._max_entries = max_entries
        self._known: set[bytes] = set()
        self._queues: dict[TopicPartition, _Queue] = {}
        self._restored: list[tuple[TopicPartition, _Queue]] = []
        self._greatest: Position = {UNKNOWN_SOURCE: 0}
        """The timestamp that the next entry carries; for unknown sources the greatest of all."""
        self._connected_at: Position = {}
        self._connected_ms = 0

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, fingerprint: bytes) -> bool:
        return fingerprint in self._known

    def restore(
        self,
        position: Mapping[TopicPartition, int],
        entries: Iterable[tuple[TopicPartition, int, bytes]],
    ) -> None:
        """Remember the events that the destination holds. Call this before anything else.

        Args:
            position: the stored position of this start.
            entries: for each source in delivery order: the source, the greatest timestamp that it had
                delivered by then, dropped events included, and the fingerprint. The stored position may
                stand in for that timestamp: it is never too small. Where the timestamp falls, another
                sequence begins: an earlier start had got further, or a topic is read by partitions.
        """
        queues: dict[TopicPartition, tuple[int, _Queue]] = {}
        for source, reached_ms, fingerprint in entries:
            if fingerprint in self._known:
                continue
            last_ms, queue = queues.get(source, (0, None))
            if queue is None or reached_ms < last_ms:
                queue = _Queue()
                self._restored.append((source, queue))
            queues[source] = reached_ms, queue
            self._known.add(fingerprint)
            queue.append(reached_ms, (fingerprint,))
            self._limit()
        self.observe(position)

    def observe(self, timestamps_ms: Mapping[TopicPartition, int]) -> None:
        """Note the timestamps of a batch, **before** its events are added.

        The greatest timestamp of the batch then counts for all of it, which keeps some events a little
        longer.
        """
        greatest = self._greatest
        for source, timestamp_ms in timestamps_ms.items():
            known = greatest.get(source)
            if known is None and len(greatest) > MAX_SOURCES:
                # Bounded against an upstream that invents names.
                source = UNKNOWN_SOURCE  # noqa: PLW2901  # it is one of these from here on
                known = greatest[source]
            if known is None or timestamp_ms > known:
                greatest[source] = timestamp_ms
        greatest[UNKNOWN_SOURCE] = max(greatest.values())

    def add(self, source: TopicPartition, timestamp_ms: int, fingerprint: bytes) -> bool:
        """Remember an event; False if it is a repeat."""
        if fingerprint in self._known:
            return False
        greatest_ms = self._greatest.get(source)
        if greatest_ms is None or timestamp_ms > greatest_ms:
            self.observe({source: timestamp_ms})
            if source not in self._greatest:
                source = UNKNOWN_SOURCE
            greatest_ms = self._greatest[source]
        self._known.add(fingerprint)
        self._append(source, greatest_ms, (fingerprint,))
        return True

    def add_all(self, sources: Sequence[TopicPartition], fingerprints: Sequence[bytes]) -> bool:
        """Remember the events of a batch, after its timestamps were observed.

        Returns False, and remembers nothing, if one of them is a repeat.

        Args:
            sources: of each event; all are in the timestamps of the batch.
            fingerprints: as many, in the same order.
        """
        new = set(fingerprints)
        if len(new) < len(fingerprints) or not self._known.isdisjoint(new):
            return False
        greatest = self._greatest
        if not all(source in greatest for source in set(sources)):
            return False
        self._known |= new
        start = 0
        for source, run in groupby(sources):
            stop = start + len(list(run))
            self._append(source, greatest[source], fingerprints[start:stop])
            start = stop
        return True

    def _append(
        self, source: TopicPartition, greatest_ms: int, fingerprints: Sequence[bytes]
    ) -> None:
        queue = self._queues.get(source)
        if queue is None:
            queue = self._queues[source] = _Queue()
        queue.append(greatest_ms, fingerprints)
        self._limit()

    def _limit(self) -> None:
        excess = len(self._known) - self._max_entries
        while excess > 0:
            restored = [queue for _, queue in self._restored]
            longest = max((*restored, *self._queues.values()), key=attrgetter("length"))
            for fingerprint in longest.take_oldest(excess):
                self._known.discard(fingerprint)
                self._forgotten += 1
            excess = len(self._known) - self._max_entries

    def connected(self, position: Mapping[TopicPartition, int], clock_ms: int) -> None:
        """Note that a new connection asked relative to this position, at this clock or later."""
        self._connected_at = {
            source: reached for source, reached in position.items() if reached > clock_ms
        }
        self._connected_ms = clock_ms

    def advance(self, position: Mapping[TopicPartition, int], clock_ms: int) -> None:
        """Remove what the upstream can't repeat any more once `position` is durable."""
        horizons = {
            source: min(
                reached,
                self._connected_ms if self._connected_at.get(source) == reached else clock_ms,
            )
            - self._window_ms
            for source, reached in position.items()
            if reached
        }
        # An event of unknown source can be repeated for as long as any topic goes back that far.
        horizons[UNKNOWN_SOURCE] = min(horizons.values(), default=0)
        for source, queue in (*self._restored, *self._queues.items()):
            for fingerprints in queue.take_before(horizons.get(source, 0)):
                self._known.difference_update(fingerprints)
        self._restored = [(source, queue) for source, queue in self._restored if queue.length]

    def take_forgotten(self) -> int:
        """The number forgotten early, because of `max_entries`, since the last call."""
        forgotten, self._forgotten = self._forgotten, 0
        return forgotten
