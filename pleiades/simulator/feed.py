"""The frames of one connection: each topic-partition is resolved once, then read in batches.

Law: no clock and no I/O. Each topic-partition's events come in the order of its offsets, each once.
Between topic-partitions there is no order: the real service takes what its Kafka client fetched, one
topic-partition after the other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count

from pleiades.core.sse_id import TopicPartition
from pleiades.simulator.log import LATEST, Cluster
from pleiades.simulator.request import Asked

BATCH_EVENTS = 200
"""Most events of one topic-partition in a row: about 256 KiB."""


class Feed:
    """Gives the frames of one connection.

    Args:
        asked: where each topic-partition starts; one that the cluster does not have stays silent.
        rng: decides the order of entries, keys and batches, which varies between connections.
        deaf_seconds: how long a topic-partition requested from past its end delivers nothing.
    """

    def __init__(
        self,
        cluster: Cluster,
        asked: Sequence[Asked],
        rng: random.Random,
        now_seconds: float,
        deaf_seconds: float = 0.0,
    ) -> None:
        self._cluster = cluster
        self._rng = rng
        self._next: dict[TopicPartition, int] = {}
        self._entries: dict[TopicPartition, bytes] = {}
        self._shapes: dict[TopicPartition, bytes] = {}
        self._deaf: set[TopicPartition] = set()
        """Requested from past their end, and still silent."""
        self._hears_at = now_seconds + deaf_seconds
        for source, asked_offset, timestamp_ms in rng.sample(asked, len(asked)):
            offset = LATEST if asked_offset is None else asked_offset
            self._shapes[source] = self._shape(source, b"timestamp")
            if source in cluster.partitions:
                if timestamp_ms is not None:
                    offset = cluster.resolve_timestamp(source, timestamp_ms, now_seconds)
                self._next[source] = cluster.index_of(source, offset, now_seconds)
                if deaf_seconds and self._next[source] == cluster.end(source, now_seconds):
                    self._deaf.add(source)
            self._entries[source] = self._shape(source, b"offset") % offset

    def _shape(self, source: TopicPartition, key: bytes) -> bytes:
        """An id's entry with a gap for the number, and with the keys in some order."""
        topic, partition = b'"topic":"%b"' % source[0].encode(), b'"partition":%d' % source[1]
        members = [topic, partition, b'"%b":%%d' % key]
        if self._rng.random() < 0.5:  # noqa: PLR2004  # a coin
            self._rng.shuffle(members)
        return b"{" + b",".join(members) + b"}"

    def id_line(self) -> bytes:
        """The current id, without its line end."""
        return b"id: [" + b",".join(self._entries.values()) + b"]"

    def next_batch(self, now_seconds: float) -> tuple[bytes, int]:
        """The next frames and their number; nothing and 0 while the log has no more."""
        ends = {source: self._cluster.end(source, now_seconds) for source in self._next}
        self._next.update((source, ends[source]) for source in self._deaf)
        if now_seconds >= self._hears_at:
            self._deaf.clear()
        for source, index in self._next.items():
            if index < self._cluster.partitions[source].start:
                # Expired while the client was slow: Kafka's consumer then continues at the end.
                self._next[source] = ends[source]
        waiting = [source for source, index in self._next.items() if index < ends[source]]
        if not waiting:
            return b"", 0
        source = waiting[0] if len(waiting) == 1 else self._rng.choice(waiting)
        index = self._next[source]
        self._next[source] = stop = min(index + BATCH_EVENTS, ends[source])
        payloads, splits, times = self._cluster.partitions[source].slice(index, stop)
        self._entries[source] = self._shapes[source]
        frame = b"event: message\n%b\ndata: %%b\n\n" % self.id_line()
        with_offset = frame.replace(b"data: %b", b"data: %b%d%b")
        offsets = count(index + self._cluster.bases[source])
        frames = [
            with_offset % (time_ms + 1, payload[:split], offset, payload[split:])
            if split
            else frame % (time_ms + 1, payload)
            for payload, split, time_ms, offset in zip(
                payloads, splits, times, offsets, strict=False
            )
        ]
        self._entries[source] = self._shapes[source] % (times[-1] + 1)
        return b"".join(frames), len(frames)
