"""The last steps of a segment: its line in the manifest, and its name. Each can be repeated.

The checkpoint holds the line before the first step, so a start repeats what a crash interrupted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pleiades.sinks.archive.manifest import MAX_LINE_BYTES, DamagedManifest, Entry, decode_entry
from pleiades.sinks.disk import (
    open_folder,
    open_own,
    refuse_links,
    rename_unless_there,
    sync_directory,
    sync_file,
    write_all,
)


class Manifest:
    """The manifest of an archive; see `manifest` for its lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def last_sequence(self) -> int:
        """The sequence number of its last line; 0: there is none, or none that can be read.

        Raises:
            OSError: it can't be read.
        """
        tail, _ = self._end()
        return max((entry.sequence for entry in _entries(tail)), default=0)

    def length(self) -> int:
        """The bytes of its whole lines.

        Raises:
            OSError: it can't be read.
        """
        tail, size = self._end()
        return size - len(tail) + tail.rfind(b"\n") + 1

    def _end(self) -> tuple[bytes, int]:
        """Its last bytes, and its size."""
        try:
            descriptor = open_own(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return b"", 0
        try:
            return _tail(descriptor)
        finally:
            os.close(descriptor)

    def ensure(self, entry: Entry) -> int:
        """Append the line of a segment durably, unless it is there; returns the length in bytes.

        Raises:
            OSError: a part of the line may be there; try again.
        """
        descriptor = open_own(self.path, os.O_RDWR | os.O_CREAT)
        try:
            tail, length = _tail(descriptor)
            if not any(found.name == entry.name for found in _entries(tail)):
                # A crash may have left a part of a line.
                length -= len(tail) - (tail.rfind(b"\n") + 1)
                os.ftruncate(descriptor, length)
                os.lseek(descriptor, length, os.SEEK_SET)
                line = entry.encoded()
                write_all(descriptor, line)
                length += len(line)
            sync_file(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(self.path.parent)
        return length


def _tail(descriptor: int) -> tuple[bytes, int]:
    """The last bytes of an open file, and its size."""
    size = os.fstat(descriptor).st_size
    length = min(size, 2 * MAX_LINE_BYTES)
    return os.pread(descriptor, length, size - length), size


def _entries(tail: bytes) -> Iterator[Entry]:
    for line in tail.split(b"\n")[:-1]:
        try:
            yield decode_entry(line)
        except DamagedManifest:
            # Its begin is cut, or somebody edited it; `pleiades verify` tells.
            continue


def give_name(source: Path, archive: Path, name: str) -> None:
    """Rename a file to its name in the archive, durably, unless that has happened.

    Raises:
        FileExistsError: another file has the name.
        OSError: it failed; try again.
    """
    target = archive / name
    if os.path.lexists(source):
        _make_folders(target.parent, archive)
        with open_folder(source.parent) as folder, open_folder(target.parent) as new_folder:
            if not rename_unless_there(source.name, folder, target.name, new_folder):
                raise FileExistsError(errno.EEXIST, "another file has this name", str(target))
    if target.parent.is_dir():
        sync_directory(target.parent)


def _make_folders(folder: Path, archive: Path) -> None:
    """Make the folders of a segment; their names are durable then."""
    path = archive
    for part in folder.relative_to(archive).parts:
        path /= part
        if not path.is_dir():
            path.mkdir()
            sync_directory(path.parent)
        refuse_links([path])
