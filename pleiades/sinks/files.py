"""One file per event: `<publishDir>/<YYYY-MM-DDTHH>/<UTC time>-<identity>.json`.

Laws:
- A name follows from the event alone, so publishing it twice is publishing it once; the names on disk
  are the window, whatever its size.
- A name appears when all bytes behind it are written and, with `sync` = batch, on the disk.
- The checkpoint is replaced, by a rename, only after the events that it covers have their names.
- One commit can be tried again from its start as often as it takes: every step asks what is done.
- All of it goes into the directory that was opened. If another one is in its place (it was moved, its
  volume unmounted) nothing is written until it is back: what lay elsewhere would be missing, and the
  position would cover it.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from pleiades.core.backoff import Backoff
from pleiades.core.position import Checkpoint
from pleiades.core.wire import DeadLetter, Event
from pleiades.runtime import faultpoints
from pleiades.runtime.errors import DestinationHeld, Fatal
from pleiades.runtime.settings import SYNC_BATCH
from pleiades.sinks.base import Committed, Opened
from pleiades.sinks.checkpoints import CheckpointFile
from pleiades.sinks.disk import (
    Lock,
    held,
    holder_of,
    open_folder,
    rename_new,
    sync_directory,
    sync_file_system,
    write_whole,
)
from pleiades.sinks.names import dead_letter_name, event_name
from pleiades.sinks.recovery import recovered_checkpoint

log = logging.getLogger(__name__)

T = TypeVar("T")

OWN_FOLDER = ".pleiades"
LOCK = "lock"
STAGING = "staging"
STAGED = ".part"
"""Ends a staged file's name. Not .json: a search through all folders must not find half an event."""
DEAD_LETTERS = "dead-letters"
REPLAYS = "replays"
RETRY_BACKOFF = Backoff(first_seconds=0.1, max_seconds=5.0)
LOCK_WAIT_SECONDS = 4.0
"""How long a start waits for the lock: children of a SIGKILLed parent leave within two seconds."""
LOCK_POLL_SECONDS = 0.1

# Waiting for somebody to make room or to give a permission back helps; at the start it hides a
# mistake on the command line.
_FATAL_AT_START = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
)


class Aside(Protocol):
    """What makes a call, and returns what it returns."""

    def __call__(self, operation: str, call: Callable[[], T], /) -> T:
        """Make it; `operation` says what it does."""


