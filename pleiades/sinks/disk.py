"""File operations that Python does not have, or not safely enough: guarded opens, syncs, a lock."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pleiades.runtime import faultpoints
from pleiades.runtime.errors import DestinationHeld
from pleiades.runtime.file_systems import REFUSALS

# Somebody may plant a link, and the relay, with its rights, would overwrite the file behind it; or a
# pipe, and the relay would wait for its other end.
_GUARDED = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _GUARDED
_libc = ctypes.CDLL(None, use_errno=True)
_renameat2: Any = getattr(_libc, "renameat2", None)
_RENAME_NOREPLACE = 1
_IS_LINK = "it is a link, which is not followed"


class Refused(OSError):
    """The file system does not have the call, and there is another way."""


def refuse_links(folders: Iterable[Path]) -> None:
    """Make sure that folders of the relay's own are no links.

    Raises:
        OSError: one is. Whoever may write there could lead the relay, with its rights, to files of
            others.
    """
    for folder in folders:
        if folder.is_symlink():
            raise OSError(errno.ELOOP, _IS_LINK, str(folder))


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """A descriptor of a folder."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _GUARDED)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_own(path: Path, flags: int) -> int:
    """Open a file of the relay's own.

    Raises:
        OSError: it is a link or has a second name (ELOOP), so it may be a file of somebody else; or it
            is no regular file.
    """
    try:
        descriptor = os.open(path, flags | _GUARDED, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, _IS_LINK, str(path)) from None
        raise
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    why = "it is no regular file: remove it"
    if stat.S_ISREG(found.st_mode):
        why = "it has a second name (a hard link), so it may be another's file: put a copy in its place"
    raise OSError(errno.ELOOP, why, str(path))


def is_in_place(path: Path, descriptor: int) -> bool:
    """True if an open file or folder still has this path."""
    try:
        there = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def write_new(name: str, content: bytes, folder: int) -> None:
    """Write a new file in an open folder."""
    descriptor = os.open(name, _CREATE, 0o666, dir_fd=folder)
    try:
        write_all(descriptor, content)
    finally:
        os.close(descriptor)


def create_again(path: Path) -> int:
    """Create a file and open it for writing; one that a crash, or somebody else, left is removed."""
    path.unlink(missing_ok=True)
    return os.open(path, _CREATE, 0o666)


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of the content at the current offset."""
    # A nearly full disk takes a part, and reports an error only at the next write.
    written = os.write(descriptor, content)
    while written < len(content):
        written += os.write(descriptor, content[written:])


def rename_new(name: str, folder: int, new: str, new_folder: int) -> bool:
    """Rename a file; False if there is one of the new name, or if the file system can't rename so."""
    # Python has no name for this call. Looking first would cost a third of all the rest.
    if _renameat2 is None:
        return False
    if _renameat2(folder, name.encode(), new_folder, new.encode(), _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number == errno.EEXIST or number in REFUSALS:
        return False
    raise OSError(number, os.strerror(number), name, None, new)


def rename_unless_there(name: str, folder: int, new: str, new_folder: int) -> bool:
    """Rename a file; False if there is one of the new name.

    Where the file system can't rename without replacing, a look precedes: the caller is the only writer.
    """
    if rename_new(name, folder, new, new_folder):
        return True
    try:
        os.stat(new, dir_fd=new_folder, follow_symlinks=False)
    except FileNotFoundError:
        os.replace(name, new, src_dir_fd=folder, dst_dir_fd=new_folder)
        return True
    return False


def replace_file(
    path: Path,
    content: bytes,
    synced: bool,
    points: tuple[str, str] = (faultpoints.CHECKPOINT_STAGED, faultpoints.CHECKPOINT_REPLACED),
) -> None:
    """Replace a file atomically; synced: the new content is on the disk when this returns.

    Args:
        points: the fault points before and after it has its name.

    Raises:
        OSError: the file may have been replaced, or not.
    """
    staged = path.with_name(path.name + ".new")
    descriptor = create_again(staged)
    try:
        write_all(descriptor, content)
        if synced:
            sync_file(descriptor)
    finally:
        os.close(descriptor)
    faultpoints.passing(points[0])
    staged.replace(path)
    faultpoints.passing(points[1])
    if synced:
        sync_directory(path.parent)


def sync_file(descriptor: int) -> None:
    """Bring an open file to the disk."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, f"fsync: {error.strerror}") from None


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk."""
    with open_folder(path) as descriptor:
        _sync_names(descriptor)


def _sync_names(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        # CIFS refuses this: it writes names through by itself. Others may keep them for a while.
        try:
            sync_file_system(folder)
        except Refused:
            os.sync()


def sync_file_system(folder: int) -> None:
    """Bring everything on the file system of an open folder to the disk: one call for a batch.

    Raises:
        Refused: the file system can't. `sync_files` takes longer, and does the same for one folder.
    """
    # Python has no os.syncfs.
    syncfs = getattr(_libc, "syncfs", None)
    if syncfs is None or syncfs(folder) != 0:
        number = ctypes.get_errno() if syncfs else errno.ENOSYS
        kind = Refused if number in REFUSALS else OSError
        raise kind(number, f"syncfs: {os.strerror(number)}")


def sync_files(folder: int) -> None:
    """Bring the files of an open folder to the disk, each by itself, and their names."""
    for name in os.listdir(folder):
        descriptor = os.open(name, os.O_WRONLY | _GUARDED, dir_fd=folder)
        try:
            sync_file(descriptor)
        finally:
            os.close(descriptor)
    _sync_names(folder)


class Lock:
    """Keeps a second instance out of a directory; the kernel frees it when its holder dies.

    Args:
        path: the file that is locked.
        place: the directory, for messages.
        flag: chooses it.
        must_exist: an earlier process of this program held the lock, so the file must be there.
    """

    def __init__(self, path: Path, place: Path, flag: str, must_exist: bool = False) -> None:
        self._path = path
        self._place = place
        self._flag = flag
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
            self._flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
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

    def refuse_if_held(self) -> None:
        """Find out, without taking the lock, whether another instance holds it; changes nothing.

        Raises:
            DestinationHeld: it does.
            OSError: the file can't be read or locked.
        """
        try:
            descriptor = open_own(self._path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            # Shared and released at once: an instance that starts at this moment tries again.
            self._flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Release the lock, if this object holds it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _flock(self, descriptor: int, kind: int) -> None:
        # There is no other way: file systems without flock(2) have no fcntl(2) locks either, or would
        # release those when any descriptor of the file is closed.
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._held_by(descriptor) from None
        except OSError as error:
            why = f"flock: {error.strerror}, so nothing would keep a second instance out"
            raise OSError(error.errno, why, str(self._path)) from None

    def _held_by(self, descriptor: int) -> DestinationHeld:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        who = f"process {holder}" if holder.isascii() and holder.isdigit() else "another instance"
        return DestinationHeld(
            f"{who} publishes into {self._place} already: a second instance writes nothing and stops. "
            f"Stop the first one, or choose another {self._flag}"
        )
