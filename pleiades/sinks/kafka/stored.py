"""What stands in the metadata of the committed offsets: the position, and what a restart reads back.

Kafka keeps at most 4,096 bytes with each offset (`offset.metadata.max.bytes`), and one offset for each
output partition. With that of partition 0 stands the position, and what the segments to be read have
reached (`core.readback`); with each partition's own, where in it they begin and end. So any number of
partitions fits. All of them are committed in the transaction that holds the events.

The usual position is readable JSON of about 600 bytes. A long one, of many streams, is packed: zlib
brings 128 topic-partitions to about half of what there is. Where that is not enough, what the segments
have reached is rounded up, then segments are merged: a restart reads more, and nothing is forgotten.

The version before finds what it needs in it: it reads from `window_since_ms` on.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import orjson

from pleiades.core.position import (
    LEGACY_WINDOW_MS,
    Checkpoint,
    Position,
    UnreadableCheckpoint,
    is_time,
    listed,
    listed_coverage,
    read_coverage,
    read_done,
    read_listed,
)
from pleiades.core.readback import (
    MAX_SEGMENTS,
    UNKNOWN_LETTERS,
    OutputPartition,
    Readback,
    Segment,
)
from pleiades.core.wire import MAX_TIMESTAMP_MS, UNKNOWN_SOURCE, TopicPartition, is_source
from pleiades.runtime.errors import Fatal

FORMAT_VERSION = 1
MAX_METADATA_BYTES = 4096
"""The broker's default for `offset.metadata.max.bytes`."""
MAX_UNPACKED_BYTES = 1024 * 1024
MAX_OFFSET = 2**63 - 1
MAX_REACHED_MS = 2 * MAX_TIMESTAMP_MS
_PACKED = "zlib:"
_WRITER = re.compile(r"[0-9a-f]{1,32}")
_FITS = ((MAX_SEGMENTS, 1), (MAX_SEGMENTS, 60_000), (6, 60_000), (3, 60_000), (1, 600_000))
"""What is tried until it fits: closed segments, and to how many ms their timestamps are rounded up."""


class Stored(NamedTuple):
    """All that is durable beside the events themselves."""

    checkpoint: Checkpoint
    readback: Readback | None
    """None: the version before wrote it, and it says from which publish time on to read."""
    writer: str
    """Names the process that committed it: how one that was fenced learns by whom."""
    since_ms: int = 0
    """That publish time."""


def encode(stored: Stored, at: OutputPartition) -> dict[OutputPartition, str]:
    """As the metadata of an offset for each output partition.

    Args:
        at: the partition of the position.

    Raises:
        Fatal: the position has more topic-partitions than fit.
    """
    if stored.readback is None:
        raise AssertionError("this version always stores what is to be read back")
    for segments, unit_ms in _FITS:
        readback = stored.readback.merged(segments)
        offsets = _offsets(readback)
        plain = orjson.dumps(
            _position(stored, readback, unit_ms) | {"offsets": offsets.pop(at, None)}
        )
        if len(plain) <= MAX_METADATA_BYTES:
            position = plain.decode()
        else:
            position = _PACKED + base64.b85encode(zlib.compress(plain, 9)).decode()
        if len(position) <= MAX_METADATA_BYTES:
            return {at: position} | {
                other: orjson.dumps(numbers).decode() for other, numbers in offsets.items()
            }
    raise Fatal(
        f"the position of {len(stored.checkpoint.position)} upstream topics does not fit into the "
        f"{MAX_METADATA_BYTES} bytes that Kafka keeps with an offset. Nothing is lost: what is "
        "committed is safe. Give fewer streams to one instance (--upstream.stream) and start "
        "another one for the rest"
    )


