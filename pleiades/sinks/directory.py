"""Shared by destinations in a directory: folders of the relay's own, lock, stored position."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pleiades.config.settings import Settings
from pleiades.core.checkpoint import Checkpoint, UnreadableCheckpoint
from pleiades.runtime.errors import Fatal
from pleiades.runtime.findings import Finding
from pleiades.sinks.base import Destination
from pleiades.sinks.checkpoints import CheckpointFile
from pleiades.sinks.disk import Lock, refuse_links

log = logging.getLogger(__name__)

OWN_FOLDER = ".pleiades"
REPLAYS = "replays"
LOCK = "lock"
PROBE_PREFIX = ".pleiades-probe-"


class OwnFolders:
    """The folders of the relay's own that one instance uses, and the lock that keeps others out.

    Args:
        reached: see `SinkContext.reached`.
    """

    def __init__(self, destination: DirectoryDestination, is_replay: bool, reached: bool) -> None:
        self._directory = destination.directory
        self._folders = destination.folders(is_replay)
        self._lock = destination.lock(is_replay, must_exist=reached)

    def prepare(self) -> None:
        """Make the folders and take the lock, or do so again if somebody removed them."""
        self._lock.check()
        self._directory.mkdir(parents=True, exist_ok=True)
        for folder in self._folders:
            refuse_links([folder])
            folder.mkdir(exist_ok=True)
        self._lock.acquire()

    def check(self) -> None:
        """Make sure that what is written goes into the directory that was opened."""
        self._lock.check()
        refuse_links(self._folders)

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()


@dataclass(frozen=True)
class DirectoryDestination(Destination):
    """A destination in a directory."""

    directory_flag: ClassVar[str]
    """The flag that chooses the directory."""
    contents: ClassVar[str]
    """Its contents in words."""
    bytes_per_event: ClassVar[int]
    """The room that an event takes on the disk."""
    files_per_event: ClassVar[int]

    @property
    @abstractmethod
    def directory(self) -> Path:
        """Its absolute path."""

    @property
    def place(self) -> str:
        """See `Destination.place`."""
        # A path's bytes need not be text.
        return f"{self.contents} in {os.fsencode(self.directory).decode(errors='replace')}"

    @property
    def own_folder(self) -> Path:
        """The folder of the relay's own files."""
        return self.directory / OWN_FOLDER

    def position_folder(self, is_replay: bool) -> Path:
        """The folder of lock, position and identity log. Each replay has its own, beside an ingest's."""
        return self.own_folder / REPLAYS / self.position_name if is_replay else self.own_folder

    def folders(self, is_replay: bool) -> list[Path]:
        """All folders of the relay's own, each after the one that it lies in."""
        position = self.position_folder(is_replay)
        above = [position.parent, position] if is_replay else []
        return [self.own_folder, *above]

    @abstractmethod
    def published_folders(self) -> list[Path]:
        """Folders into which files are renamed; they need not exist."""

    @abstractmethod
    def probe(self, folder: Path, is_replay: bool = False) -> None:
        """Publish in a temporary folder, by the calls of a relay and of its restart, and move a file
        between the folders that exist. A file system refuses for ever what it refuses now.

        Raises:
            OSError: it refuses a call that has no substitute, or there is no room.
        """

    def lock(self, is_replay: bool = False, must_exist: bool = False) -> Lock:
        """The lock that keeps a second instance out."""
        path = self.position_folder(is_replay) / LOCK
        return Lock(path, self.directory, self.directory_flag, must_exist)

    def inspect(self, settings: Settings) -> Iterator[Finding]:
        """See `Destination.inspect`."""
        from pleiades.sinks.directory_inspect import look

        return look(settings, self)

    def stored_checkpoint(self, is_replay: bool = True) -> Checkpoint | None:
        """See `Destination.stored_checkpoint`."""
        folder = self.position_folder(is_replay=is_replay)
        try:
            refuse_links(self.folders(is_replay=is_replay))
            stored = CheckpointFile(folder, self.position_name, synced=True).read()
        except UnreadableCheckpoint as error:
            log.warning(
                "the position in %s is unusable (%s): the replay begins again; events that are still "
                "there are not published twice",
                folder,
                error,
            )
            return None
        except OSError as error:
            raise Fatal(
                f"can't read the position in {folder}: {error.strerror}. Nothing was written. Choose "
                f"another {self.directory_flag} or mend its permissions"
            ) from None
        return None if stored is None else stored.checkpoint

    def refuse_if_held(self) -> None:
        """See `Destination.refuse_if_held`."""
        self.lock().refuse_if_held()
