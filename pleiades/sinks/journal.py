"""An append-only file whose valid length is stored elsewhere.

Law: append, sync, store the length in a checkpoint that is replaced atomically; a start truncates the
file to the stored length. So the file holds exactly what the checkpoint covers, whenever a crash came.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

from pleiades.sinks.disk import is_in_place, open_own, sync_directory, sync_file, write_all


class JournalLost(Exception):
    """The file is missing, or shorter than its stored length."""


class Journal:
    """A journal that is open for appending.

    Args:
        length: the stored length in bytes; 0 begins a new journal, even if there is a file.

    Raises:
        JournalLost: see there.
        OSError: the file can't be opened.
    """

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        self.length = length
        """Bytes that are never overwritten: a checkpoint may name them."""
        # A checkpoint that names bytes was stored after its name was durable.
        self._has_durable_name = length > 0
        try:
            self._descriptor = open_own(path, os.O_RDWR if length else os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            if not length:
                # Its folder is missing.
                raise
            raise JournalLost(f"{path} is missing") from None
        try:
            found = self._size()
            if found < length:
                raise JournalLost(f"{path} has {found} of {length} bytes")
            self._truncate()
        except BaseException:
            self.close()
            raise

    def is_in_place(self) -> bool:
        """True if the file has not been moved or removed."""
        return is_in_place(self.path, self._descriptor)

    def is_removed(self) -> bool:
        """True if the file has no name any more."""
        return os.fstat(self._descriptor).st_nlink == 0

    def append(self, content: bytes) -> int:
        """Write after `length`; returns the length that includes the content.

        It overwrites what an earlier call wrote, unless `length` was raised: so it can be repeated.

        Raises:
            OSError: for example, the disk is full, or the file was removed (ENOENT).
        """
        if not self.is_in_place():
            raise FileNotFoundError(errno.ENOENT, "the journal was removed", str(self.path))
        self._truncate()
        os.lseek(self._descriptor, self.length, os.SEEK_SET)
        try:
            write_all(self._descriptor, content)
        except OSError:
            # On a full disk, a partial append would take the room that other files need.
            with contextlib.suppress(OSError):
                self._truncate()
            raise
        return self.length + len(content)

    def sync(self) -> None:
        """Bring appended bytes to the disk, and the file's name."""
        sync_file(self._descriptor)
        if not self._has_durable_name:
            sync_directory(self.path.parent)
            self._has_durable_name = True

    def reader(self) -> Callable[[int], bytes]:
        """A function that returns the next so many bytes below `length`; fewer at the end."""
        at = 0

        def read(size: int) -> bytes:
            nonlocal at
            content = os.pread(self._descriptor, min(size, self.length - at), at)
            at += len(content)
            return content

        return read

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _truncate(self) -> None:
        # Some FUSE file systems refuse to truncate a file to the size that it has.
        if self._size() != self.length:
            os.ftruncate(self._descriptor, self.length)

    def close(self) -> None:
        """Close the file; the next start truncates bytes that no checkpoint covers."""
        os.close(self._descriptor)