def _position(stored: Stored, readback: Readback, unit_ms: int) -> dict[str, Any]:
    checkpoint = stored.checkpoint
    position = sorted(checkpoint.position.items())
    others = {*readback.reached, *(s for each in readback.closed for s in each.reached)}
    names = [source for source, _ in position]
    names += sorted(others - checkpoint.position.keys())

    def row(reached: Position) -> list[int | None]:
        """As what the position has gained since, in its order: small numbers pack well."""
        return _trimmed(
            None
            if source not in reached
            else (checkpoint.position.get(source, 0) - reached[source]) // unit_ms
            for source in names
        )

    encoded = {
        "version": FORMAT_VERSION,
        "position": listed(checkpoint.position),
        "started_ms": checkpoint.started_ms,
        "clock_ms": checkpoint.clock_ms,
        "window_since_ms": readback.oldest_ms,
        "mark": None,
        "writer": stored.writer,
        "known_from": _known_from(checkpoint, [source for source, _ in position]),
        "others": names[len(position) :],
        "unit_ms": unit_ms,
        "open": [readback.since_ms, row(readback.first), row(readback.reached)],
        "segments": [[each.since_ms, row(each.reached)] for each in readback.closed],
    }
    if checkpoint.coverage:
        encoded["coverage"] = listed_coverage(checkpoint.coverage)
    if checkpoint.done is not None:
        encoded["done"] = checkpoint.done.listed(source for source, _ in position)
    return encoded


def _trimmed(row: Iterable[int | None]) -> list[int | None]:
    trimmed = list(row)
    while trimmed and trimmed[-1] is None:
        trimmed.pop()
    return trimmed


def _known_from(checkpoint: Checkpoint, names: list[TopicPartition]) -> list[Any]:
    """How far behind min(position, clock), as a rule one number for all; the others; and whether the
    unknown source's follows from these.
    """
    known = checkpoint.known_from
    behind = [
        _limited(checkpoint, source) - known[source] if source in known else None
        for source in names
    ]
    others = {source: ms for source, ms in known.items() if source not in checkpoint.position}
    follows = UNKNOWN_SOURCE in others and others[UNKNOWN_SOURCE] == _least_known(checkpoint, known)
    if follows:
        del others[UNKNOWN_SOURCE]
    alike = behind[0] if len(set(behind)) == 1 else behind
    return [alike, listed(others), follows]


def _limited(checkpoint: Checkpoint, source: TopicPartition) -> int:
    return min(checkpoint.position[source], checkpoint.clock_ms)


def _least_known(checkpoint: Checkpoint, known: Position) -> int | None:
    """What `Checkpoint.remembering` says of the unknown source."""
    delivered = [source for source, reached in checkpoint.position.items() if reached]
    return min((known.get(source, 0) for source in delivered), default=None)


def _offsets(readback: Readback) -> dict[OutputPartition, list[Any]]:
    """For each output partition: where the open segment begins, and begin and end of the others."""
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


def read_metadata(metadata: str) -> Stored:
    """The position alone; `readback` is none to go by.

    Raises:
        UnreadableCheckpoint: see `read_stored`.
    """
    at = ("", 0)
    return read_stored({at: metadata}, at)


def read_stored(texts: Mapping[OutputPartition, str], at: OutputPartition) -> Stored:
    """Read what `encode` gave; of a partition that was added since there is nothing.

    Raises:
        UnreadableCheckpoint: it is cut short, damaged, of another version, or somebody else's.
    """
    try:
        fields = _unpacked(texts[at])
        version = fields["version"]
        if type(version) is not int or version != FORMAT_VERSION:
            raise UnreadableCheckpoint(f"its format version is {str(version)[:20]}")
        position = _read_position(fields["position"])
        times = [fields["started_ms"], fields["clock_ms"], fields["window_since_ms"]]
        if not all(map(is_time, [*times, *position.values()])):
            raise UnreadableCheckpoint("it holds values that are no position")
        writer = fields["writer"]
        if type(writer) is not str or _WRITER.fullmatch(writer) is None:
            raise UnreadableCheckpoint("it does not say who wrote it")
        done = read_done(fields.get("done"), position)
        started_ms, clock_ms, since_ms = times
        checkpoint = Checkpoint(position, started_ms, clock_ms, done)
        if "segments" not in fields:
            return Stored(checkpoint.remembering(LEGACY_WINDOW_MS), None, writer, since_ms)
        known_from = _read_known_from(checkpoint, *fields["known_from"])
        coverage = read_coverage(fields.get("coverage", []))
        checkpoint = replace(checkpoint, known_from=known_from, coverage=coverage)
        readback = _read_readback(fields, checkpoint, _read_offsets(fields, texts, at))
    except UnreadableCheckpoint:
        raise
    except (ValueError, KeyError, TypeError, IndexError, zlib.error) as error:
        raise UnreadableCheckpoint(f"it can't be read ({type(error).__name__})") from None
    return Stored(checkpoint, readback, writer, since_ms)


