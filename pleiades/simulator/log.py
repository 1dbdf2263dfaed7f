"""The upstream's Kafka: topic-partitions that are only appended to, and where a request starts in them.

Law: no clock and no I/O. An offset never changes and is never given twice; within a topic-partition
the order of the offsets is the order of the truth, whatever the timestamps say.

As in Kafka a log is made of segments, and the oldest segment expires as a whole. `find` is exact
("the earliest offset whose timestamp is at least T"), because each segment knows its maximum.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, KeysView
from typing import NamedTuple

from pleiades.core.wire import TopicPartition
from pleiades.simulator.seeds import seeded
from pleiades.simulator.settings import DATA_CENTRES

SEGMENT_EVENTS = 2048
"""Events that expire together, about 2.5 MB."""

LATEST = -1
EARLIEST = -2


class Fresh(NamedTuple):
    """An event on its way into the log."""

    due_ms: float
    """When it is to be appended, ms since the simulator's start; negative: before."""
    source: TopicPartition
    timestamp_ms: int
    """Kafka's timestamp, ms since 1970."""
    payload: bytes
    """The SSE data; where `split` is positive, without the digits of `meta.offset`."""
    split: int
    """Where in `payload` the offset's digits belong; 0 where the payload is complete."""
    identity: str
    canary: bool


class _Segment:
    """Columns instead of rows: nothing in it that the garbage collector would have to visit."""

    __slots__ = (
        "appended",
        "base",
        "max_timestamp_ms",
        "payload_bytes",
        "payloads",
        "splits",
        "times",
    )

    def __init__(self, base: int) -> None:
        self.base = base
        self.payloads: list[bytes] = []
        self.splits = array("l")
        self.times = array("q")
        self.appended = array("d")
        self.max_timestamp_ms = -1
        self.payload_bytes = 0


class Slice(NamedTuple):
    """Consecutive events of one topic-partition."""

    first: int
    """The index of the first one, counted from the first ever appended."""
    payloads: list[bytes]
    splits: array[int]
    times: array[int]


