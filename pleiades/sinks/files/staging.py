"""Where a commit's files lie until the checkpoint covers them, and how they get their names.

Laws:
- The files of commit n lie in `<staging>/<position>.<n>` before the checkpoint says n, whole and, with
  `sync` = batch, on the disk. Only then they are moved to their names.
- Moving can be repeated: what is not in the folder any more has been moved. What users do with files
  that have their names changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from pleiades.runtime import faultpoints
from pleiades.sinks.disk import is_in_place, open_folder, rename_new, write_whole
from pleiades.sinks.files.names import folder_of, name_in

log = logging.getLogger(__name__)

MAX_OPEN_FOLDERS = 32
"""Events of one commit may belong to thousands of hours; a process may open 1,024 files by default."""
MAX_REMADE = 100
"""So often one move makes a folder again that a user removes because it is empty."""


class StagedFile(NamedTuple):
    """A file and where it is to go."""

    staged: str
    """Its name in the staging folder."""
    folder: str
    """The path of the folder that it goes into. No `Path`: that takes longer to make than the file."""
    name: str
    content: bytes = b""


class Staging:
    """The staging folders of one position.

    Args:
        folder: where they lie.
        name: of the position: those of others are left alone.
        publish_dir, dead_letters: where events and dead letters go.
    """

    def __init__(self, folder: Path, name: str, publish_dir: Path, dead_letters: Path) -> None:
        self.folder = folder
        self._prefix = f"{name}."
        self._publish_dir = publish_dir
        self._dead_letters = dead_letters
        self._open: int | None = None
        """A descriptor of the folder that was filled last."""

    def remove_leftovers(self, committed: int) -> None:
        """Remove what no checkpoint covers: the folders of later commits than that."""
        with os.scandir(self.folder) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for name, is_folder in found:
            number = self._number_in(name)
            if number is not None and is_folder and number > committed:
                shutil.rmtree(self.folder / name)
            elif not is_folder and name.endswith(".part"):
                # Of a version that staged all in one folder.
                (self.folder / name).unlink()

    def numbers(self) -> list[int]:
        """The commits of which there is a folder, in ascending order."""
        found = map(self._number_in, os.listdir(self.folder))  # noqa: PTH208  # no path is needed
        return sorted(number for number in found if number is not None)

    def emptied(self, number: int) -> list[Path]:
        """A commit's events that a power failure has emptied, for they had not been synced."""
        found = self._path(number).glob("*.json.part")
        return [path for path in found if path.lstat().st_size == 0]

    def fill(self, number: int, files: list[StagedFile]) -> int:
        """Write a commit's files; returns an open descriptor of their folder, which stays ours."""
        self.close()
        folder = self._path(number)
        if folder.is_dir() and not folder.is_symlink():
            # Of an earlier try.
            shutil.rmtree(folder)
        folder.mkdir()
        self._open = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        for staged, _, _, content in files:
            write_whole(staged, content, self._open)
            faultpoints.passing(faultpoints.STAGED)
        return self._open

    def is_in_place(self, number: int) -> bool:
        """Whether the folder that was filled is where it was."""
        return self._open is not None and is_in_place(self._path(number), self._open)

    def read(self, number: int) -> list[StagedFile]:
        """What lies in the folder of a commit, in the order of publication."""
        files = []
        for staged in sorted(os.listdir(self._path(number))):  # noqa: PTH208  # no path is needed
            name = name_in(staged)
            if name is None:
                log.warning("%s in %s is none of the relay's files", staged, self._path(number))
                continue
            hour = folder_of(name)
            folder = self._dead_letters if hour is None else self._publish_dir / hour
            files.append(StagedFile(staged, str(folder), name))
        return files

    def publish(self, number: int, files: list[StagedFile]) -> int | None:
        """Give each file of a commit its name, and remove the folder; returns how many names there were
        already: those files stay as they are. None: somebody has removed the folder meanwhile, and with
        it perhaps files that had no names yet.

        Raises:
            OSError: not all have their names; it can be tried again.
        """
        existing = 0
        with open_folder(self._path(number)) as source, ExitStack() as opened:
            folders: dict[str, int] = {}
            for file in files:
                for _ in range(MAX_REMADE):
                    if file.folder not in folders:
                        if len(folders) == MAX_OPEN_FOLDERS:
                            opened.close()
                            folders.clear()
                        path = Path(file.folder)
                        path.mkdir(exist_ok=True)
                        folders[file.folder] = opened.enter_context(open_folder(path))
                    try:
                        existing += not _move(file, source, folders[file.folder])
                    except FileNotFoundError:
                        if not _is_there(file.staged, source):
                            # Moved by an earlier try.
                            break
                        # A user removed the folder, which was empty for a moment.
                        del folders[file.folder]
                    else:
                        break
                else:
                    raise FileNotFoundError(
                        errno.ENOENT, "it is removed time and again", file.folder
                    )
                faultpoints.passing(faultpoints.NAMED)
            if not is_in_place(self._path(number), source):
                return None
        with contextlib.suppress(OSError):
            # Not while something of somebody else's lies in it; the next start mentions that.
            self._path(number).rmdir()
        return existing

    def close(self) -> None:
        """Close what is open."""
        if self._open is not None:
            os.close(self._open)
            self._open = None

    def _path(self, number: int) -> Path:
        return self.folder / f"{self._prefix}{number}"

    def _number_in(self, name: str) -> int | None:
        number = name.removeprefix(self._prefix)
        if number == name or not (number.isascii() and number.isdigit()):
            return None
        return int(number)


def _move(file: StagedFile, source: int, folder: int) -> bool:
    """Give a file its name; False if an event had it, which stays."""
    staged, name = file.staged, file.name
    if rename_new(staged, source, name, folder):
        return True
    if is_whole(name, folder):
        os.unlink(staged, dir_fd=source)
        return False
    os.replace(staged, name, src_dir_fd=source, dst_dir_fd=folder)
    return True


def _is_there(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_whole(path: str, folder: int | None = None) -> bool:
    """Whether there is a published event under this name.

    An empty file is none: a power failure under `sync` = none leaves such behind.
    """
    try:
        found = os.stat(path, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode):
        raise FileExistsError(errno.EEXIST, "something else is in the way of an event", path)
    return found.st_size > 0
