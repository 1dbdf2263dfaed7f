"""What an event becomes as a record of the topic, and what a record says of its event.

The key is the SSE id, the value the data, both as received. With `--kafka.keyField` the key is that
field's value and the id goes into the header `id`. An event with a fallback identity has the headers
`identity` and `source`: key and value alone do not tell which one it is (`core.occurrences`). A dead
letter is a record of the topic `<topic>-dead-letters`; its headers say what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import msgspec
import orjson
from confluent_kafka import Message

from pleiades.core.identity import identify, identity_of, is_fallback, is_legal_fallback
from pleiades.core.wire import (
    UNKNOWN_SOURCE,
    Assignment,
    Event,
    MalformedId,
    TopicPartition,
    is_source,
    parse_id,
)

ID_HEADER = "id"
IDENTITY_HEADER = "identity"
SOURCE_HEADER = "source"
REPLAY_HEADER = "replay"
"""Says which replay published a record; an ingest's have none."""
MAX_ID_BYTES = 4096
"""Of an SSE id in a dead letter; what a longer one has beyond that is cut."""
MAX_KEY_BYTES = 64 << 10
"""A field that is longer as JSON is no key."""
MAX_QUICK_BYTES = 256 << 10
"""All objects of a longer event would take many times its length."""
MAX_PARTITION_DIGITS = 10
NO_STREAM = "-"
"""Of a dead letter it is not known; no stream has this name."""

KeyOf: TypeAlias = Callable[[Event], bytes]
Headers: TypeAlias = dict[str, str | bytes | None]


class RecordForm(NamedTuple):
    """What the records of a sink look like."""

    key_of: KeyOf | None = None
    """None: the key is the SSE id; else the id goes into a header."""
    replay: bytes = b""
    """Names the replay that publishes; empty: it is an ingest."""


class Published(NamedTuple):
    """A record of the topic, or of its dead letters, as far as a start needs it."""

    identity: str
    source: TopicPartition
    published_ms: int
    """The record's time: when it was produced, or appended if the topic says so."""
    assignments: tuple[Assignment, ...]
    stream: str
    """`meta.stream`; `NO_STREAM` for a dead letter."""
    replay: bytes = b""
    """The name of the replay that published it; empty: an ingest did, or the version before."""


def key_by_field(path: tuple[str, ...]) -> KeyOf:
    """Keys by a field of the data, e.g. `("meta", "domain")`.

    Text is taken as it is, anything else as JSON. An event without that field, or with null in it, or
    more than `MAX_KEY_BYTES`, is keyed by its SSE id: a compacted topic refuses one without any key.
    """
    levels = [_field_reader(name) for name in path]

    def key_of(event: Event) -> bytes:
        try:
            raw: bytes | msgspec.Raw = event.data
            for read in levels:
                raw = read(raw)
            raw = bytes(raw)
            value = orjson.loads(raw) if len(raw) <= MAX_KEY_BYTES else None
            if value is None:
                return event.key
            return value.encode() if type(value) is str else orjson.dumps(value)
        except (ValueError, KeyError, TypeError, RecursionError, msgspec.MsgspecError):
            return event.key

    return key_of


def _field_reader(name: str) -> Callable[[bytes | msgspec.Raw], msgspec.Raw]:
    """Reads one field of an object: all objects of a large event would take forty times its length."""
    try:
        level: Any = msgspec.defstruct(
            "Level", [("field", msgspec.Raw)], rename={"field": name}, gc=False
        )
    except ValueError:
        # A name that JSON spells with escapes.
        fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
        return lambda raw: fields.decode(raw)[name]
    decoder = msgspec.json.Decoder(level)
    return lambda raw: decoder.decode(raw).field


def event_headers(event: Event, keyed_by_field: bool) -> Headers:
    """What is said of an event beside its key and value."""
    headers: Headers = {ID_HEADER: event.key} if keyed_by_field else {}
    if is_fallback(event.identity):
        headers |= _naming_headers(event)
    return headers


def dead_letter_headers(letter: Event, cut_to_bytes: int) -> Headers:
    """What is said of a dead letter beside its bytes."""
    headers: Headers = {"reason": letter.reason.encode(), ID_HEADER: letter.key[:MAX_ID_BYTES]}
    headers |= _naming_headers(letter)
    if cut_to_bytes < len(letter.data):
        headers["size"] = b"%d" % len(letter.data)
    return headers


def _naming_headers(named: Event) -> Headers:
    topic, partition = named.source
    return {
        IDENTITY_HEADER: named.identity.encode(),
        SOURCE_HEADER: b"" if named.source == UNKNOWN_SOURCE else f"{topic}:{partition}".encode(),
    }


def read_event(message: Message) -> Published | None:
    """What a record of the topic says of its event; None if it is somebody else's."""
    value = message.value()
    if value is None:
        return None
    headers = _headers(message)
    sse_id = headers.get(ID_HEADER, message.key() or b"")
    identified = identify(sse_id, value)
    if identified is None:
        return None
    identity, source, assignments, stream = identified
    if is_fallback(identity):
        # Earlier versions wrote no such headers.
        named = _read_naming(headers)
        if named is not None and is_legal_fallback(named[0]):
            identity, source = named
    replay = headers.get(REPLAY_HEADER, b"")
    return Published(identity, source, message.timestamp()[1], assignments, stream, replay)


def read_named_event(message: Message) -> Published | None:
    """As `read_event`, without assignments and stream, in half the time: most events say by themselves
    where they come from, and in their ids is an entry of that, as the service writes it.
    """
    value = message.value() or b""
    if len(value) > MAX_QUICK_BYTES:
        return read_event(message)
    try:
        meta = orjson.loads(value)["meta"]
        identity, topic, partition = identity_of(meta), meta["topic"], meta["partition"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return read_event(message)
    if identity is None or type(topic) is not str or type(partition) is not int:
        return read_event(message)
    headers = _headers(message)
    sse_id = headers.get(ID_HEADER, message.key() or b"")
    if b'"topic":"%s","partition":%d,"timestamp":1' % (topic.encode(), partition) not in sse_id:
        return read_event(message)
    return Published(identity, (topic, partition), 0, (), "", headers.get(REPLAY_HEADER, b""))


def _read_naming(headers: Mapping[str, bytes]) -> tuple[str, TopicPartition] | None:
    try:
        identity = headers[IDENTITY_HEADER].decode("ascii")
        topic, _, partition = headers[SOURCE_HEADER].decode("ascii").partition(":")
    except (KeyError, UnicodeDecodeError):
        return None
    source = UNKNOWN_SOURCE
    # The length first: int() refuses thousands of digits, and anybody can write into a topic.
    if partition.isdecimal() and len(partition) <= MAX_PARTITION_DIGITS:
        source = (topic, int(partition))
    return identity, source if is_source(source) else UNKNOWN_SOURCE


def read_dead_letter(message: Message) -> Published | None:
    """What a record of the dead letters says of it; None if it is somebody else's."""
    headers = _headers(message)
    named = _read_naming(headers)
    if named is None:
        return None
    identity, source = named
    try:
        assignments = parse_id(headers.get(ID_HEADER, b""))
    except MalformedId:
        # Also where a long one was cut.
        assignments = ()
    replay = headers.get(REPLAY_HEADER, b"")
    return Published(identity, source, message.timestamp()[1], assignments, NO_STREAM, replay)


def _headers(message: Message) -> Mapping[str, bytes]:
    found: Any = message.headers() or ()
    return {name: value or b"" for name, value in found}