def _directly(_operation: str, call: Callable[[], T]) -> T:
    return call()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a sink needs from the process around it."""

    pause: Callable[[float], None]
    """Waits that many seconds."""
    on_trouble: Callable[[str, OSError, float], None]
    """Told before each pause: what could not be done, why, and for how long the pause is."""
    aside: Aside = _directly
    """Makes a call that may block for as long as a disk likes."""


class _Pending(NamedTuple):
    """A file to be written."""

    folder: str
    """No `Path`: that takes longer to make than a file to write."""
    name: str
    content: bytes


class FilesSink:
    """Publishes into a directory.

    Args:
        publish_dir: created if missing.
        sync: `SYNC_BATCH` or `SYNC_NONE`.
        position_name: what the position is stored under: different ones never mix.
        replays: it is a replay, which has a folder of its own beside a running ingest's. Where it is
            without a position it begins anew, for the names tell what is there.
        window_ms: how far a position found by the names on disk goes back behind them.
        around: see `Surroundings`.
        reached: an earlier process of this program had opened it: then it is not made, but waited for.
    """

    def __init__(
        self,
        publish_dir: Path,
        sync: str,
        position_name: str,
        window_ms: int,
        around: Surroundings,
        reached: bool = False,
        replays: bool = False,
    ) -> None:
        self._publish_dir = publish_dir.absolute()
        own = own_folder(publish_dir, position_name, replays)
        self._staging = own / STAGING
        self._dead_letters = self._publish_dir / OWN_FOLDER / DEAD_LETTERS
        self._replays = replays
        self._synced = sync == SYNC_BATCH
        self._window_ms = window_ms
        self._around = around
        self._must_be_there = reached
        self._lock = Lock(own / LOCK)
        self._checkpoints = CheckpointFile(own, position_name, self._synced)
        self._pending: list[_Pending] = []
        self._letters: list[DeadLetter] = []
        self._tried = False
        """Some of what is pending may have its name already."""
        self._folders: set[str] = set()

    def open(self, resume: bool) -> Opened:
        """See `Sink.open`."""
        self._until_done("prepare", self._prepare_when_free, _FATAL_AT_START)
        if not resume:
            return Opened(None, all_told=not self._replays)
        checkpoint, damaged = self._until_done(
            "read the checkpoint in", self._checkpoints.read, _FATAL_AT_START
        )
        if damaged and not self._replays:
            checkpoint = self._until_done("look for the newest events in", self._recover)
        # A replay counts at once what was there before it.
        return Opened(checkpoint, all_told=not self._replays)

    def _recover(self) -> Checkpoint | None:
        checkpoint = recovered_checkpoint(self._publish_dir, self._window_ms)
        if checkpoint is None:
            log.error(
                "the position is lost and there are no files to find it again by: starting where "
                "--since says. What came since the last run is missing, unless you start again "
                "with --resume=false --since=TIME"
            )
            return None
        self._checkpoints.replace(checkpoint)
        log.warning(
            "the position was found again by the newest files: asking the upstream from %d ms on; "
            "what is published already is dropped, nothing is lost",
            checkpoint.started_ms,
        )
        return checkpoint

    def is_published(self, event: Event | DeadLetter) -> bool:
        """See `Sink.is_published`: whether the event's name is on the disk."""
        folder, name = self._place_of(event)
        return self._until_done(
            "look for published events in", lambda: _is_whole(f"{folder}/{name}")
        )

    def write(self, events: list[Event], dead_letters: list[DeadLetter]) -> None:
        """See `Sink.write`."""
        self._pending += [_Pending(*self._place_of(event), event.data + b"\n") for event in events]
        # Raw: whoever looks into one wants the very bytes.
        self._pending += [_Pending(*self._place_of(letter), letter.data) for letter in dead_letters]
        self._letters += dead_letters

    def commit(self, checkpoint: Checkpoint) -> Committed:
        """See `Sink.commit`."""
        repeated = 0
        if self._pending:
            repeated = self._aside_until_done("publish events in", self._publish)
            self._pending = []
            self._tried = False
        self._aside_until_done("store the position in", lambda: self._store(checkpoint))
        letters, self._letters = self._letters, []
        return Committed(letters, repeated)

    def tend(self) -> None:
        """See `Sink.tend`: nothing grows here."""

    def close(self) -> None:
        """See `Sink.close`."""
        self._pending = []
        self._letters = []
        self._lock.release()

    def _place_of(self, event: Event | DeadLetter) -> tuple[str, str]:
        """Folder and name."""
        if isinstance(event, DeadLetter):
            return str(self._dead_letters), dead_letter_name(event)
        folder, name = event_name(event)
        return f"{self._publish_dir}/{folder}", name

    def _prepare_when_free(self) -> None:
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while True:
            try:
                self._prepare()
            except DestinationHeld:
                if time.monotonic() >= deadline:
                    raise
                self._around.pause(LOCK_POLL_SECONDS)
            else:
                return

    def _prepare(self) -> None:
        """Make and take what must be there; also again, if somebody removed it meanwhile."""
        self._folders.clear()
        if self._must_be_there:
            self._lock.check_there(self._publish_dir)
        self._lock.check(self._publish_dir)
        for folder in (self._staging, self._dead_letters):
            folder.mkdir(parents=True, exist_ok=True)
        taken = self._lock.acquire(self._publish_dir)
        self._must_be_there = False
        if taken:
            # From now on nobody else writes here: what is staged is a crash's leftover.
            for left in self._staging.iterdir():
                left.unlink()

    def _publish(self) -> int:
        """Write what is pending; returns how many of its names were there before."""
        pending = self._pending
        # What was looked for while another directory was in its place may be there, too.
        tried, self._tried = self._tried, True
        self._lock.check(self._publish_dir)
        if tried:
            pending = [entry for entry in pending if not _is_whole(f"{entry.folder}/{entry.name}")]
        with ExitStack() as opened:
            # Names are looked up in open folders: each path is walked once for a commit, not per event.
            staging = opened.enter_context(open_folder(self._staging))
            for _, name, content in pending:
                write_whole(name + STAGED, content, staging)
                faultpoints.passing(faultpoints.STAGED)
            if self._synced:
                # Before any name appears: after a power failure a name without its bytes would
                # pass for a published event. (rename(2) alone does not order the two.)
                sync_file_system(staging)
            faultpoints.passing(faultpoints.SYNCED)
            # Of all of them: an earlier try may have renamed some and failed to sync their folder.
            touched = {entry.folder for entry in self._pending}
            new = touched - self._folders
            for folder in new:
                Path(folder).mkdir(exist_ok=True)
            if self._synced:
                for parent in {Path(folder).parent for folder in new}:
                    sync_directory(parent)
            folders = {
                folder: opened.enter_context(open_folder(Path(folder))) for folder in touched
            }
            repeated = 0
            for folder, name, _ in pending:
                repeated += not self._name(name, staging, folders[folder])
                faultpoints.passing(faultpoints.NAMED)
            if self._synced:
                for folder in touched:
                    sync_directory(Path(folder))
        # Once more: perhaps not all of them came into the same directory.
        self._lock.check(self._publish_dir)
        faultpoints.passing(faultpoints.PUBLISHED)
        self._folders = touched
        return repeated

    def _name(self, name: str, staging: int, folder: int) -> bool:
        """Give what is staged its name; False if an event had it, which stays."""
        staged = name + STAGED
        if rename_new(staged, staging, name, folder):
            return True
        if _is_whole(name, folder):
            os.unlink(staged, dir_fd=staging)
            return False
        os.replace(staged, name, src_dir_fd=staging, dst_dir_fd=folder)
        return True

    def _store(self, checkpoint: Checkpoint) -> None:
        self._lock.check(self._publish_dir)
        self._checkpoints.replace(checkpoint)

    def _aside_until_done(self, operation: str, attempt: Callable[[], T]) -> T:
        """As `_until_done`, of what may block for as long as a disk likes."""
        return self._until_done(operation, lambda: self._around.aside(operation, attempt))

    def _until_done(
        self, operation: str, attempt: Callable[[], T], fatal: tuple[int, ...] = ()
    ) -> T:
        """Try until it works: a full disk is no reason to skip an event."""
        failures = 0
        while True:
            try:
                return attempt()
            except OSError as error:
                if error.errno in fatal:
                    raise Fatal(
                        f"can't {operation} {self._publish_dir}: {error.strerror}. Nothing was "
                        "read or written. Choose another --file.publishDir or mend its permissions"
                    ) from None
                failures += 1
                pause_seconds = RETRY_BACKOFF.pause_seconds(failures, jitter=1.0)
                self._around.on_trouble(operation, error, pause_seconds)
            self._around.pause(pause_seconds)
            self._around.aside("prepare", self._mend)

    def _mend(self) -> None:
        """Make again what may have been removed; whether it helped, the next attempt tells."""
        try:
            self._prepare()
        except OSError as error:
            log.debug("can't prepare %s: %s", self._publish_dir, error)


def own_folder(publish_dir: Path, position_name: str, replays: bool) -> Path:
    """Where a sink keeps its lock and its position; see `FilesSink`."""
    own = publish_dir.absolute() / OWN_FOLDER
    return own / REPLAYS / position_name if replays else own


def refuse_if_held(publish_dir: Path) -> None:
    """Look whether somebody publishes into a directory; changes nothing there.

    Raises:
        DestinationHeld: somebody does.
    """
    holder = holder_of(publish_dir / OWN_FOLDER / LOCK)
    if holder is not None:
        raise held(holder, publish_dir)


def _is_whole(path: str, folder: int | None = None) -> bool:
    """Whether there is a published event under this name.

    An empty file is none: a power failure under `sync` = none leaves such behind.
    """
    try:
        found = os.stat(path, dir_fd=folder)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode):
        raise FileExistsError(errno.EEXIST, "something else is in the way of an event", path)
    return found.st_size > 0