def _unpacked(metadata: str) -> Any:
    if not metadata.startswith(_PACKED):
        return orjson.loads(metadata)
    unpacking = zlib.decompressobj()
    plain = unpacking.decompress(
        base64.b85decode(metadata.removeprefix(_PACKED)), MAX_UNPACKED_BYTES
    )
    if not unpacking.eof:
        raise UnreadableCheckpoint("it is cut short or too large")
    return orjson.loads(plain)


def _read_position(rows: Any) -> Position:
    position = {(topic, partition): reached for topic, partition, reached in rows}
    if len(position) != len(rows) or not all(map(is_source, position)):
        raise UnreadableCheckpoint("it holds values that are no position")
    return position


def _read_known_from(checkpoint: Checkpoint, behind: Any, others: Any, follows: Any) -> Position:
    names = list(checkpoint.position)
    each = behind if type(behind) is list else [behind] * len(names)
    known = {
        source: _limited(checkpoint, source) - behind_ms
        for source, behind_ms in zip(names, each, strict=True)
        if behind_ms is not None
    }
    least = _least_known(checkpoint, known)
    if follows and least is not None:
        known[UNKNOWN_SOURCE] = least
    known |= read_listed(others)
    if not all(map(is_time, known.values())):
        raise UnreadableCheckpoint("it holds values that are no position")
    return known


def _read_offsets(
    fields: Any, texts: Mapping[OutputPartition, str], at: OutputPartition
) -> dict[OutputPartition, Sequence[Any]]:
    count = len(fields["segments"])
    offsets = {}
    for partition, text in texts.items():
        numbers = fields["offsets"] if partition == at else orjson.loads(text)
        if numbers is None:
            continue
        flat = [numbers[0], *(one for pair in numbers[1:] if pair is not None for one in pair)]
        if len(numbers) != count + 1 or not all(
            type(one) is int and 0 <= one <= MAX_OFFSET for one in flat
        ):
            raise UnreadableCheckpoint("it does not say where to read")
        offsets[partition] = numbers
    return offsets


def _read_readback(
    fields: Any, checkpoint: Checkpoint, offsets: Mapping[OutputPartition, Sequence[Any]]
) -> Readback:
    names = [*checkpoint.position, *((topic, number) for topic, number in fields["others"])]
    unit_ms = fields["unit_ms"]
    named = names[len(checkpoint.position) :]
    if (
        type(unit_ms) is not int
        or unit_ms < 1
        or not all(
            is_source(source) or source in (UNKNOWN_SOURCE, UNKNOWN_LETTERS) for source in named
        )
    ):
        raise UnreadableCheckpoint("it does not say what to read")

    def reached(row: list[int | None]) -> Position:
        if len(row) > len(names):
            raise UnreadableCheckpoint("it does not say what to read")
        position = {
            source: checkpoint.position.get(source, 0) - gained * unit_ms
            for source, gained in zip(names, row, strict=False)
            if gained is not None
        }
        if not all(type(ms) is int and 0 <= ms <= MAX_REACHED_MS for ms in position.values()):
            raise UnreadableCheckpoint("it does not say what to read")
        return position

    closed = []
    for number, (since_ms, row) in enumerate(fields["segments"], 1):
        pairs = {at: numbers[number] for at, numbers in offsets.items() if numbers[number]}
        begin = {at: begin for at, (begin, _) in pairs.items()}
        end = {at: end for at, (_, end) in pairs.items()}
        closed.append(Segment(begin, end, reached(row), since_ms))
    since_ms, first, last = fields["open"]
    if not all(map(is_time, [since_ms, *(each.since_ms for each in closed)])):
        raise UnreadableCheckpoint("it does not say what to read")
    begins = {at: numbers[0] for at, numbers in offsets.items()}
    opened = reached(first), reached(last)
    if opened[0].keys() != opened[1].keys():
        raise UnreadableCheckpoint("it does not say what to read")
    return Readback(begins, since_ms, *opened, tuple(closed))
