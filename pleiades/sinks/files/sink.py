"""One file per event: `<publishDir>/<YYYY-MM-DDTHH>/<UTC time>-<identity>.json`.

Laws:
- The commit precedes the names: a commit's files are staged, made durable, covered by the checkpoint,
  and then moved to their names. A start finishes the moves of the commit that the checkpoint covers and
  removes what is staged beyond it.
- The identity log says what is published, not the files: a user may move, rename or delete a file as
  soon as it has its name.
- A name appears when all bytes behind it are written and, with `sync` = batch, on the disk.
- Each step can be tried again until it works: a full disk is no reason to skip an event.
- All of it goes into the directory that was opened. If another one is in its place (it was moved, its
  volume unmounted) nothing is written until it is back: what lay elsewhere would be missing, and the
  position would cover it.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from pleiades.core.backoff import Backoff
from pleiades.core.fingerprint import fingerprint
from pleiades.core.position import Checkpoint
from pleiades.core.wire import UNKNOWN_SOURCE, Event, TopicPartition
from pleiades.runtime import faultpoints
from pleiades.runtime.errors import DestinationHeld, Fatal
from pleiades.sinks.base import Committed, Opened, Remembered
from pleiades.sinks.checkpoints import CheckpointFile, Stored
from pleiades.sinks.disk import Lock, held, holder_of, sync_file_system
from pleiades.sinks.files.destination import SYNC_BATCH
from pleiades.sinks.files.identities import DamagedLog, Group, IdentityLog, Run, runs_of
from pleiades.sinks.files.names import (
    dead_letter_name,
    event_name,
    identities_since,
    staged_name,
)
from pleiades.sinks.files.staging import StagedFile, Staging, is_whole
from pleiades.sinks.journal import JournalLost

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


class FilesSink:
    """Publishes into a directory.

    Args:
        publish_dir: created if missing.
        sync: `SYNC_BATCH` or `SYNC_NONE`.
        position_name: what the position is stored under: different ones never mix.
        max_entries: so many published events are remembered at most.
        around: see `Surroundings`.
        reached: an earlier process of this program had opened it: then it is not made, but waited for.
        replays: it is a replay, which has a folder of its own beside a running ingest's, and knows by
            their names which events were there before it.
    """

    def __init__(
        self,
        publish_dir: Path,
        sync: str,
        position_name: str,
        max_entries: int,
        around: Surroundings,
        reached: bool = False,
        replays: bool = False,
    ) -> None:
        self._publish_dir = publish_dir.absolute()
        own = own_folder(publish_dir, position_name, replays)
        self._dead_letters = self._publish_dir / OWN_FOLDER / DEAD_LETTERS
        self._replays = replays
        self._synced = sync == SYNC_BATCH
        self._around = around
        self._must_be_there = reached
        self._lock = Lock(own / LOCK)
        self._checkpoints = CheckpointFile(own, position_name, self._synced)
        name = self._checkpoints.name
        self._staging = Staging(own / STAGING, name, self._publish_dir, self._dead_letters)
        self._identities = IdentityLog(own, name, max_entries)
        self._max_entries = max_entries
        self._folders = sorted(
            above
            for folder in (self._staging.folder, self._dead_letters)
            for above in (folder, *folder.parents)
            if above.is_relative_to(self._publish_dir / OWN_FOLDER)
        )
        """All that must be there, from the outermost on."""
        self._number = 0
        """Of the last commit that the checkpoint covers."""
        self._opened = False
        self._files: list[StagedFile] = []
        self._written: list[tuple[TopicPartition, bytes]] = []
        """Source and fingerprint of each event and dead letter."""
        self._letters: list[Event] = []

    def open(self, resume: bool) -> Opened:
        """See `Sink.open`."""
        self._until_done("prepare", self._prepare_when_free, _FATAL_AT_START)
        stored, damaged = self._until_done(
            "read the checkpoint in", self._checkpoints.read, _FATAL_AT_START
        )
        if self._replays and not resume:
            # It begins again: what an earlier run has published is there, or was taken away.
            covered, stored = stored, None
            groups = self._aside_until_done(
                "prepare", lambda: self._begin_anew(covered), _FATAL_AT_START
            )
        elif stored is None:
            groups, stored = self._aside_until_done(
                "read the identity log in", lambda: self._salvage(damaged), _FATAL_AT_START
            )
        else:
            found = stored
            groups = self._aside_until_done(
                "read the identity log in", lambda: self._read(found), _FATAL_AT_START
            )
        self._aside_until_done("publish events in", self._finish_moves)
        self._opened = True
        checkpoint = None if stored is None else stored.checkpoint
        return Opened(checkpoint, _remembered(groups), all_told=not self._replays)

    def is_published(self, event: Event) -> bool:
        """See `Sink.is_published`: whether the event's name is on the disk."""
        folder, name = self._place_of(event)
        return self._until_done(
            "look for published events in", lambda: is_whole(f"{folder}/{name}")
        )

    def write(self, events: list[Event]) -> None:
        """See `Sink.write`."""
        for event in events:
            # A dead letter as it is: whoever looks into one wants the very bytes.
            self._stage(event, event.data if event.reason else event.data + b"\n")
        self._letters += [event for event in events if event.reason]

    def _stage(self, event: Event, content: bytes) -> None:
        folder, name = self._place_of(event)
        staged = staged_name(len(self._files), name)
        self._files.append(StagedFile(staged, folder, name, content))
        self._written.append((event.source, fingerprint(event.identity)))

    def commit(self, checkpoint: Checkpoint) -> Committed:
        """See `Sink.commit`."""
        existing = None
        while existing is None:
            existing = self._try_to_commit(checkpoint)
        self._files, self._written = [], []
        letters, self._letters = self._letters, []
        return Committed(letters, existing)

    def _try_to_commit(self, checkpoint: Checkpoint) -> int | None:
        """Once; None if it has to be done again: somebody has removed what was staged."""
        number = self._number + 1 if self._files else self._number
        stored = Stored(checkpoint, self._identities.named(number))
        if self._files:
            stored = self._aside_until_done(
                "publish events in", lambda: self._fill(number, checkpoint)
            )
        if not self._aside_until_done("store the position in", lambda: self._store(stored)):
            return None
        self._number = number
        if not self._files:
            return 0
        return self._aside_until_done("publish events in", lambda: self._publish(number))

    def tend(self) -> None:
        """See `Sink.tend`: nothing grows here."""

    def close(self) -> None:
        """See `Sink.close`."""
        self._files, self._written, self._letters = [], [], []
        self._opened = False
        self._staging.close()
        self._identities.close()
        self._lock.release()

    def _place_of(self, event: Event) -> tuple[str, str]:
        """Folder and name."""
        if event.reason:
            return str(self._dead_letters), dead_letter_name(event)
        folder, name = event_name(event)
        return f"{self._publish_dir}/{folder}", name

    # ---- the steps of a commit ----

    def _fill(self, number: int, checkpoint: Checkpoint) -> Stored:
        """Stage what was written and append its identities; both are durable when this returns."""
        self._lock.check(self._publish_dir)
        folder = self._staging.fill(number, self._files)
        runs = runs_of(self._written, checkpoint)
        committed = self._identities.append(Group(number, checkpoint, runs))
        faultpoints.passing(faultpoints.JOURNALED)
        if self._synced:
            # One call for all: the log lies on the same file system.
            sync_file_system(folder)
        faultpoints.passing(faultpoints.SYNCED)
        return Stored(checkpoint, committed)

    def _store(self, stored: Stored) -> bool:
        """Replace the checkpoint; False, and it is not, if what it is to cover is not there any more."""
        self._lock.check(self._publish_dir)
        committed = stored.committed
        if committed is None:
            raise AssertionError("every commit says what it covers")
        if self._files and not self._staging.is_in_place(committed.number):
            return False
        self._checkpoints.replace(stored)
        self._identities.record(committed)
        return True

    def _publish(self, number: int) -> int | None:
        """Move what is staged to its names; None if somebody has removed it before."""
        self._lock.check(self._publish_dir)
        if not self._staging.is_in_place(number):
            return None
        existing = self._staging.publish(number, self._files)
        faultpoints.passing(faultpoints.PUBLISHED)
        return existing

    # ---- opening ----

    def _read(self, stored: Stored) -> list[Group]:
        """What the checkpoint covers."""
        committed = stored.committed
        self._number = 0 if committed is None else committed.number
        why = "it is of a version that had none"
        if committed is not None:
            try:
                return self._identities.open(committed.journal, committed.length)
            except (JournalLost, DamagedLog) as error:
                why = str(error)
                log.warning(
                    "the identity log is unusable (%s). The names of the files in %s say what is "
                    "published; an event that was moved away, and that the upstream repeats now, is "
                    "published again",
                    error,
                    self._publish_dir,
                )
        log.info("making the identity log from the names of the files: %s", why)
        since_ms = min(stored.checkpoint.known_from.values(), default=stored.checkpoint.started_ms)
        # One topic that has stood still may reach back over many more files than memory holds.
        fingerprints = deque(
            map(fingerprint, identities_since(self._publish_dir, since_ms)), self._max_entries
        )
        if len(fingerprints) == self._max_entries:
            log.warning(
                "--dedup.maxEntries (%d) is reached: of the files only the newest are remembered, and "
                "what the upstream repeats of older ones is published again if it was moved away. "
                "Raise it",
                self._max_entries,
            )
        reached_ms = stored.checkpoint.reached(UNKNOWN_SOURCE)
        run = Run(UNKNOWN_SOURCE, reached_ms, b"".join(fingerprints))
        group = Group(self._number, stored.checkpoint, [run])
        self._identities.begin(group)
        # At once: else each start until the next commit would make another one.
        self._store(Stored(stored.checkpoint, self._identities.named(self._number)))
        return [group]

    def _salvage(self, damaged: bool) -> tuple[list[Group], Stored | None]:
        """What the log says where there is no usable checkpoint."""
        groups = self._salvaged()
        if groups:
            self._number = groups[-1].commit
            checkpoint = groups[-1].checkpoint
            groups = [self._identities.salvaged(groups)]
        self._identities.begin(groups[0] if groups else None)
        if not damaged:
            return groups, None
        if not groups:
            log.error(
                "the position is lost, and the identity log does not say it either: starting where "
                "--since says. What came since the last run is missing, unless you start again "
                "with --resume=false --since=TIME"
            )
            return [], None
        log.warning(
            "the position was found again in the identity log: going on from there. Nothing is lost or "
            "published again"
        )
        stored = Stored(checkpoint, self._identities.named(self._number))
        self._store(stored)
        return groups, stored

    def _salvaged(self) -> list[Group]:
        groups = self._identities.salvage()
        last = groups[-1].commit if groups else 0
        # Perhaps no checkpoint covered it yet; it is whole, unless the power failed just then.
        if last in self._staging.numbers() and self._staging.emptied(last):
            groups.pop()
        return groups

    def _begin_anew(self, covered: Stored | None) -> list[Group]:
        """Forget what is published; but what the checkpoint covers must still get its names, and what it
        does not cover must not: a crash may have cut it short.
        """
        if covered is not None and covered.committed is not None:
            self._number = covered.committed.number
        else:
            groups = self._salvaged()
            self._number = groups[-1].commit if groups else 0
        self._identities.begin(None)
        return []

    def _finish_moves(self) -> None:
        """Finish what a crash has interrupted."""
        self._lock.check(self._publish_dir)
        self._staging.remove_leftovers(self._number)
        for number in self._staging.numbers():
            emptied = self._staging.emptied(number)
            for path in emptied:
                path.unlink()
            if emptied:
                log.error(
                    "%d events are lost: the power failed before the system had written them, as may "
                    "happen with --file.sync=none. `pleiades replay` of that time publishes them",
                    len(emptied),
                )
            files = self._staging.read(number)
            self._staging.publish(number, files)
            if files:
                log.info("published %d events of a commit that a crash had interrupted", len(files))

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
        if self._must_be_there:
            self._lock.check_there(self._publish_dir)
        self._lock.check(self._publish_dir)
        self._publish_dir.mkdir(parents=True, exist_ok=True)
        for folder in self._folders:
            # Whoever may write here could lead the relay, with its rights, to other people's files.
            if folder.is_symlink():
                raise OSError(errno.ELOOP, "it is a link, which is not followed", str(folder))
            folder.mkdir(exist_ok=True)
        self._lock.acquire(self._publish_dir)
        self._must_be_there = False
        if self._opened:
            self._identities.mend()

    def _aside_until_done(
        self, operation: str, attempt: Callable[[], T], fatal: tuple[int, ...] = ()
    ) -> T:
        """As `_until_done`, of what may block for as long as a disk likes."""
        return self._until_done(operation, lambda: self._around.aside(operation, attempt), fatal)

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
                    where = "" if error.filename is None else f"{error.filename}: "
                    raise Fatal(
                        f"can't {operation} {self._publish_dir}: {where}{error.strerror}. Nothing was "
                        "published. Choose another --file.publishDir or mend its permissions"
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


def _remembered(groups: list[Group]) -> Iterator[Remembered]:
    """The events of a log. Each group is let go once it is told."""
    groups.reverse()
    while groups:
        yield from groups.pop().remembered()
