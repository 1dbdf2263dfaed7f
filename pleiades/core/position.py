"""The position of the relay in the upstream.

Law: a position maps each upstream topic-partition to the **greatest** id timestamp seen from it. `join`
is the pointwise maximum: commutative, associative, idempotent, with the empty position as bottom.
"""

from __future__ import annotations

from collections.abc import Mapping

from pleiades.core.sse_id import TopicPartition
from pleiades.core.units import iso_time

MAX_SOURCES = 1024
"""The most topic-partitions in a position: bounds memory against an upstream that invents names."""

Position = dict[TopicPartition, int]
"""Topic-partition → greatest id timestamp seen (Kafka timestamp + 1 ms). 0: it belongs to the stream and
has delivered nothing. Such entries are kept, also durably, because the upstream does not send a
topic-partition that is missing in `Last-Event-ID`."""


def join(left: Mapping[TopicPartition, int], right: Mapping[TopicPartition, int]) -> Position:
    """The pointwise maximum of two positions."""
    joined = dict(left)
    for source, timestamp_ms in right.items():
        if timestamp_ms > joined.get(source, -1):
            joined[source] = timestamp_ms
    return joined


def in_words(position: Mapping[TopicPartition, int]) -> str:
    """A position as a person reads it: the Kafka timestamp of the last event of each topic-partition."""
    reached = [
        f"{topic}/{partition} {iso_time(timestamp_ms - 1)}"
        for (topic, partition), timestamp_ms in sorted(position.items())
        if timestamp_ms
    ]
    return ", ".join(reached) or "no event yet"
