"""What passes between the stages, and the ids that the upstream speaks.

Law: everything here is a plain value. Nothing reads a clock, a socket or a file, and everything
survives pickling, because stages are separate processes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import repeat
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import orjson

from pleiades.core.framing import ColumnarFrames
from pleiades.core.units import parse_iso_time_ms

TopicPartition: TypeAlias = tuple[str, int]
"""An upstream Kafka topic and partition, e.g. `("eqiad.mediawiki.recentchange", 0)`."""

UNKNOWN_SOURCE: TopicPartition = ("", -1)
"""Stands for the topic-partition of an event that does not say where it came from."""

NOT_JSON = "not_json"
NOT_AN_OBJECT = "not_an_object"
TOO_LARGE = "too_large"
"""The destination refused it for its size."""
REASONS = (NOT_JSON, NOT_AN_OBJECT, TOO_LARGE)
"""Why an event becomes a dead letter."""

CANARY = "canary"
"""A monitoring event of the upstream."""
OUTSIDE_RANGE = "outside_range"
UNPUBLISHED = frozenset({CANARY, OUTSIDE_RANGE})
"""Why an event is not published at all. It still moves the position."""

LINE_TYPES = ("id", "event", "data", "comment", "unknown")
"""The kinds of lines that are counted; `retry` counts as unknown, as in the original Pleiades."""

MAX_ASSIGNMENTS = 256
"""Topic-partitions one id may name; an id with more is treated as malformed."""
MAX_SSE_ID_BYTES = 128 << 10
"""So many entries, with the longest names that Kafka allows (249 characters), take 80 KiB. To read JSON
takes twelve times its length."""

MAX_TIMESTAMP_MS = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z: what a four-digit year in a file name can still say."""

# Kafka's own rule for topic names (org.apache.kafka.common.internals.Topic): anything else did
# not come from a Kafka and must not reach a label, a header or a path.
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_MAX_PARTITION = 2**31 - 1


class MalformedId(ValueError):
    """An SSE id that is not a JSON array of `{topic, partition, timestamp | offset}`."""


class Assignment(NamedTuple):
    """One entry of an SSE id."""

    source: TopicPartition
    timestamp_ms: int | None
    """Kafka timestamp of the last delivered event **plus 1 ms**; None where the id has an offset
    (which means: nothing delivered yet on this connection)."""


def parse_id(sse_id: bytes) -> tuple[Assignment, ...]:
    """Read an SSE id as EventStreams sends it.

    Raises:
        MalformedId: it is anything else than the documented array, or names too many topics.
    """
    if len(sse_id) > MAX_SSE_ID_BYTES:
        raise MalformedId(f"more than {MAX_SSE_ID_BYTES} bytes")
    try:
        entries = orjson.loads(sse_id)
    except orjson.JSONDecodeError as error:
        raise MalformedId(str(error)) from None
    if type(entries) is not list or len(entries) > MAX_ASSIGNMENTS:
        raise MalformedId("not an array of at most 256 assignments")
    return tuple([_assignment(entry) for entry in entries])


def offsets_in(sse_id: bytes) -> dict[TopicPartition, int]:
    """The topic-partitions of which an id shows an offset instead of a timestamp, with that offset.

    Such a one has delivered nothing on its connection yet. Its offset is where it begins; -1: it was
    asked for from past its end. Empty for an id that is malformed.
    """
    if b'"offset"' not in sse_id or len(sse_id) > MAX_SSE_ID_BYTES:
        return {}
    try:
        return {
            source: offset
            for entry in orjson.loads(sse_id)
            if type(offset := entry.get("offset")) is int
            and entry.get("timestamp") is None
            and is_source(source := (entry.get("topic"), entry.get("partition")))
        }
    except (ValueError, TypeError, AttributeError):
        return {}


def _assignment(entry: Any) -> Assignment:
    if type(entry) is not dict:
        raise MalformedId("an entry is not an object")
    source = entry.get("topic"), entry.get("partition")
    if not is_source(source):
        raise MalformedId("an entry has no legal topic and partition")
    timestamp_ms = entry.get("timestamp")
    if timestamp_ms is None:
        return Assignment(source, None)
    if type(timestamp_ms) is not int or not 0 <= timestamp_ms <= MAX_TIMESTAMP_MS:
        raise MalformedId("an entry's timestamp is not in milliseconds since 1970")
    return Assignment(source, timestamp_ms)


def is_source(pair: tuple[object, object]) -> TypeGuard[TopicPartition]:
    """Whether this can be a topic-partition of a Kafka."""
    topic, partition = pair
    return (
        type(topic) is str
        and _TOPIC.fullmatch(topic) is not None
        and type(partition) is int
        and 0 <= partition <= _MAX_PARTITION
    )


def compose_id(timestamps_ms: dict[TopicPartition, int]) -> str:
    """The `Last-Event-ID` that asks for each topic-partition from its timestamp on.

    Every topic-partition of the stream must be in it: one that is left out is not sent at all.
    """
    return orjson.dumps(
        [
            {"topic": topic, "partition": partition, "timestamp": timestamp_ms}
            for (topic, partition), timestamp_ms in sorted(timestamps_ms.items())
        ]
    ).decode()


