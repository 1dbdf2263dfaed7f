"""SSE ids of test events."""

from __future__ import annotations

import orjson

from pleiades.core.sse_id import TopicPartition


def sse_id(*reached: tuple[TopicPartition, int | None]) -> bytes:
    """An id with timestamps; a topic with None has an offset instead."""
    return orjson.dumps(
        [
            {"topic": topic, "partition": partition}
            | ({"offset": 1} if timestamp_ms is None else {"timestamp": timestamp_ms})
            for (topic, partition), timestamp_ms in reached
        ]
    )
