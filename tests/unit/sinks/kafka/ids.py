"""SSE ids of test events."""

from __future__ import annotations

import orjson

from pleiades.core.sse_id import TopicPartition


def sse_id(*reached: tuple[TopicPartition, int | None]) -> bytes:
    """An id with timestamps, and offsets in place of None."""
    return orjson.dumps(
        [
            {"topic": topic, "partition": partition}
            | ({"offset": 1} if timestamp_ms is None else {"timestamp": timestamp_ms})
            for (topic, partition), timestamp_ms in reached
        ]
    )
