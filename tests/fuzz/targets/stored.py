"""Stored data that Pleiades reads back: checkpoints, file names, offset metadata, records."""

from __future__ import annotations

import json
from typing import Any, cast

from confluent_kafka import Message

from pleiades.core.checkpoint import Checkpoint, UnreadableCheckpoint, decode_checkpoint
from pleiades.core.decoding import decode
from pleiades.core.event import Event, Frames
from pleiades.core.framing import Framer
from pleiades.core.sse_id import MAX_TIMESTAMP_MS, UNKNOWN_SOURCE, TopicPartition, is_source
from pleiades.runtime.errors import Fatal
from pleiades.simulator.recorded import recorded_event, recorded_pairs
from pleiades.sinks.files.names import folder_of, identity_in, is_event_folder
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.offset_metadata import MAX_METADATA_BYTES, encode, read_stored
from pleiades.sinks.kafka.records import (
    MAX_ID_BYTES,
    Published,
    RecordForm,
    key_by_field,
    read_dead_letter,
    read_event,
)
from tests.fuzz.target import lossless, parts

TIME_MS = 1_790_000_000_000
MAX_CUT_BYTES = 100
AT = ("t", 0)


# ---- checkpoints ----


def checkpoint(raw: bytes) -> None:
    """Bytes are a checkpoint that is stored again unchanged, or `UnreadableCheckpoint`."""
    try:
        read = decode_checkpoint(raw)
    except UnreadableCheckpoint as error:
        _says_why(error)
        return
    _plausible(read)
    assert decode_checkpoint(read.encoded()) == read


def metadata(raw: bytes) -> None:
    """The same for an offset's metadata, which Kafka's client handles as text."""
    try:
        read = read_stored({AT: raw.decode(errors="replace")}, AT)
    except UnreadableCheckpoint as error:
        _says_why(error)
        return
    _plausible(read.checkpoint)
    readback = read.readback
    for part in readback.parts({AT: 10**6}):
        assert all(ms >= 0 for ms in part.reached.values())
        assert all(type(offset) is int and offset >= 0 for offset in part.end.values())
    readback.is_mark_due(read.checkpoint)
    try:
        again = encode(read.checkpoint, readback, read.writer, AT)
    except Fatal:
        return  # It was packed better than ours.
    assert len(again[AT].encode()) <= MAX_METADATA_BYTES
    assert read_stored(again, AT).checkpoint == read.checkpoint


def _says_why(error: UnreadableCheckpoint) -> None:
    # It is logged.
    assert 0 < len(str(error)) < 200


def _plausible(read: Checkpoint) -> None:
    _plausible_position(read.position)
    assert _is_time(read.started_ms)
    assert _is_time(read.clock_ms)


def _plausible_position(position: dict[TopicPartition, int]) -> None:
    assert all(is_source(source) and _is_time(reached) for source, reached in position.items())


def _is_time(number: object) -> bool:
    return type(number) is int and 0 <= number <= MAX_TIMESTAMP_MS


# ---- names of files ----


def name(raw: bytes) -> None:
    """A file name in the directory is an event's, or it is not."""
    found = lossless(raw)
    is_event_folder(found)
    folder, identity = folder_of(found), identity_in(found)
    if folder is not None:
        assert is_event_folder(folder)
        assert identity


# ---- records of a topic ----


class Record:
    """The part of `confluent_kafka.Message` that the code reads."""

    def __init__(
        self, key: bytes | None, value: bytes | None, headers: dict[str, Any] | None = None
    ) -> None:
        self._key, self._value, self._headers = key, value, headers

    def key(self) -> bytes | None:
        """The key."""
        return self._key

    def value(self) -> bytes | None:
        """The value; None: a tombstone."""
        return self._value

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        """None where there are none."""
        return None if self._headers is None else list(self._headers.items())

    def timestamp(self) -> tuple[int, int]:
        """Kind and time."""
        return 1, TIME_MS

    def topic(self) -> str:
        """Its topic."""
        return AT[0]

    def partition(self) -> int:
        """Its partition."""
        return AT[1]

    def offset(self) -> int:
        """Its offset."""
        return 0


def _event(record: Record) -> Published | None:
    return read_event(cast(Message, record))


def _dead_letter(record: Record) -> Published | None:
    return read_dead_letter(cast(Message, record))


def records(raw: bytes) -> None:
    """Key, value, then headers `identity`, `source`, `id`, and a field's path: any writer's record."""
    key, value, identity, source, sse_id, path = parts(raw, 6)
    headers = {"identity": identity or None, "source": source, "id": sse_id or None}
    for record in (
        Record(key, value),
        Record(key or None, value or None),
        Record(key, value, headers),
        Record(None, value, {"source": source}),
    ):
        for read in (_event(record), _dead_letter(record)):
            _sound(read)
    field = tuple(path.decode(errors="replace").split("."))
    assert type(key_by_field(field)(Event("i", ("t", 0), 1, "", key, value))) is bytes


def _sound(read: Published | None) -> None:
    if read is not None:
        assert read.source == UNKNOWN_SOURCE or is_source(read.source)
        assert read.published_ms == TIME_MS
        assert all(is_source(source) for source, _ in read.assignments)


def _destination(key_field: tuple[str, ...]) -> KafkaDestination:
    return KafkaDestination("x", "localhost:9092", "t", 1, 0, "none", 0.2, key_field, "", ())


def republished(raw: bytes) -> None:
    """Events of a stream, published with either kind of key, are recognised when read back."""
    blob = Framer().feed(raw + b"\n\n")
    batch = decode(Frames(0, 1, blob, b"", 0, 0), True).batch
    for event in batch.events:
        if event.reason:
            continue
        for path in ((), ("meta", "domain")):
            form = RecordForm(_destination(path), b"", MAX_CUT_BYTES)
            _, value, key, headers = form.record(event)
            read = _event(Record(key, value, dict(headers)))
            assert read is not None
            assert (read.identity, read.source) == (event.identity, event.source)
    for letter in batch.events:
        if not letter.reason:
            continue
        for cut in (len(letter.data), MAX_CUT_BYTES):
            _, value, key, headers = RecordForm(_destination(()), b"", cut).record(letter)
            assert len(key) <= MAX_ID_BYTES
            read = _dead_letter(Record(key, value, dict(headers)))
            assert read is not None
            assert (read.identity, read.source) == (letter.identity, letter.source)


# ---- recorded events, for the local upstream ----


def recorded(raw: bytes) -> None:
    """A file of `simulate --file`; its first byte tells which of the two kinds it is."""
    kind, text = raw[:1], raw[1:]
    for data, sse_id in recorded_pairs(text, sse=kind > b"m"):
        event = recorded_event(data, sse_id, "eqiad.x", 7)
        assert event.payload == data
        assert is_source(event.source)
        json.dumps(event.identity)
