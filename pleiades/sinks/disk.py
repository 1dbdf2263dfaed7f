"""What a file system must be asked for by hand: whole files, syncs, a lock."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pleiades.runtime import faultpoints
from pleiades.runtime.errors import DestinationHeld

# A link that somebody else has put there is never followed: with the relay's rights it could overwrite
# any file. Nor is a pipe waited for.
_GUARDED = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _GUARDED
_libc = ctypes.CDLL(None, use_errno=True)
_renameat2: Any = getattr(_libc, "renameat2", None)
_RENAME_NOREPLACE = 1
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""Not on this file system, or not of this kernel: to try again would not help."""


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """A descriptor in which names can be looked up, and which can be synced."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _GUARDED)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_own(path: Path, flags: int) -> int:
    """Open a file of the relay's own.

    Raises:
        OSError: it is a link or has a second name (ELOOP): somebody else's file may be behind it. Or it
            is no file at all.
    """
    descriptor = os.open(path, flags | _GUARDED, 0o666)
    found = os.fstat(descriptor)
    why = None
    if not stat.S_ISREG(found.st_mode):
        why = "it is no regular file: remove it"
    elif found.st_nlink > 1:
        why = "it has a second name (a hard link), so it may be another's file: put a copy in its place"
    if why is not None:
        os.close(descriptor)
        raise OSError(errno.ELOOP, why, str(path))
    return descriptor


def is_in_place(path: Path, descriptor: int) -> bool:
    """Whether an open file or folder is what stands at a path."""
    try:
        there = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def write_whole(name: str, content: bytes, folder: int) -> None:
    """Write a new file in an open folder."""
    descriptor = os.open(name, _CREATE, 0o666, dir_fd=folder)
    try:
        write_all(descriptor, content)
    finally:
        os.close(descriptor)


def rename_new(name: str, folder: int, new: str, new_folder: int) -> bool:
    """Rename a file unless there is one of the new name; False then, or if that can't be told so."""
    # One call. Python has no name for it, and to look first costs as much as a third of all the rest.
    if _renameat2 is None:
        return False
    if _renameat2(folder, name.encode(), new_folder, new.encode(), _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EEXIST or number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), name, None, new)


def replace_file(path: Path, content: bytes, synced: bool) -> None:
    """Replace a file in one step; synced: the new content is on the disk when this returns."""
    staged = path.with_name(path.name + ".new")
    # Whatever a crash, or somebody else, has left there.
    staged.unlink(missing_ok=True)
    descriptor = open_own(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        write_all(descriptor, content)
        if synced:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    faultpoints.passing(faultpoints.CHECKPOINT_STAGED)
    staged.replace(path)
    faultpoints.passing(faultpoints.CHECKPOINT_REPLACED)
    if synced:
        sync_directory(path.parent)


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of it at the current place."""
    # A nearly full disk takes a part, and says so only at the next write.
    written = os.write(descriptor, content)
    while written < len(content):
        written += os.write(descriptor, content[written:])


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk."""
    with open_folder(path) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems bring names to the disk by themselves, and refuse to be asked.
            if error.errno not in _UNSUPPORTED:
                raise


def sync_file_system(folder: int) -> None:
    """Bring everything on an open folder's file system to the disk: syncfs(2), one call for a batch."""
    # Python has no os.syncfs; where libc has none either, sync(2) does more than is needed.
    syncfs = getattr(_libc, "syncfs", None)
    if syncfs is None:
        os.sync()
    elif syncfs(folder) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Lock:
    """Keeps a second instance out of a directory; the kernel frees it when its holder dies.

    Args:
        path: the file that is locked.
        place: the directory, for messages.
        must_exist: an earlier process of this program held the lock, so the file must be there.
    """

    def __init__(self, path: Path, place: Path, must_exist: bool = False) -> None:
        self._path = path
        self._place = place
        self._must_exist = must_exist
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, unless this object holds it.

        Raises:
            DestinationHeld: another instance holds it.
            FileNotFoundError: see `check`.
        """
        self.check()
        if self._descriptor is not None and is_in_place(self._path, self._descriptor):
            return
        # The lock on a removed file keeps nobody out: a newcomer makes a new file.
        self.release()
        descriptor = open_own(self._path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder_in(descriptor)
            os.close(descriptor)
            raise _held(holder, self._place) from None
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self._must_exist = False
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    def check(self) -> None:
        """Make sure that the directory is the one that was opened. A removed one passes: it is remade.

        Raises:
            FileNotFoundError: it was moved, or its volume unmounted. Files written now would be missing
                when it is back, and the position would cover them.
        """
        locked = self._descriptor
        if locked is None:
            is_gone = self._must_exist and not self._path.exists()
        else:
            is_gone = not is_in_place(self._path, locked) and os.fstat(locked).st_nlink > 0
        if is_gone:
            raise FileNotFoundError(
                errno.ENOENT,
                "the directory was moved, replaced or removed, or its volume unmounted: put it back, or "
                "stop this relay and start another to publish into a new one",
                str(self._place),
            )

    def release(self) -> None:
        """Release the lock, if this object holds it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def holder_of(path: Path) -> str | None:
    """Who holds the lock on a file, in words; None: nobody. Changes nothing.

    Raises:
        OSError: the file can't be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        # Shared and released at once: an instance that starts at this moment tries again.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder_in(descriptor)
    finally:
        os.close(descriptor)
    return None


def refuse_if_held(path: Path, place: Path) -> None:
    """Look whether another instance holds the lock of a directory; changes nothing.

    Raises:
        DestinationHeld: it does.
    """
    holder = holder_of(path)
    if holder is not None:
        raise _held(holder, place)


def _held(holder: str, place: Path) -> DestinationHeld:
    return DestinationHeld(
        f"{holder} publishes into {place} already. This instance writes nothing and stops. "
        "Stop the other one, or choose another --file.publishDir"
    )


def _holder_in(descriptor: int) -> str:
    holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
    return f"process {holder}" if holder.isascii() and holder.isdigit() else "another instance"
