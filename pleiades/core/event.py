"""The values that pass between the processes.

Law: everything here is a plain value that survives pickling. Nothing reads a clock, a socket or a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pickle import PickleBuffer
from typing import Any, NamedTuple

from pleiades.core.position import MAX_SOURCES, join
from pleiades.core.sse_id import MAX_TIMESTAMP_MS, MalformedId, TopicPartition, parse_id
from pleiades.core.units import parse_iso_time_ms

NOT_JSON = "not_json"
NOT_AN_OBJECT = "not_an_object"
TOO_LARGE = "too_large"
"""The destination refused the event for its size."""
REASONS = (NOT_JSON, NOT_AN_OBJECT, TOO_LARGE)
"""Why an event becomes a dead letter."""

CANARY = "canary"
"""A monitoring event of the upstream."""
OUTSIDE_RANGE = "outside_range"
UNPUBLISHED = frozenset({CANARY, OUTSIDE_RANGE})
"""Why an event is not published at all. It still moves the position."""

LINE_TYPES = ("id", "event", "data", "comment", "unknown")
"""The counted kinds of lines; `retry` counts as unknown, as in the original Pleiades."""


def time_ms(text: str) -> int:
    """An ISO 8601 time in ms since 1970, UTC if it names no zone; 0 if it is not a time."""
    try:
        milliseconds = parse_iso_time_ms(text)
    except (ValueError, OverflowError):
        return 0
    return milliseconds if 0 <= milliseconds <= MAX_TIMESTAMP_MS else 0


class Event(NamedTuple):
    """One upstream event and what becomes of it."""

    identity: str
    """The same at every delivery of the event; safe as a file name. The publisher completes fallback
    identities; see `core.occurrences`."""
    source: TopicPartition
    timestamp_ms: int
    """Its own entry in the SSE id (Kafka timestamp + 1 ms): at least 1, and the same at every delivery.

    If the source is unknown, it is the greatest timestamp in the id, or 0, and may differ between
    deliveries. So a name uses `timestamp_ms - 1` only if the source is known, and `dt_ms` otherwise."""
    dt: str
    """`meta.dt` as received; empty if it is not text, or too long for a time."""
    key: bytes
    """The SSE id as received."""
    data: bytes
    """The SSE data as received (lines joined by a newline)."""
    reason: str = ""
    """Empty: the event is published. One of `REASONS`: its bytes become a dead letter. One of
    `UNPUBLISHED`: it is dropped, and only its source and timestamp are set."""

    @property
    def dt_ms(self) -> int:
        """`meta.dt` in ms since 1970; 0 if absent or not a time."""
        return time_ms(self.dt)


def unpublished(source: TopicPartition, timestamp_ms: int, reason: str) -> Event:
    """An event that is dropped for one of the reasons in `UNPUBLISHED`."""
    return Event("", source, timestamp_ms, "", b"", b"", reason)


class Frames(NamedTuple):
    """reader → parser: the whole SSE frames of one read of the socket."""

    sequence: int
    """Counts up from 0 in each generation; the publisher restores the order by it."""
    connection: int
    """Counts the connections of this generation, from 1."""
    blob: bytes
    """Frames one after the other, each ending with an empty line; LF only, no BOM."""
    last_event_id: bytes
    """The WHATWG "last event ID buffer" before the first frame: the last id **on this connection**,
    which also applies to frames without an id. Empty if there was none."""
    started_ms: int
    """See `Checkpoint.started_ms`."""
    clock_ms: int
    """The reader's clock, which never goes back, when it read these frames; ms since 1970."""
    source: TopicPartition | None = None
    """The only topic-partition that the connection requested; None: the entire stream."""
    finished: bool = False
    """`source` is complete: all of the replay's range has arrived."""
    gap: bool = False
    """The upstream no longer had everything that was requested of `source`."""
    asked: str | None = None
    """The `Last-Event-ID` of the connection; None: the entire stream, from `started_ms` on."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Frames, (*self[:2], PickleBuffer(self.blob), *self[3:])


class Batch(NamedTuple):
    """parser → publisher: the events of one `Frames`."""

    sequence: int
    connection: int
    events: Sequence[Event]
    """All events in the order of delivery, dropped ones included."""
    timestamps_ms: dict[TopicPartition, int]
    """The greatest timestamp of each topic-partition in these frames, dropped events included; 0 if an
    id names it and it has delivered nothing."""
    started_ms: int
    clock_ms: int
    source: TopicPartition | None = None
    finished: bool = False
    gap: bool = False
    asked: str | None = None
    """As in `Frames`."""
    fallbacks: int = 0
    """The number of events with a fallback identity; see `core.identity`."""

    def asked_ms(self) -> dict[TopicPartition, int] | None:
        """The timestamp from which the connection requested each topic-partition; None: all of them,
        from `started_ms` on.
        """
        if self.asked is None:
            return None
        try:
            return {source: time or 0 for source, time in parse_id(self.asked.encode())}
        except MalformedId:
            # It names more topic-partitions than `MAX_ASSIGNMENTS`.
            return {}


class End(NamedTuple):
    """The last item of a channel: its receiver has received everything before it."""


class PositionRequest(NamedTuple):
    """reader → parser: tell me what the frames since the last request have brought."""


class Delivered(NamedTuple):
    """parser → reader: the answer."""

    timestamps_ms: dict[TopicPartition, int]
    """As in `Batch`, for at most `MAX_SOURCES` topic-partitions."""
    retry: tuple[int, int] | None = None
    """The last `retry` field, in ms, after the sequence number of its frames."""

    def and_then(self, batch: Batch, retry_ms: int | None) -> Delivered:
        """With what the next frames have brought."""
        joined = dict(islice(join(self.timestamps_ms, batch.timestamps_ms).items(), MAX_SOURCES))
        return Delivered(joined, self.retry if retry_ms is None else (batch.sequence, retry_ms))
