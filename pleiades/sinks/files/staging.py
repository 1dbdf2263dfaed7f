"""The staging folder: the files of a commit, before the checkpoint covers them and they get their names.

Laws:
- The files of commit n lie in `<staging>/<position>.<n>`, complete and, with `sync` = batch, on the
  disk, before the checkpoint says n. Only then they are moved to their names.
- A move that was interrupted is finished by repeating it: the folder holds what has no name yet. Users
  may do with named files what they like.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from pleiades.runtime import faultpoints
from pleiades.sinks.disk import (
    is_in_place,
    open_folder,
    rename_new,
    sync_directory,
    sync_files,
    write_new,
)
from pleiades.sinks.files.names import folder_of

log = logging.getLogger(__name__)

MAX_REMADE = 100
"""One move makes a folder again this often, if a user removes it because it is empty."""
_STAGED = re.compile(r"\d{8}\.(.+)\.part")
"""A staged file's name: its place in the commit and its name to be. No search for `*.json` finds it."""


class StagingLost(FileNotFoundError):
    """Somebody has removed what was staged."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.ENOENT, "somebody removed staged files", str(path))


class Staging:
    """The staging folders of one position.

    Args:
        folder: holds them.
        name: of the position: folders of others are left alone.
        publish_dir: gets the events.
        dead_letters: gets the dead letters.
    """

    def __init__(self, folder: Path, name: str, publish_dir: Path, dead_letters: Path) -> None:
        self.folder = folder
        self._prefix = f"{name}."
        # A `Path` takes longer to make than a file.
        self._publish_dir, self._dead_letters = str(publish_dir), str(dead_letters)
        self._path = folder
        """The folder that was opened last."""
        self._descriptor: int | None = None

    def fill(self, number: int, files: Iterable[tuple[str, bytes]]) -> int:
        """Write the files of a commit, given by name and content; returns the folder's descriptor."""
        path = self._path_of(number)
        # An earlier attempt may have left a part.
        self._remove(path)
        path.mkdir()
        descriptor = self._open(path)
        for place, (name, content) in enumerate(files):
            write_new(f"{place:08}.{name}.part", content, descriptor)
            faultpoints.passing(faultpoints.STAGED)
        return descriptor

    def sync(self) -> None:
        """Bring the files of the commit to the disk, each by itself."""
        if self._descriptor is None:
            raise AssertionError("no commit is staged")
        sync_files(self._descriptor)
        sync_directory(self.folder)

    def is_in_place(self) -> bool:
        """True if the folder that was filled is still there."""
        return self._descriptor is not None and is_in_place(self._path, self._descriptor)

    def publish(self) -> int:
        """Move the files of the commit to their names, in their order, and remove the folder.

        Returns how many names existed: those files stay as they are.

        Raises:
            StagingLost: perhaps some files got no name.
            OSError: some files have no name yet; try again.
        """
        if self._descriptor is None:
            raise AssertionError("no commit is staged")
        existing, source, current = 0, self._descriptor, ""
        with ExitStack() as opened:
            for staged in sorted(os.listdir(source)):  # noqa: PTH208  # it is no path
                match = _STAGED.fullmatch(staged)
                if match is None:
                    log.warning(
                        "%s in %s is none of the relay's files: remove it", staged, self._path
                    )
                    continue
                name = match[1]
                hour = folder_of(name)
                folder = self._dead_letters if hour is None else f"{self._publish_dir}/{hour}"
                for _ in range(MAX_REMADE):
                    if folder != current:
                        opened.close()
                        Path(folder).mkdir(exist_ok=True)
                        target = opened.enter_context(open_folder(Path(folder)))
                        current = folder
                    try:
                        existing += not _move(staged, source, name, target)
                        break
                    except FileNotFoundError:
                        if not os.access(staged, os.F_OK, dir_fd=source):
                            raise StagingLost(self._path) from None
                        # A user removed the folder, which was empty for a moment.
                        current = ""
                else:
                    raise FileNotFoundError(errno.ENOENT, "it is removed again and again", folder)
                faultpoints.passing(faultpoints.NAMED)
        if not self.is_in_place():
            raise StagingLost(self._path)
        with contextlib.suppress(OSError):
            # A foreign file keeps the folder; the next start mentions it.
            self._path.rmdir()
        self.close()
        return existing

    def recover(self, committed: int) -> None:
        """Finish the moves that a crash has interrupted, and remove what no checkpoint covers.

        Args:
            committed: number of the last commit that the checkpoint covers.
        """
        for number in self._numbers():
            path = self._path_of(number)
            if number > committed or not path.is_dir() or path.is_symlink():
                self._remove(path)
                continue
            emptied = self._emptied(path)
            for file in emptied:
                file.unlink()
            if emptied:
                log.error(
                    "%d events are lost: the power failed before the system had written them, as may "
                    "happen with --file.sync=none. `pleiades replay` of that time publishes them",
                    len(emptied),
                )
            log.info("publishing the rest of commit %d, which a crash interrupted", number)
            self._open(path)
            self.publish()

    def is_emptied(self, number: int) -> bool:
        """True if a power failure has emptied files of a commit, which had not been synced."""
        return bool(self._emptied(self._path_of(number)))

    def close(self) -> None:
        """Close the folder that is open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self, path: Path) -> int:
        self.close()
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._path, self._descriptor = path, os.open(path, flags)
        return self._descriptor

    def _emptied(self, path: Path) -> list[Path]:
        return [file for file in path.glob("*.json.part") if file.lstat().st_size == 0]

    def _remove(self, path: Path) -> None:
        """Free the name of a commit's folder. Something else of that name is somebody's: it is kept."""
        try:
            is_folder = stat.S_ISDIR(path.lstat().st_mode)
        except FileNotFoundError:
            return
        if is_folder:
            shutil.rmtree(path)
            return
        renamed = path.with_name(f"{path.name}.foreign-{time.time_ns()}")
        path.rename(renamed)
        log.warning("%s was in the way of the relay's folder and is now %s", path, renamed)

    def _path_of(self, number: int) -> Path:
        return self.folder / f"{self._prefix}{number}"

    def _numbers(self) -> list[int]:
        """The commits that have a folder, in ascending order."""
        names = [path.name for path in self.folder.iterdir()]
        ends = [name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix)]
        return sorted(int(end) for end in ends if end.isascii() and end.isdigit())


def _move(staged: str, source: int, name: str, target: int) -> bool:
    """Give a file its name; False if an event has that name already, which stays.

    Where the file system can't rename without replacing, a look precedes the rename. A link and an
    unlink would leave two names after a crash between them; then a restart publishes again what a user
    has removed meanwhile. Only another relay of the same event could make the name after the look.
    """
    if rename_new(staged, source, name, target):
        return True
    if is_whole(name, target):
        os.unlink(staged, dir_fd=source)
        return False
    os.replace(staged, name, src_dir_fd=source, dst_dir_fd=target)
    return True


def is_whole(path: str, folder: int | None = None) -> bool:
    """True if there is a published event under this name.

    An empty file is none: a power failure under `sync` = none leaves such files.
    """
    try:
        found = os.stat(path, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode):
        raise FileExistsError(errno.EEXIST, "something else has the name of an event", path)
    return found.st_size > 0
