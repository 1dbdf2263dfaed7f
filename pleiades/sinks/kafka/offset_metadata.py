"""The metadata of the committed offsets: the position, and what a restart reads back.

Kafka keeps at most 4,096 bytes with each offset (`offset.metadata.max.bytes`), and one offset for each
output partition. Partition 0 has the position, and what the segments to be read have reached
(`core.readback`); each partition has where in it they begin and end. So any number of partitions fits.
All of them are committed in the transaction that holds the events.

Usually the position is readable JSON of about 600 bytes. That of many streams is packed: zlib brings 128
topic-partitions to about half of the bound. If that is not enough, the times that the segments have
reached are rounded up, then segments are merged: a restart reads more, and forgets nothing.

`core.checkpoint` has the fields that other destinations store, too.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import orjson

from pleiades.core.checkpoint import (
    Checkpoint,
    UnreadableCheckpoint,
    check_version,
    is_time,
    listed,
    read_common_fields,
    read_listed,
    unreadable_if_damaged,
)
from pleiades.core.position import Position
from pleiades.core.readback import MAX_SEGMENTS, UNKNOWN_LETTERS, OutputPartition, Readback, Segment
from pleiades.core.sse_id import MAX_TIMESTAMP_MS, UNKNOWN_SOURCE, TopicPartition, is_source
from pleiades.runtime.errors import Fatal

MAX_METADATA_BYTES = 4096
"""The broker's default for `offset.metadata.max.bytes`."""
MAX_UNPACKED_BYTES = 1024 * 1024
MAX_OFFSET = 2**63 - 1
MAX_REACHED_MS = 2 * MAX_TIMESTAMP_MS
_PACKED = "zlib:"
_WRITER = re.compile(r"[0-9a-f]{1,32}")
_FITS = ((MAX_SEGMENTS, 1), (MAX_SEGMENTS, 60_000), (6, 60_000), (3, 60_000), (1, 600_000))
"""Tried until the metadata fits: number of closed segments, and to how many ms times are rounded up."""


class Stored(NamedTuple):
    """Everything that is durable beside the events."""

    checkpoint: Checkpoint
    readback: Readback
    writer: str
    """The process that committed it. One that was fenced learns from it by whom."""


def encode(
    checkpoint: Checkpoint, readback: Readback, writer: str, at: OutputPartition
) -> dict[OutputPartition, str]:
    """The metadata of the offset of each output partition; that of `at` has the position.

    Raises:
        Fatal: the position has more topic-partitions than fit.
    """
    for segments, unit_ms in _FITS:
        merged = readback.merged(segments)
        offsets = _offsets(merged)
        fields = _fields(checkpoint, merged, unit_ms)
        fields |= {"writer": writer, "offsets": offsets.pop(at, None)}
        plain = orjson.dumps(fields)
        position = plain.decode()
        if len(plain) > MAX_METADATA_BYTES:
            position = _PACKED + base64.b85encode(zlib.compress(plain, 9)).decode()
        if len(position) <= MAX_METADATA_BYTES:
            others = {other: orjson.dumps(numbers).decode() for other, numbers in offsets.items()}
            return {at: position} | others
    raise Fatal(
        f"the position of {len(checkpoint.position)} upstream topics does not fit into the "
        f"{MAX_METADATA_BYTES} bytes that Kafka keeps with an offset. Nothing is lost: all committed "
        "events are safe. Give fewer streams to one instance (--upstream.stream) and start another one "
        "for the rest"
    )


def _fields(checkpoint: Checkpoint, readback: Readback, unit_ms: int) -> dict[str, Any]:
    position, known_from = checkpoint.position, checkpoint.known_from
    others = {*readback.reached, *(s for each in readback.closed for s in each.reached)}
    others -= position.keys()
    names = [*sorted(position), *sorted(others)]

    def row(reached: Position) -> list[int | None]:
        """The gain of each position since then: small numbers pack well."""
        gained: list[int | None] = [
            (position.get(name, 0) - reached[name]) // unit_ms if name in reached else None
            for name in names
        ]
        while gained and gained[-1] is None:
            gained.pop()
        return gained

    known_behind = [
        min(reached_ms, checkpoint.clock_ms) - known_from[source] if source in known_from else None
        for source, reached_ms in sorted(position.items())
    ]
    known_others = {source: ms for source, ms in known_from.items() if source not in position}
    return checkpoint.common_fields() | {
        "position": listed(position),
        "known_from": [known_behind, listed(known_others)],
        "others": sorted(others),
        "unit_ms": unit_ms,
        "open": [readback.since_ms, row(readback.first), row(readback.reached)],
        "segments": [[each.since_ms, row(each.reached)] for each in readback.closed],
    }


