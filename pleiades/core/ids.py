"""Parses SSE ids, some at a time. `core.usual` does it for many frames of one shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pleiades.core.position import MAX_SOURCES
from pleiades.core.sse_id import MalformedId, TopicPartition, offsets_in, parse_id

MAX_ALIGNED_SOURCES = 64
"""With more topic-partitions than that, ids are not aligned: hostile ones name another one each."""


class ParsedIds(NamedTuple):
    """The content of some ids, one after the other."""

    timestamps_ms: dict[TopicPartition, list[int | None]]
    """Topic-partition, in the order of their first mention → its timestamp in each id; None where the id
    does not name it, names it without a timestamp, or is malformed. If it names it twice, the greatest
    timestamp counts."""
    aligned: bool = True
    """False: too many topic-partitions are named. Then each has only the timestamps of ids that name it,
    and those beyond the first `MAX_SOURCES` are missing."""
    offsets: Mapping[TopicPartition, int] = {}
    """The offsets of those without a timestamp; see `sse_id.offsets_in`."""

    def greatest(self) -> dict[TopicPartition, int]:
        """The position that they amount to: 0 for topic-partitions without a timestamp."""
        return {
            source: max([timestamp_ms or 0 for timestamp_ms in column])
            for source, column in self.timestamps_ms.items()
        }


def read_ids(ids: Sequence[bytes]) -> ParsedIds:
    """Parse ids, given without their line ends. Never raises for their content."""
    # By the numbers of the ids, because hostile ids name another topic-partition each.
    said: dict[TopicPartition, dict[int, int | None]] = {}
    offsets: dict[TopicPartition, int] = {}
    for number, sse_id in enumerate(ids):
        try:
            assignments = parse_id(sse_id)
        except MalformedId:
            continue
        if len(offsets) < MAX_SOURCES:
            offsets |= offsets_in(sse_id)
        for source, timestamp_ms in assignments:
            if source not in said and len(said) == MAX_SOURCES:
                continue
            times = said.setdefault(source, {})
            if timestamp_ms is None:
                times.setdefault(number, None)
            else:
                times[number] = max(times.get(number) or 0, timestamp_ms)
    aligned = len(said) <= MAX_ALIGNED_SOURCES
    columns = {
        source: [times.get(n) for n in range(len(ids))] if aligned else list(times.values())
        for source, times in said.items()
    }
    return ParsedIds(columns, aligned, offsets)
