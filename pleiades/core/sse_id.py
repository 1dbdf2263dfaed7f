"""The upstream's SSE ids: the position of each topic-partition as the service writes it.

Law: an id is read only if it is the documented JSON array, of bounded length and with legal names.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import orjson

TopicPartition: TypeAlias = tuple[str, int]
"""An upstream Kafka topic and partition, e.g. `("eqiad.mediawiki.recentchange", 0)`."""

UNKNOWN_SOURCE: TopicPartition = ("", -1)
"""Stands for the topic-partition of an event that does not name it."""

MAX_ASSIGNMENTS = 256
"""The most topic-partitions that an id may name; one with more is malformed."""
MAX_SSE_ID_BYTES = 128 << 10
"""The longest id that is read. `MAX_ASSIGNMENTS` entries with the longest names that Kafka allows (249
characters) take 80 KiB. Reading JSON takes twelve times its length."""

MAX_TIMESTAMP_MS = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z: the last time with a four-digit year, as in file names."""

# Kafka's rule for topic names (org.apache.kafka.common.internals.Topic). Anything else did not come from
# a Kafka and must not reach a label, a header or a path.
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_MAX_PARTITION = 2**31 - 1
_USUAL_ENTRY = rb'\{"topic":"[a-zA-Z0-9._-]{1,249}","partition":(?:0|[1-9][0-9]{0,8}),'
_USUAL_ENTRY += rb'"(?:timestamp":[1-9][0-9]{0,13}|offset":(?:-1|0|[1-9][0-9]{0,17}))\}'
_USUAL_ID = re.compile(rb"\[%b(?:,%b){0,%d}\]" % (_USUAL_ENTRY, _USUAL_ENTRY, MAX_ASSIGNMENTS - 1))


class MalformedId(ValueError):
    """The SSE id is not a JSON array of `{topic, partition, timestamp | offset}`."""


class Assignment(NamedTuple):
    """One entry of an SSE id."""

    source: TopicPartition
    timestamp_ms: int | None
    """Kafka timestamp of the last delivered event **plus 1 ms**. None if the id has an offset, which
    means that nothing was delivered yet on this connection."""


def parse_id(sse_id: bytes) -> tuple[Assignment, ...]:
    """Read an SSE id as EventStreams sends it.

    Raises:
        MalformedId: it is not the documented array, or names too many topics.
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


def is_usual_id(sse_id: bytes) -> bool:
    """True for a well-formed id in the service's own notation. Faster than `parse_id`."""
    return len(sse_id) <= MAX_SSE_ID_BYTES and _USUAL_ID.fullmatch(sse_id) is not None


def offsets_in(sse_id: bytes) -> dict[TopicPartition, int]:
    """The topic-partitions that have an offset instead of a timestamp in an id, with that offset.

    Such a topic-partition has delivered nothing on its connection yet. It begins at its offset; -1 means
    that it was requested from past its end. The result is empty for a malformed id.
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
    """True if this can be a topic-partition of a Kafka."""
    topic, partition = pair
    return (
        type(topic) is str
        and _TOPIC.fullmatch(topic) is not None
        and type(partition) is int
        and 0 <= partition <= _MAX_PARTITION
    )


def compose_id(timestamps_ms: dict[TopicPartition, int]) -> str:
    """The `Last-Event-ID` that requests each topic-partition from its timestamp on.

    It must hold every topic-partition of the stream: the upstream sends no others.
    """
    return orjson.dumps(
        [
            {"topic": topic, "partition": partition, "timestamp": timestamp_ms}
            for (topic, partition), timestamp_ms in sorted(timestamps_ms.items())
        ]
    ).decode()
