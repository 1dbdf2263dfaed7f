"""An append-only file whose valid length is recorded elsewhere.

Law: append, sync, record the length in a checkpoint that is replaced in one step; a start truncates to
the recorded length. So what is in the file is exactly what the checkpoint covers, wherever a crash came.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pleiades.sinks.disk import is_in_place, open_own, write_all

CHUNK_BYTES = 1024 * 1024


class JournalLost(Exception):
    """The file is missing, or shorter than was recorded."""


class Journal:
    """One such file, open for appending.

    Args:
        path: where it is.
        length: the recorded one, in bytes; 0: it is a new file, whatever is there.

    Raises:
        JournalLost: see there.
        OSError: it can't be opened.
    """

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self.length = length
        """Bytes that are recorded."""
        flags = os.O_RDWR if length else os.O_RDWR | os.O_CREAT
        try:
            self._descriptor = open_own(path, flags)
        except FileNotFoundError:
            raise JournalLost(f"{path} is missing") from None
        try:
            there = os.fstat(self._descriptor).st_size
            if there < length:
                raise JournalLost(f"{path} has {there} of {length} bytes")
            os.ftruncate(self._descriptor, length)
        except BaseException:
            os.close(self._descriptor)
            raise

    def is_in_place(self) -> bool:
        """Whether the file is where it was opened."""
        return is_in_place(self.path, self._descriptor)

    def append(self, content: bytes) -> int:
        """Write behind the recorded length; returns the length to record.

        A call that follows without `record` overwrites it: so an append that failed can be repeated.

        Raises:
            OSError: the disk is full, for example; or the file was removed (ENOENT).
        """
        if not self.is_in_place():
            raise FileNotFoundError(errno.ENOENT, "the journal was removed", str(self.path))
        os.ftruncate(self._descriptor, self.length)
        os.lseek(self._descriptor, self.length, os.SEEK_SET)
        try:
            write_all(self._descriptor, content)
        except OSError:
            # On a full disk the part that was written would be in the way of all else.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self.length)
            raise
        return self.length + len(content)

    def sync(self) -> None:
        """Bring what was appended to the disk."""
        os.fsync(self._descriptor)

    def record(self, length: int) -> None:
        """The checkpoint says this length now."""
        self.length = length

    def content(self) -> Iterator[bytes]:
        """All that is recorded, in pieces of `CHUNK_BYTES`."""
        at = 0
        while at < self.length:
            piece = os.pread(self._descriptor, min(CHUNK_BYTES, self.length - at), at)
            if not piece:
                raise JournalLost(f"{self.path} was cut to {at} bytes")
            yield piece
            at += len(piece)

    def close(self) -> None:
        """Close it; what is not recorded is truncated by the next start."""
        os.close(self._descriptor)