def time_ms(text: str) -> int:
    """An ISO 8601 time in ms since 1970, UTC where it names no zone; 0 if it is none."""
    try:
        milliseconds = parse_iso_time_ms(text)
    except (ValueError, OverflowError):
        return 0
    return milliseconds if 0 <= milliseconds <= MAX_TIMESTAMP_MS else 0


class Event(NamedTuple):
    """One upstream event and what becomes of it."""

    identity: str
    """Equal for two deliveries of the same event; safe as a file name. Of a fallback identity the parser
    gives the first part, and the publisher the rest; see `core.occurrences`."""
    source: TopicPartition
    timestamp_ms: int
    """Its own entry in the SSE id (Kafka timestamp + 1 ms): the same at every delivery.

    Where the source is unknown it is the greatest in the id, or 0, and **not** the same at every
    delivery. So a name that must be the same takes `timestamp_ms - 1` only if the source is known
    (it is at least 1 then), and `dt_ms` otherwise."""
    dt: str
    """`meta.dt` as received; empty where it is no text, or too long for a time."""
    key: bytes
    """The SSE id as received."""
    data: bytes
    """The SSE data as received (lines joined by a newline)."""
    reason: str = ""
    """Empty: the event is published. One of `REASONS`: its bytes become a dead letter. One of
    `UNPUBLISHED`: it is dropped, and only its source and timestamp are set."""

    @property
    def dt_ms(self) -> int:
        """`meta.dt` in ms since 1970; 0 if absent or not a time. Read only when it is asked for."""
        return time_ms(self.dt)


def events_of(rows: Iterable[tuple[Any, ...]]) -> list[Event]:
    """Events from tuples of all their fields."""
    # As `Event._make`, without a Python call for each: half the time.
    make: Any = tuple.__new__
    return list(map(make, repeat(Event), rows))


def unpublished(source: TopicPartition, timestamp_ms: int, reason: str) -> Event:
    """An event that is dropped for one of the reasons in `UNPUBLISHED`."""
    return Event("", source, timestamp_ms, "", b"", b"", reason)


_reason_of = attrgetter("reason")


def all_published(events: Iterable[Event]) -> bool:
    """Whether no event has a reason not to be published."""
    return not any(map(_reason_of, events))


def count_published(events: Iterable[Event]) -> int:
    """The number of events without a reason not to be published."""
    return sum(not event.reason for event in events)


class Frames(NamedTuple):
    """reader → parser: whole SSE frames, as many as one read of the socket gave."""

    sequence: int
    """Counts up from 0 in each generation; the publisher holds the order to it."""
    connection: int
    """Counts the connections of this generation, from 1."""
    content: bytes | ColumnarFrames
    """Frames one after the other, each ending with an empty line; LF only, no BOM. By columns where all
    of them have the usual shape."""
    last_event_id: bytes
    """WHATWG "last event ID buffer" before the first frame: the last id **on this connection**; frames
    without an id have it. Empty where there was none."""
    started_ms: int
    """Where this destination's relaying began, ms since 1970; see `Checkpoint.started_ms`."""
    clock_ms: int
    """The reader's clock, which never goes back, when it read these frames."""
    source: TopicPartition | None = None
    """The only topic-partition that its connection asked for; None: all of the stream."""
    finished: bool = False
    """Nothing more is wanted from `source`: what a replay is about has come."""
    gap: bool = False
    """The upstream no longer had all that was asked of `source`."""
    asked: str | None = None
    """The `Last-Event-ID` that its connection sent; None: all of the stream, from `started_ms` on."""

    @property
    def blob(self) -> bytes:
        """The frames one after the other, whichever way they are held."""
        return self.content if isinstance(self.content, bytes) else self.content.joined()


class Batch(NamedTuple):
    """parser → publisher: what became of one `Frames`, in the same order."""

    sequence: int
    connection: int
    events: list[Event]
    """Everything that came, in the order of delivery, with what becomes of it."""
    timestamps_ms: dict[TopicPartition, int]
    """Greatest timestamp of each topic-partition in these frames, dropped events included; 0 for
    one that an id names and that has delivered nothing."""
    started_ms: int
    clock_ms: int
    source: TopicPartition | None = None
    finished: bool = False
    gap: bool = False
    asked: str | None = None
    """As in `Frames`."""
    fallbacks: int = 0
    """How many of the events have a fallback identity; see `core.identity`."""

    def asked_ms(self) -> dict[TopicPartition, int] | None:
        """From which timestamp on its connection asked for each topic-partition; None: for all of them,
        from `started_ms` on.
        """
        if self.asked is None:
            return None
        try:
            return {source: time or 0 for source, time in parse_id(self.asked.encode())}
        except MalformedId:
            # More topic-partitions than an id of the upstream's may name.
            return {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled by columns: a list of 500 named tuples costs five times as much to pickle and
        # to read back as seven lists of 500 plain values.
        columns = tuple(map(list, zip(*self.events, strict=True)))
        return _batch, (self[:2], columns, self[3:])


def _batch(
    head: tuple[int, int],
    columns: tuple[list[Any], ...],
    tail: tuple[Any, ...],
) -> Batch:
    return Batch(*head, events_of(zip(*columns, strict=True)), *tail)


class End(NamedTuple):
    """Follows the last item of a channel: whoever gets it has got everything before it."""
