"""The upstream's Kafka: append-only topic-partitions, and the offset at which a request starts.

Law: no clock and no I/O. An offset never changes and is never reused; within a topic-partition the
order of the offsets is the true order, whatever the timestamps say.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from pleiades.core.sse_id import TopicPartition
from pleiades.simulator.settings import DATA_CENTRES

LATEST = -1
EARLIEST = -2


class Fresh(NamedTuple):
    """An event on its way into the log."""

    due_ms: float
    """When to append it, ms since the simulator's start; negative: before."""
    source: TopicPartition
    timestamp_ms: int
    """Kafka's timestamp, ms since 1970."""
    payload: bytes
    """The SSE data; where `split` is positive, without the digits of `meta.offset`."""
    split: int
    """Position of the offset's digits in `payload`; 0 where the payload is complete."""
    identity: str
    canary: bool


class JournalEntry(NamedTuple):
    """One event that was appended."""

    topic: str
    partition: int
    offset: int
    """In the cluster of the topic's own data centre."""
    timestamp: int
    """Kafka's, ms since 1970; the id says one more."""
    identity: str
    """`meta.id`; empty for a recorded event without one."""
    canary: bool

    @property
    def source(self) -> TopicPartition:
        """The topic-partition."""
        return self.topic, self.partition


class PartitionLog:
    """One topic-partition. Indexes count from 0 with the first event ever appended.

    Columns instead of rows: the garbage collector has nothing to visit. The events of a segment expire
    together.
    """

    def __init__(self, segment_events: int) -> None:
        self.start = 0
        """The index of the oldest event that has not expired."""
        self.end = 0
        """The index that the next event will get."""
        self.payload_bytes = 0
        self._segment_events = segment_events
        self._payloads: list[bytes] = []
        self._splits = array("l")
        self._times = array("q")
        self._greatest = array("q")
        """The greatest timestamp up to each event, expired ones included."""
        self._appended = array("d")

    def append(self, fresh: Fresh, now_seconds: float) -> int:
        """Add an event; returns its index. `now_seconds` must not run backwards."""
        greatest = self._greatest[-1] if self._greatest else fresh.timestamp_ms
        self._payloads.append(fresh.payload)
        self._splits.append(fresh.split)
        self._times.append(fresh.timestamp_ms)
        self._greatest.append(max(greatest, fresh.timestamp_ms))
        self._appended.append(now_seconds)
        self.payload_bytes += len(fresh.payload)
        self.end += 1
        return self.end - 1

    def expire_oldest(self) -> bool:
        """Drop the oldest segment; False where only the one being written is left."""
        count = self._segment_events
        if len(self._payloads) <= count:
            return False
        self.payload_bytes -= sum(map(len, self._payloads[:count]))
        columns = (self._payloads, self._splits, self._times, self._greatest, self._appended)
        for column in columns:
            del column[:count]
        self.start += count
        return True

    def find(self, timestamp_ms: int) -> int | None:
        """The earliest index whose timestamp is at least `timestamp_ms`, as in Kafka; None: none."""
        place = bisect_left(self._greatest, timestamp_ms)
        # Usually true at once. Not where it was an expired event that reached so far.
        while place < len(self._times) and self._times[place] < timestamp_ms:
            place += 1
        return self.start + place if place < len(self._times) else None

    def end_as_of(self, now_seconds: float) -> int:
        """The value of `end` at an earlier time."""
        return self.start + bisect_right(self._appended, now_seconds)

    def slice(self, start: int, stop: int) -> tuple[list[bytes], array[int], array[int]]:
        """Payloads, splits and timestamps from `start`, which must be there, at most up to `stop`."""
        if not self.start <= start < self.end:
            raise IndexError(start)
        low, high = start - self.start, stop - self.start
        return self._payloads[low:high], self._splits[low:high], self._times[low:high]


class UpstreamLog:
    """All topic-partitions, within one bound of memory."""

    def __init__(
        self, sources: Iterable[TopicPartition], retention_bytes: int, segment_events: int = 2048
    ) -> None:
        self.partitions = {source: PartitionLog(segment_events) for source in sources}
        self._retention_bytes = retention_bytes
        self._segment_events = segment_events

    def append(self, fresh: Fresh, now_seconds: float) -> int:
        """Add an event to its topic-partition; returns its index there."""
        index = self.partitions[fresh.source].append(fresh, now_seconds)
        if index % self._segment_events == 0:
            self._expire()
        return index

    def _expire(self) -> None:
        while sum(log.payload_bytes for log in self.partitions.values()) > self._retention_bytes:
            largest = max(self.partitions.values(), key=lambda log: log.payload_bytes)
            if not largest.expire_oldest():
                return


class Cluster:
    """The log as one data centre's Kafka shows it: with its own offsets, and the other's topics late.

    Args:
        seed: determines the distance between the clusters' offsets.
    """

    def __init__(
        self, log: UpstreamLog, data_centre: str, seed: int, mirror_lag_seconds: float = 0.0
    ) -> None:
        self.partitions = log.partitions
        self.bases = {source: first_offset(seed, data_centre, source) for source in log.partitions}
        """The offset that index 0 has in this cluster."""
        self._data_centre = data_centre
        self._lag_seconds = mirror_lag_seconds

    def end(self, source: TopicPartition, now_seconds: float) -> int:
        """The index behind the last event that is visible here now."""
        partition = self.partitions[source]
        if self._lag_seconds > 0 and home_of(source) != self._data_centre:
            return partition.end_as_of(now_seconds - self._lag_seconds)
        return partition.end

    def resolve_timestamp(
        self, source: TopicPartition, timestamp_ms: int, now_seconds: float
    ) -> int:
        """Kafka's `offsetsForTimes`: an offset of this cluster, or `LATEST` past the end."""
        index = self.partitions[source].find(timestamp_ms)
        if index is None or index >= self.end(source, now_seconds):
            return LATEST
        return index + self.bases[source]

    def index_of(self, source: TopicPartition, offset: int, now_seconds: float) -> int:
        """The index at which consuming from an offset starts.

        As Kafka's `auto.offset.reset` has its default, one that is not there means the end.
        """
        start, end = self.partitions[source].start, self.end(source, now_seconds)
        if offset == EARLIEST:
            return min(start, end)
        index = offset - self.bases[source]
        return index if offset >= 0 and start <= index <= end else end


def seeded(seed: int, *purpose: object) -> random.Random:
    """A random source for each purpose, the same for the same seed. The simulator has no others."""
    return random.Random("/".join(map(str, (seed, *purpose))))  # noqa: S311  # not for secrets


def first_offset(seed: int, data_centre: str, source: TopicPartition) -> int:
    """The offset a cluster gives to the first event of a topic-partition, as if it were years old."""
    return seeded(seed, data_centre, *source).randrange(10**6, 6 * 10**9)


def home_of(source: TopicPartition) -> str:
    """The data centre in which a topic's events are produced."""
    prefix = source[0].partition(".")[0]
    return prefix if prefix in DATA_CENTRES else DATA_CENTRES[0]


def sources_of(topics: Iterable[str], partitions: int) -> list[TopicPartition]:
    """All topic-partitions of some topics."""
    return [(topic, partition) for topic in topics for partition in range(partitions)]
