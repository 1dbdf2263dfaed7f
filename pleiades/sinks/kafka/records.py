"""What an event becomes as a record of the topic, and what a record says of its event.

The key is the SSE id, the value the data, both as received. With `--kafka.keyField` the key is that
field's value and the id goes into the header `id`. A dead letter is a record of the topic
`<topic>-dead-letters`; its headers say what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import orjson
from confluent_kafka import Message

from pleiades.core.identity import identify
from pleiades.core.wire import (
    UNKNOWN_SOURCE,
    Assignment,
    DeadLetter,
    Event,
    MalformedId,
    TopicPartition,
    is_source,
    parse_id,
)

ID_HEADER = "id"
MAX_ID_BYTES = 4096
"""Of an SSE id in a dead letter; what a longer one has beyond that is cut."""
MAX_PARTITION_DIGITS = 10
NO_STREAM = "-"
"""Of a dead letter it is not known; no stream has this name."""

KeyOf: TypeAlias = Callable[[Event], bytes]
Headers: TypeAlias = dict[str, str | bytes | None]


class Published(NamedTuple):
    """A record of the topic, or of its dead letters, as far as a start needs it."""

    identity: str
    source: TopicPartition
    published_ms: int
    """The record's time: when it was produced, or appended if the topic says so."""
    assignments: tuple[Assignment, ...]
    stream: str
    """`meta.stream`; `NO_STREAM` for a dead letter."""


def key_by_field(path: tuple[str, ...]) -> KeyOf:
    """Keys by a field of the data, e.g. `("meta", "domain")`.

    Text is taken as it is, anything else as JSON. An event without that field, or with null in it, is
    keyed by its SSE id: without any key a compacted topic would refuse it.
    """

    def key_of(event: Event) -> bytes:
        try:
            found: Any = orjson.loads(event.data)
            for name in path:
                found = found[name]
            if found is None:
                return event.key
            return found.encode() if type(found) is str else orjson.dumps(found)
        except (ValueError, KeyError, TypeError, IndexError):
            return event.key

    return key_of


def dead_letter_headers(letter: DeadLetter, cut_to_bytes: int) -> Headers:
    """What is said of a dead letter beside its bytes."""
    topic, partition = letter.source
    headers: Headers = {
        "reason": letter.reason.encode(),
        ID_HEADER: letter.key[:MAX_ID_BYTES],
        "identity": letter.identity.encode(),
        "source": b"" if letter.source == UNKNOWN_SOURCE else f"{topic}:{partition}".encode(),
    }
    if cut_to_bytes < len(letter.data):
        headers["size"] = b"%d" % len(letter.data)
    return headers


def read_event(message: Message) -> Published | None:
    """What a record of the topic says of its event; None if it is somebody else's."""
    value = message.value()
    if value is None:
        return None
    sse_id = _headers(message).get(ID_HEADER, message.key() or b"")
    identified = identify(sse_id, value)
    if identified is None:
        return None
    identity, source, assignments, stream = identified
    return Published(identity, source, message.timestamp()[1], assignments, stream)


def read_dead_letter(message: Message) -> Published | None:
    """What a record of the dead letters says of it; None if it is somebody else's."""
    headers = _headers(message)
    try:
        identity = headers["identity"].decode("ascii")
        topic, _, partition = headers["source"].decode("ascii").partition(":")
    except (KeyError, UnicodeDecodeError):
        return None
    source = UNKNOWN_SOURCE
    # The length first: int() refuses thousands of digits, and anybody can write into a topic.
    if partition.isdecimal() and len(partition) <= MAX_PARTITION_DIGITS:
        source = (topic, int(partition))
    if not is_source(source):
        source = UNKNOWN_SOURCE
    try:
        assignments = parse_id(headers.get(ID_HEADER, b""))
    except MalformedId:
        # Also where a long one was cut.
        assignments = ()
    return Published(identity, source, message.timestamp()[1], assignments, NO_STREAM)


def is_of_replay(record: Published) -> bool:
    """Whether a record was published by a replay: those ask for one topic-partition at a time.

    Not so where a stream has only one, and its ingest does, too.
    """
    return len(record.assignments) == 1


def _headers(message: Message) -> Mapping[str, bytes]:
    found: Any = message.headers() or ()
    return {name: value or b"" for name, value in found}
