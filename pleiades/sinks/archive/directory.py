"""A directory as the target: copied, synced, and named without ever replacing anything."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pleiades.runtime import faultpoints
from pleiades.runtime.file_systems import REFUSALS
from pleiades.sinks.archive.target import (
    MAX_MANIFEST_BYTES,
    OWN_FOLDER,
    Changed,
    Exists,
    Found,
    Read,
    Reader,
    TargetError,
)
from pleiades.sinks.disk import (
    create_again,
    open_folder,
    open_own,
    rename_unless_there,
    sync_directory,
    sync_file,
    write_all,
)

PIECE_BYTES = 1 << 20
MAX_WRITER = 200

P = ParamSpec("P")
T = TypeVar("T")


def _explained(call: Callable[P, T]) -> Callable[P, T]:
    """Turn errors of the system into TargetError."""

    @wraps(call)
    def explained(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return call(*arguments, **named)
        except OSError as error:
            raise TargetError(_in_words(error)) from None

    return explained


def _in_words(error: OSError) -> str:
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    hints = {
        errno.ENOSPC: "free some room there",
        errno.EDQUOT: "free some room there",
        errno.EACCES: "let the relay's user write there",
        errno.EPERM: "let the relay's user write there",
        errno.EROFS: "it is mounted read-only",
        errno.ENOTDIR: "a file is in the way",
    }
    hint = hints.get(error.errno or 0)
    return f"{what} ({hint})" if hint else what


class DirectoryTarget:
    """A directory, usually on another volume.

    Args:
        writer: the manifest that is to be written, which has one writer at a time; empty: none.
    """

    def __init__(self, root: Path, writer: str = "") -> None:
        self.place = str(root)
        self._root = root
        self._staged = root / OWN_FOLDER / f"upload-{writer[:MAX_WRITER]}.part"
        self._lock_path = root / OWN_FOLDER / f"upload-{writer[:MAX_WRITER]}.lock"
        self._lock: int | None = None

    @_explained
    def create(self, name: str, content: memoryview) -> None:
        """See `Target.create`."""
        self._hold()
        path = self._root / name
        # Looked at first: a copy that is there need not be made once more.
        if _is_there(path):
            raise Exists(f"{path} exists")
        self._stage(content)
        faultpoints.passing(faultpoints.UPLOAD_STAGED)
        self._make_folders(path.parent)
        with open_folder(self._staged.parent) as staged, open_folder(path.parent) as folder:
            # This relay is the only writer: see `_hold`.
            if not rename_unless_there(self._staged.name, staged, path.name, folder):
                raise Exists(f"{path} exists")
        sync_directory(path.parent)

    @_explained
    def read(self, name: str) -> Read | None:
        """See `Target.read`; the version is the content."""
        try:
            descriptor = open_own(self._root / name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
        if len(content) > MAX_MANIFEST_BYTES:
            raise TargetError(f"{self._root / name} is too large for a manifest")
        return Read(content, content)

    @_explained
    def replace(self, name: str, content: bytes, version: object) -> object:
        """See `Target.replace`."""
        self._hold()
        found = self.read(name)
        if (None if found is None else found.version) != version:
            raise Changed(f"{self._root / name} was replaced or removed by somebody else")
        self._stage(memoryview(content))
        self._staged.rename(self._root / name)
        sync_directory(self._root)
        return content

    @_explained
    def size(self, name: str) -> int | None:
        """See `Target.size`."""
        try:
            return (self._root / name).lstat().st_size
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Reader]:
        """See `Target.open`."""
        try:
            descriptor = os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise TargetError(_in_words(error)) from None
        with os.fdopen(descriptor, "rb") as file:
            yield _Explained(file)

    @_explained
    def list(self) -> Iterator[Found]:
        """See `Target.list`."""
        if not self._root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "no such directory", self.place)
        return _explained_each(self._walk())

    def _walk(self) -> Iterator[Found]:
        def refuse(error: OSError) -> None:
            raise error

        for folder, folders, files in os.walk(self._root, onerror=refuse):
            here = Path(folder)
            if here == self._root and OWN_FOLDER in folders:
                folders.remove(OWN_FOLDER)
            folders.sort()
            for name in sorted(files):
                with contextlib.suppress(FileNotFoundError):
                    found = (here / name).lstat()
                    yield Found(str((here / name).relative_to(self._root)), found.st_size)

    @_explained
    def delete(self, name: str) -> None:
        """See `Target.delete`."""
        (self._root / name).unlink()

    def is_same_file(self, name: str, path: Path) -> bool:
        """See `Target.is_same_file`."""
        try:
            return (self._root / name).samefile(path)
        except OSError:
            return False

    def close(self) -> None:
        """See `Target.close`."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _hold(self) -> None:
        """Keep other writers of the same manifest out; the kernel lets go when this process ends."""
        if self._lock is not None:
            return
        self._make_folders(self._lock_path.parent)
        descriptor = open_own(self._lock_path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise TargetError(
                f"another relay uploads into {self.place}: give each a directory of its own"
            ) from None
        except OSError as error:
            # Some network file systems have no locks. A second writer is noticed by the manifest.
            if error.errno not in {*REFUSALS, errno.ENOLCK}:
                os.close(descriptor)
                raise
        self._lock = descriptor

    def _stage(self, content: memoryview) -> None:
        descriptor = create_again(self._staged)
        try:
            for at in range(0, len(content), PIECE_BYTES):
                write_all(descriptor, bytes(content[at : at + PIECE_BYTES]))
            sync_file(descriptor)
        finally:
            os.close(descriptor)

    def _make_folders(self, folder: Path) -> None:
        if folder.is_dir():
            return
        if folder != self._root:
            self._make_folders(folder.parent)
        folder.mkdir(exist_ok=True, parents=folder == self._root)
        sync_directory(folder.parent)


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _explained_each(found: Iterator[Found]) -> Iterator[Found]:
    try:
        yield from found
    except OSError as error:
        raise TargetError(_in_words(error)) from None


class _Explained:
    def __init__(self, file: Any) -> None:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise TargetError("it is no regular file")
        self._file = file

    @_explained
    def read(self, size: int) -> bytes:
        """See `Reader.read`."""
        content: bytes = self._file.read(size)
        return content
