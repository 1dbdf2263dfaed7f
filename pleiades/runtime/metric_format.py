"""The format of the files of figures, and how one is read whatever lies there.

It is prometheus-client's (`mmap_dict.py`), but for a mark in what is padding there: used bytes (4), mark
(4), then entries of key length (4), key, padding to 8, value (8), timestamp (8).
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import NamedTuple

MAX_FILE_BYTES = 4 << 20
"""More than ten thousand series. A larger file is none of ours, and is not read."""

HEADER = struct.Struct("=ii")
"""Used bytes, and a mark."""
LENGTH = struct.Struct("=i")
"""Of a key."""
FIGURE = struct.Struct("=dd")
"""A value and its timestamp."""
WHOLE, INCOMPLETE = 0, 1
"""The mark: whether its process could write all that it has."""

# Never waits for whoever should hold the other end of a FIFO, never leaves the folder.
_READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


class DamagedFile(Exception):
    """Not a file of figures, or not a whole one; the message says in what way."""


class Entry(NamedTuple):
    """One series as it stands in a file."""

    key: str
    value: float
    timestamp: float
    place: int
    """Where the value lies, in bytes from the beginning."""


class Contents(NamedTuple):
    """What a file says."""

    entries: list[Entry]
    used: int
    complete: bool
    """False: its process has figures that it could not write."""


def read_file(path: Path) -> bytes:
    """The bytes of a regular file, at once and bounded, whatever lies there.

    Raises:
        DamagedFile: it is no regular file, or too large.
        OSError: it can't be read.
    """
    descriptor = os.open(path, _READ_FLAGS)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DamagedFile("it is no regular file")
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            content = bytearray()
            while len(content) <= MAX_FILE_BYTES and (part := file.read(MAX_FILE_BYTES + 1)):
                content += part
    finally:
        os.close(descriptor)
    if len(content) > MAX_FILE_BYTES:
        raise DamagedFile(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
    return bytes(content)


def parse(content: bytes) -> Contents:
    """What a file's bytes say.

    Raises:
        DamagedFile: they are not what a process writes.
    """
    if len(content) < HEADER.size:
        raise DamagedFile("it is cut short")
    used, mark = HEADER.unpack_from(content)
    if used < HEADER.size or mark not in (WHOLE, INCOMPLETE):
        raise DamagedFile("its beginning is overwritten")
    if used > len(content):
        raise DamagedFile("it is cut short")
    entries = []
    place = HEADER.size
    try:
        while place < used:
            (length,) = LENGTH.unpack_from(content, place)
            start = place + LENGTH.size
            place = start + length + padding(length)
            if length < 0 or place + FIGURE.size > used:
                raise DamagedFile("an entry reaches beyond its end")
            key = content[start : start + length].decode()
            value, timestamp = FIGURE.unpack_from(content, place)
            entries.append(Entry(key, value, timestamp, place))
            place += FIGURE.size
    except (struct.error, UnicodeDecodeError) as error:
        raise DamagedFile(f"an entry is overwritten: {error}") from None
    return Contents(entries, used, mark == WHOLE)


def padding(length: int) -> int:
    """After a key of so many bytes, so that the value lies at a multiple of 8."""
    return 8 - (length + LENGTH.size) % 8