def _offsets(readback: Readback) -> dict[OutputPartition, list[Any]]:
    """For each output partition: the begin of the open segment, and begin and end of the others."""
    partitions = {*readback.begin, *(at for each in readback.closed for at in each.end)}
    return {
        at: [
            readback.begin.get(at, 0),
            *(
                [each.begin[at], each.end[at]] if at in each.end else None
                for each in readback.closed
            ),
        ]
        for at in sorted(partitions)
    }


# ---- reading ----


def read_stored(texts: Mapping[OutputPartition, str], at: OutputPartition) -> Stored:
    """Read what `encode` gave. There is nothing of a partition that was added since.

    Raises:
        UnreadableCheckpoint: it is cut short, damaged, of another version, or somebody else's.
    """
    with unreadable_if_damaged():
        fields = _unpacked(texts[at])
        check_version(fields)
        position = read_listed(fields["position"])
        writer = fields["writer"]
        _require(type(writer) is str and _WRITER.fullmatch(writer), "does not say who wrote it")
        checkpoint = read_common_fields(fields, position)
        known_from = _read_known_from(checkpoint, *fields["known_from"])
        readback = _read_readback(fields, position, _read_offsets(fields, texts, at))
        return Stored(replace(checkpoint, known_from=known_from), readback, writer)


def _require(sound: object, otherwise: str) -> None:
    if not sound:
        raise UnreadableCheckpoint(f"it {otherwise}")


def _unpacked(metadata: str) -> Any:
    if not metadata.startswith(_PACKED):
        return orjson.loads(metadata)
    unpacking = zlib.decompressobj()
    packed = base64.b85decode(metadata.removeprefix(_PACKED))
    plain = unpacking.decompress(packed, MAX_UNPACKED_BYTES)
    _require(unpacking.eof, "is cut short or too large")
    return orjson.loads(plain)


def _read_known_from(checkpoint: Checkpoint, behind: Any, others: Any) -> Position:
    """Read how far each source is behind min(position, clock), and other sources."""
    known = read_listed(others) | {
        source: min(reached_ms, checkpoint.clock_ms) - behind_ms
        for (source, reached_ms), behind_ms in zip(checkpoint.position.items(), behind, strict=True)
        if behind_ms is not None
    }
    _require(all(map(is_time, known.values())), "holds values that are no position")
    return known


def _read_offsets(
    fields: Any, texts: Mapping[OutputPartition, str], at: OutputPartition
) -> dict[OutputPartition, Sequence[Any]]:
    offsets = {at: fields["offsets"]} if fields["offsets"] is not None else {}
    offsets |= {other: orjson.loads(text) for other, text in texts.items() if other != at}
    for begin, *pairs in offsets.values():
        flat = [begin, *chain.from_iterable(pair for pair in pairs if pair is not None)]
        sound = all(type(one) is int and 0 <= one <= MAX_OFFSET for one in flat)
        fits = len(pairs) == len(fields["segments"])
        _require(sound and fits, "does not say where to read")
    return offsets


def _read_readback(
    fields: Any, position: Position, offsets: Mapping[OutputPartition, Sequence[Any]]
) -> Readback:
    others: list[TopicPartition] = [(topic, number) for topic, number in fields["others"]]
    names, unit_ms = [*position, *others], fields["unit_ms"]
    known = all(is_source(name) or name in (UNKNOWN_SOURCE, UNKNOWN_LETTERS) for name in others)
    _require(known and type(unit_ms) is int and unit_ms >= 1, "does not say what to read")

    def reached(since_ms: Any, row: list[int | None]) -> Position:
        found = {
            name: position.get(name, 0) - gained * unit_ms
            for name, gained in zip(names, row, strict=False)
            if gained is not None
        }
        sound = all(type(ms) is int and 0 <= ms <= MAX_REACHED_MS for ms in found.values())
        fits = len(row) <= len(names) and is_time(since_ms)
        _require(sound and fits, "does not say what to read")
        return found

    closed = []
    for number, (since_ms, row) in enumerate(fields["segments"], 1):
        pairs = {at: numbers[number] for at, numbers in offsets.items() if numbers[number]}
        begin = {at: begin for at, (begin, _) in pairs.items()}
        end = {at: end for at, (_, end) in pairs.items()}
        closed.append(Segment(begin, end, reached(since_ms, row), since_ms))
    since_ms, first_row, last_row = fields["open"]
    first, last = reached(since_ms, first_row), reached(since_ms, last_row)
    _require(first.keys() == last.keys(), "does not say what to read")
    begins = {at: numbers[0] for at, numbers in offsets.items()}
    return Readback(begins, since_ms, first, last, tuple(closed))
