"""The events in a closed segment, in every format."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import msgspec

from pleiades.core.body import NotJson, read_body
from pleiades.core.identity import are_names, fallback_identity, identity_of, is_fallback
from pleiades.core.sse_id import UNKNOWN_SOURCE
from pleiades.sinks.archive.codecs import DamagedSegment, decompressed
from pleiades.sinks.archive.layout import CODEC_OF, PARQUET

BATCH_ROWS = 1000
MAX_LINE_BYTES = 64 << 20
"""No event is longer: what has no line end for so long is no segment."""


class ParquetMissing(Exception):
    """The library that reads Parquet is not installed."""


def lines_of(name: str, read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The events of a segment: whole lines, many at once, each with its line end.

    Args:
        name: of the segment, which ends in its format.
        read: returns the next bytes of the file, at most so many, and none at the end.

    Raises:
        DamagedSegment: it is no such file, or its end is missing.
        ParquetMissing: see there.
    """
    if name.endswith(f".{PARQUET}"):
        yield from _rows(read)
        return
    extension = next(known for known in CODEC_OF if name.endswith(f".{known}"))
    held = b""
    for text in decompressed(read, CODEC_OF[extension]):
        whole, end, rest = text.rpartition(b"\n")
        if end:
            yield held + whole + end
            held = rest
        else:
            held += rest
        if len(held) > MAX_LINE_BYTES:
            raise DamagedSegment("a line is longer than any event")
    if held:
        raise DamagedSegment("its last line has no end")


def _rows(read: Callable[[int], bytes]) -> Iterator[bytes]:
    try:
        parquet: Any = import_module("pyarrow.parquet")
        arrow: Any = import_module("pyarrow")
    except ImportError:
        raise ParquetMissing from None
    # A reader begins at the end of the file.
    with tempfile.TemporaryFile() as copy:
        while piece := read(1 << 20):
            copy.write(piece)
        copy.seek(0)
        try:
            rows = parquet.ParquetFile(copy).iter_batches(BATCH_ROWS, columns=["json"])
            for row in rows:
                values = row.column(0).cast(arrow.binary()).to_pylist()
                yield b"".join(value + b"\n" for value in values)
        except (arrow.ArrowException, OSError, IndexError, TypeError) as error:
            raise DamagedSegment(f"it can't be read as Parquet ({error})"[:300]) from None


class _Meta(msgspec.Struct, gc=False):
    id: str = ""


class _Event(msgspec.Struct, gc=False):
    meta: _Meta


_decode_lines = msgspec.json.Decoder(_Event).decode_lines


def identities_in(lines: bytes) -> list[str]:
    """The identity of each line; see `core.identity`.

    The fallback identity of an event without a usable `meta.id` is not the published one, which depends
    on the event's topic and timestamp: `is_alike` is true for it.
    """
    try:
        identities = [event.meta.id for event in _decode_lines(lines)]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        identities = []
    if identities and len(identities) == lines.count(b"\n") and are_names(identities):
        return identities
    return [_identity(line) for line in lines[:-1].split(b"\n")]


def is_alike(identity: str) -> bool:
    """True if it says only that two events have the same content."""
    return is_fallback(identity)


def _identity(line: bytes) -> str:
    try:
        body = read_body(line)
    except NotJson:
        body = None
    if body is None:
        return fallback_identity(UNKNOWN_SOURCE, 0, line)
    return identity_of(body.meta) or fallback_identity(UNKNOWN_SOURCE, 0, body.content)
