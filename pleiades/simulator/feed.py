"""One connection's way through the log: resolved once, then frames in batches.

Law: no clock and no I/O; the caller says what time it is. Each topic-partition's events come in the
order of its offsets, each once; between topic-partitions there is no order, as the real service takes
what its Kafka client fetched, one topic-partition after the other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count

from pleiades.core.wire import TopicPartition
from pleiades.simulator.log import Cluster
from pleiades.simulator.request import Asked

BATCH_EVENTS = 200
"""Events of one topic-partition that history gives in a row: about 256 KiB."""


class Feed:
    """Gives the frames of one connection.

    Args:
        cluster: the data centre's Kafka that serves it.
        asked: where each topic-partition starts; one that is not in the cluster stays silent.
        rng: for what varies from connection to connection: the order of entries, keys, batches.
        now_seconds: the time at which it is resolved.
        deaf_seconds: for so long nothing is heard of what was asked for from past its end.
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
        self._shapes: dict[TopicPartition, tuple[bytes, bytes]] = {}
        self._deaf: set[TopicPartition] = set()
        """Asked for from past their end, and not heard yet."""
        self._hears_at = now_seconds + deaf_seconds
        order = list(asked)
        rng.shuffle(order)
        for source, offset, timestamp_ms in order:
            self._shapes[source] = self._shape(source, b"timestamp")
            known = source in cluster.sources
            if known and offset is None and timestamp_ms is not None:
                offset = cluster.resolve_timestamp(source, timestamp_ms, now_seconds)  # noqa: PLW2901
            before, after = self._shape(source, b"offset")
            self._entries[source] = b"%b%d%b" % (before, -1 if offset is None else offset, after)
            if known and offset is not None:
                self._next[source] = cluster.index_of(source, offset, now_seconds)
                if deaf_seconds and self._next[source] == self._end(source, now_seconds):
                    self._deaf.add(source)

    def _shape(self, source: TopicPartition, key: bytes) -> tuple[bytes, bytes]:
        """What stands before and after the number in an entry, with the keys in some order."""
        mark = b"#"
        members = [
            b'"topic":"%b"' % source[0].encode(),
            b'"partition":%d' % source[1],
            b'"%b":%b' % (key, mark),
        ]
        if self._rng.random() < 0.5:  # noqa: PLR2004  # a coin
            self._rng.shuffle(members)
        before, _, after = (b"{" + b",".join(members) + b"}").partition(mark)
        return before, after

    def id_line(self) -> bytes:
        """The id as it stands, without its line end."""
        return b"id: [" + b",".join(self._entries.values()) + b"]"

    def next_batch(self, now_seconds: float) -> tuple[bytes, int]:
        """The next frames, and how many they are; nothing and 0 while the log has no more."""
        for source in self._deaf:
            self._next[source] = self._end(source, now_seconds)
        if now_seconds >= self._hears_at:
            self._deaf.clear()
        waiting = [s for s, index in self._next.items() if index < self._end(s, now_seconds)]
        if not waiting:
            return b"", 0
        source = waiting[0] if len(waiting) == 1 else self._rng.choice(waiting)
        index = self._next[source]
        partition = self._cluster.partition(source)
        if index < partition.start:
            # Expired while the client was slow; Kafka's consumer then goes on at the end.
            self._next[source] = self._cluster.end(source, now_seconds)
            return self.next_batch(now_seconds)
        events = partition.slice(index, min(index + BATCH_EVENTS, self._end(source, now_seconds)))
        self._next[source] = index + len(events.payloads)
        before_entry, after_entry = self._shapes[source]
        self._entries[source] = before_entry + b"#" + after_entry
        before, _, after = self.id_line().partition(b"#")
        before = b"event: message\n" + before
        after += b"\ndata: "
        parts: list[bytes] = []
        add = parts.append
        for payload, split, time_ms, offset in zip(
            events.payloads,
            events.splits,
            events.times,
            count(index + self._cluster.base(source)),
            strict=False,
        ):
            if split:
                add(
                    b"%b%d%b%b%d%b\n\n"
                    % (before, time_ms + 1, after, payload[:split], offset, payload[split:])
                )
            else:
                add(b"%b%d%b%b\n\n" % (before, time_ms + 1, after, payload))
        self._entries[source] = b"%b%d%b" % (before_entry, events.times[-1] + 1, after_entry)
        return b"".join(parts), len(parts)

    def wait_seconds(self, now_seconds: float) -> float | None:
        """How long until an event that exists shows up here; None: wait for the log to grow."""
        waits = [self._hears_at - now_seconds] if self._deaf else []
        waits += [
            wait
            for source, index in self._next.items()
            if source not in self._deaf
            and (wait := self._cluster.visible_in_seconds(source, index, now_seconds)) is not None
        ]
        return min(waits, default=None)

    def _end(self, source: TopicPartition, now_seconds: float) -> int:
        return self._cluster.end(source, now_seconds)