class PartitionLog:
    """One topic-partition. Indexes count from 0 with the first event ever appended."""

    def __init__(self, segment_events: int = SEGMENT_EVENTS) -> None:
        self._segment_events = segment_events
        self._segments: deque[_Segment] = deque([_Segment(0)])
        self.end = 0
        """The index the next event will get."""
        self.payload_bytes = 0

    @property
    def start(self) -> int:
        """The index of the oldest event that has not expired."""
        return self._segments[0].base

    def append(self, fresh: Fresh, now_seconds: float) -> int:
        """Add an event at the end; returns its index. `now_seconds` must not run backwards."""
        segment = self._segments[-1]
        if len(segment.payloads) == self._segment_events:
            segment = _Segment(self.end)
            self._segments.append(segment)
        segment.payloads.append(fresh.payload)
        segment.splits.append(fresh.split)
        segment.times.append(fresh.timestamp_ms)
        segment.appended.append(now_seconds)
        segment.max_timestamp_ms = max(segment.max_timestamp_ms, fresh.timestamp_ms)
        segment.payload_bytes += len(fresh.payload)
        self.payload_bytes += len(fresh.payload)
        self.end += 1
        return self.end - 1

    def expire_oldest(self) -> bool:
        """Drop the oldest segment; False where there is only the one that is being written."""
        if len(self._segments) == 1:
            return False
        self.payload_bytes -= self._segments.popleft().payload_bytes
        return True

    def find(self, timestamp_ms: int) -> int | None:
        """The earliest index whose timestamp is at least `timestamp_ms`; None: there is none."""
        for segment in self._segments:
            if segment.max_timestamp_ms >= timestamp_ms:
                for position, time_ms in enumerate(segment.times):
                    if time_ms >= timestamp_ms:
                        return segment.base + position
        return None

    def end_as_of(self, now_seconds: float) -> int:
        """What `end` was at a time: the number of events ever appended up to then."""
        for segment in reversed(self._segments):
            if segment.appended and segment.appended[0] <= now_seconds:
                return segment.base + bisect_right(segment.appended, now_seconds)
        return self.start

    def slice(self, start: int, stop: int) -> Slice:
        """Events from `start` on, at most up to `stop`; may be fewer, at a segment's end.

        Raises:
            IndexError: `start` has expired or is not there yet.
        """
        if not self.start <= start < self.end:
            raise IndexError(start)
        segment = self._segments[(start - self.start) // self._segment_events]
        low, high = start - segment.base, stop - segment.base
        return Slice(
            start, segment.payloads[low:high], segment.splits[low:high], segment.times[low:high]
        )

    def appended_at(self, index: int) -> float | None:
        """When the event at `index` was appended, in seconds; None if it is not there."""
        if not self.start <= index < self.end:
            return None
        segment = self._segments[(index - self.start) // self._segment_events]
        return segment.appended[index - segment.base]


class UpstreamLog:
    """All topic-partitions, within one bound of memory."""

    def __init__(
        self,
        sources: Iterable[TopicPartition],
        retention_bytes: int,
        segment_events: int = SEGMENT_EVENTS,
    ) -> None:
        self.partitions: dict[TopicPartition, PartitionLog] = {
            source: PartitionLog(segment_events) for source in sources
        }
        self.appended_total = 0
        self.expired_segments_total = 0
        self._retention_bytes = retention_bytes
        self._segment_events = segment_events

    def append(self, fresh: Fresh, now_seconds: float) -> int:
        """Add an event to its topic-partition; returns its index there.

        Raises:
            KeyError: there is no such topic-partition.
        """
        index = self.partitions[fresh.source].append(fresh, now_seconds)
        self.appended_total += 1
        if index % self._segment_events == 0:
            self._expire()
        return index

    def _expire(self) -> None:
        while sum(log.payload_bytes for log in self.partitions.values()) > self._retention_bytes:
            largest = max(self.partitions.values(), key=lambda log: log.payload_bytes)
            if not largest.expire_oldest():
                return
            self.expired_segments_total += 1


class Cluster:
    """The log as one data centre's Kafka shows it: its own offsets, and the other's topics late.

    Args:
        log: what is shown.
        data_centre: whose Kafka it is.
        seed: of the distance between the clusters' offsets.
        mirror_lag_seconds: by how much topics of the other data centre are late.
    """

    def __init__(
        self, log: UpstreamLog, data_centre: str, seed: int, mirror_lag_seconds: float = 0.0
    ) -> None:
        self.data_centre = data_centre
        self._log = log
        self._lag_seconds = mirror_lag_seconds
        self._bases = {source: first_offset(seed, data_centre, source) for source in log.partitions}

    @property
    def sources(self) -> KeysView[TopicPartition]:
        """The topic-partitions there are."""
        return self._bases.keys()

    def base(self, source: TopicPartition) -> int:
        """The offset that index 0 has in this cluster."""
        return self._bases[source]

    def partition(self, source: TopicPartition) -> PartitionLog:
        """The events behind a topic-partition."""
        return self._log.partitions[source]

    def end(self, source: TopicPartition, now_seconds: float) -> int:
        """The index behind the last event that is visible here now."""
        log = self._log.partitions[source]
        if not self._lags(source):
            return log.end
        return log.end_as_of(now_seconds - self._lag_seconds)

    def visible_in_seconds(
        self, source: TopicPartition, index: int, now_seconds: float
    ) -> float | None:
        """How long until the event at `index` shows up here; None while it does not exist."""
        appended = self._log.partitions[source].appended_at(index)
        if appended is None:
            return None
        return max(appended + self._lag_seconds - now_seconds, 0.0) if self._lags(source) else 0.0

    def resolve_timestamp(
        self, source: TopicPartition, timestamp_ms: int, now_seconds: float
    ) -> int:
        """Kafka's `offsetsForTimes`: an offset of this cluster, or `LATEST` past the end."""
        index = self._log.partitions[source].find(timestamp_ms)
        if index is None or index >= self.end(source, now_seconds):
            return LATEST
        return index + self._bases[source]

    def index_of(self, source: TopicPartition, offset: int, now_seconds: float) -> int:
        """The index that consuming from an offset starts at.

        Kafka's `auto.offset.reset` is left at its default upstream: an offset that has expired or
        is not there yet means the end.
        """
        end = self.end(source, now_seconds)
        start = self._log.partitions[source].start
        if offset == EARLIEST:
            return min(start, end)
        index = offset - self._bases[source]
        return index if offset >= 0 and start <= index <= end else end

    def _lags(self, source: TopicPartition) -> bool:
        return self._lag_seconds > 0 and not source[0].startswith(self.data_centre + ".")


def first_offset(seed: int, data_centre: str, source: TopicPartition) -> int:
    """The offset a cluster gives to the first event of a topic-partition, as if it were years old."""
    return seeded(seed, data_centre, *source).randrange(10**6, 6 * 10**9)


def home_of(source: TopicPartition) -> str:
    """The data centre a topic belongs to: the one its events are produced in."""
    prefix = source[0].partition(".")[0]
    return prefix if prefix in DATA_CENTRES else DATA_CENTRES[0]


def sources_of(topics: Iterable[str], partitions: int) -> Iterator[TopicPartition]:
    """All topic-partitions of some topics."""
    for topic in topics:
        for partition in range(partitions):
            yield topic, partition
