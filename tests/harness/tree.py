"""The exact state of a directory tree."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """A file or folder; it differs after a write, creation, rename or touch."""

    inode: int
    mode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


def tree(folder: Path) -> dict[str, Entry]:
    """Return everything below a folder, including itself, by path; links are not followed."""
    paths = [folder]
    for parent, folders, files in os.walk(folder):
        paths += [Path(parent) / name for name in (*folders, *files)]
    return {str(path): _entry(path.lstat()) for path in paths}


def lasting_tree(folder: Path) -> dict[str, Entry]:
    """The same without the times of folders: a temporary file changes them."""
    return {
        path: entry._replace(modified_ns=0, changed_ns=0) if stat.S_ISDIR(entry.mode) else entry
        for path, entry in tree(folder).items()
    }


def _entry(found: os.stat_result) -> Entry:
    return Entry(found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
