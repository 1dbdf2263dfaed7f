"""One file per event: `<publishDir>/<YYYY-MM-DDTHH>/<UTC time>-<identity>.json`.

Laws:
- The commit precedes the names: the files of a commit are staged, made durable, covered by the
  checkpoint, and then moved to their names. A start finishes the moves of the commit that the checkpoint
  covers and removes what is staged beyond it.
- The identity log says what is published, not the files: a user may move, rename or delete a file as
  soon as it has its name.
- A name appears when all bytes of the file are written and, with `sync` = batch, on the disk.
- Each step is retried until it succeeds: a full disk is no reason to skip an event.
- All files go into the directory that was opened. While another one is in its place (it was moved, or
  its volume unmounted) nothing is written: events written elsewhere would be missing later, and the
  position would cover them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from pleiades.core.checkpoint import Checkpoint, UnreadableCheckpoint
from pleiades.core.event import Event
from pleiades.core.fingerprint import fingerprint
from pleiades.core.identity_log import DamagedLog, Group, Run
from pleiades.core.sse_id import UNKNOWN_SOURCE, TopicPartition
from pleiades.runtime import faultpoints
from pleiades.sinks.base import Committed, Opened
from pleiades.sinks.checkpoints import CheckpointFile, Stored
from pleiades.sinks.directory import OwnFolders
from pleiades.sinks.disk import Refused, sync_file_system
from pleiades.sinks.files.destination import (
    DEAD_LETTERS,
    STAGING,
    SYNC_BATCH,
    FilesDestination,
)
from pleiades.sinks.files.names import dead_letter_name, event_name, identities_since
from pleiades.sinks.files.staging import Staging, StagingLost, is_whole
from pleiades.sinks.identities import IdentityLog, remembered
from pleiades.sinks.journal import JournalLost
from pleiades.sinks.retry import Once

log = logging.getLogger(__name__)

T = TypeVar("T")


class FilesSink:
    """Publishes into a directory.

    Args:
        max_entries: this many published events are remembered at most.
        is_replay: it recognises the events that were there before it by the names of their files.
        reached: an earlier process of this program had the directory open: wait for it, do not make it.
        probes: try the file system's calls before the first event.
    """

    def __init__(
        self,
        files: FilesDestination,
        retry: Once,
        max_entries: int,
        is_replay: bool = False,
        reached: bool = False,
        probes: bool = False,
    ) -> None:
        self._destination = files
        self._attempts = retry
        self._probes = probes
        self._max_entries = max_entries
        self._is_replay = is_replay
        self._publish_dir = files.directory
        self._dead_letters = files.own_folder / DEAD_LETTERS
        self._synced = files.sync == SYNC_BATCH
        own = files.position_folder(is_replay)
        self._own = OwnFolders(files, is_replay, reached)
        self._checkpoints = CheckpointFile(own, files.position_name, self._synced)
        name = self._checkpoints.name
        self._staging = Staging(own / STAGING, name, self._publish_dir, self._dead_letters)
        self._identities = IdentityLog(own, name, max_entries)
        self._number = 0
        """The number of the last commit that a stored checkpoint may cover."""
        self._staged = 0
        """Number of the commit that is staged and not published; 0: none."""
        self._is_covered = False
        """A stored checkpoint covers what was written."""
        self._files: list[tuple[str, bytes]] = []
        """Name and content of each event and dead letter."""
        self._fingerprints: dict[TopicPartition, list[bytes]] = {}
        """The fingerprints of all of them, by source."""
        self._letters: list[Event] = []

    def open(self, resume: bool) -> Opened:
        """See `Sink.open`."""
        groups, checkpoint = self._retry("open", lambda: self._recover(resume), is_start=True)
        self._retry("publish events in", lambda: self._staging.recover(self._number))
        return Opened(checkpoint, remembered(groups), window_complete=not self._is_replay)

    def is_published(self, event: Event) -> bool:
        """See `Sink.is_published`: whether a file has the event's name."""
        if event.reason:
            path = f"{self._dead_letters}/{dead_letter_name(event)}"
        else:
            path = f"{self._publish_dir}/{'/'.join(event_name(event))}"
        try:
            # Not in a thread, which takes longer: a replay asks this of every event.
            return is_whole(path)
        except OSError:
            return self._retry("look for published events in", lambda: is_whole(path))

    def write(self, events: Sequence[Event]) -> None:
        """See `Sink.write`."""
        for event in events:
            if event.reason:
                # Unchanged: whoever looks into a dead letter wants its very bytes.
                self._files.append((dead_letter_name(event), event.data))
                self._letters.append(event)
            else:
                self._files.append((event_name(event)[1], event.data + b"\n"))
            self._fingerprints.setdefault(event.source, []).append(fingerprint(event.identity))

    def commit(self, checkpoint: Checkpoint) -> Committed:
        """See `Sink.commit`."""
        self._staged, self._is_covered = 0, False
        existing = self._retry("publish events in", lambda: self._commit(checkpoint))
        letters = self._letters
        self._files, self._fingerprints, self._letters = [], {}, []
        return Committed(letters, existing)

    def poll(self) -> None:
        """See `Sink.poll`: nothing grows here."""

    def finish(self) -> None:
        """See `Sink.finish`: nothing is left to do."""

    def close(self) -> None:
        """See `Sink.close`."""
        self._staging.close()
        self._identities.close()
        self._own.release()

    def _retry(self, operation: str, attempt: Callable[[], T], is_start: bool = False) -> T:
        return self._attempts(operation, attempt, self._own.prepare, is_start)

    # ---- the steps of a commit ----

    def _commit(self, checkpoint: Checkpoint) -> int:
        """Go on with the commit where the last attempt failed; returns how many names existed."""
        try:
            if self._files and not self._staged:
                self._stage(self._number + 1, checkpoint)
            if not self._is_covered:
                self._cover(checkpoint)
            return self._publish() if self._files else 0
        except StagingLost:
            self._staged, self._is_covered = 0, False
            raise

    def _stage(self, number: int, checkpoint: Checkpoint) -> None:
        """Stage the files and append their identities; both are durable when this returns."""
        self._own.check()
        folder = self._staging.fill(number, self._files)
        runs = [
            Run(source, checkpoint.reached(source), b"".join(fingerprints))
            for source, fingerprints in self._fingerprints.items()
        ]
        self._identities.append(Group(number, checkpoint, runs))
        faultpoints.passing(faultpoints.JOURNALED)
        if self._synced:
            # One call for all of them: the log lies on the same file system.
            try:
                sync_file_system(folder)
            except Refused:
                self._staging.sync()
                self._identities.sync()
        faultpoints.passing(faultpoints.SYNCED)
        self._staged = number

    def _cover(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint that covers what is staged."""
        self._own.check()
        if self._staged and not self._staging.is_in_place():
            raise StagingLost(self._staging.folder)
        self._store(checkpoint, self._staged or self._number)
        self._is_covered = True

    def _store(self, checkpoint: Checkpoint, number: int) -> None:
        # If this fails, either checkpoint may be stored: from now on nothing that the new one names is
        # overwritten, and a commit that is staged again gets another number.
        self._number = number
        identities = self._identities
        identities.keep()
        self._checkpoints.replace(Stored(checkpoint, number, identities.number, identities.length))
        identities.remove_older_files()

    def _publish(self) -> int:
        self._own.check()
        existing = self._staging.publish()
        faultpoints.passing(faultpoints.PUBLISHED)
        return existing

    # ---- opening ----

    def _recover(self, resume: bool) -> tuple[list[Group], Checkpoint | None]:
        """Find out what is published and where to go on."""
        self._own.prepare()
        if self._probes:
            self._destination.probe(self._destination.own_folder, self._is_replay)
        stored, damage = None, None
        try:
            stored = self._checkpoints.read()
        except UnreadableCheckpoint as error:
            damage = error
            self._checkpoints.copy_damaged(error)
        salvaged = [] if stored else self._salvage()
        if stored:
            self._number = stored.commit
        elif salvaged:
            self._number = salvaged[-1].commit
        if self._is_replay and not resume:
            # The names of the files say what an earlier run has published, unless it was taken away.
            return self._identities.begin([]), None
        if stored:
            return self._read_log(stored), stored.checkpoint
        groups = self._identities.begin(salvaged)
        if damage and groups:
            log.warning(
                "the identity log had the position: going on from there. No event is lost or published "
                "again"
            )
            self._store(groups[0].checkpoint, self._number)
            return groups, groups[0].checkpoint
        if damage:
            log.error(
                "the position is lost, and the identity log does not have it either: starting at "
                "--since. What came since the last run is missing, unless you start again with "
                "--resume=false --since=TIME"
            )
        elif others := self._checkpoints.others():
            log.warning(
                "nothing is stored as %s, only %s (of other streams, or of a demo): this run starts at "
                "--since and leaves the others as they are",
                self._checkpoints.path.name,
                ", ".join(others[:5]),
            )
        return groups, None

    def _salvage(self) -> list[Group]:
        """The groups of the identity log, where no checkpoint says which are valid."""
        groups = self._identities.salvage()
        # Perhaps no checkpoint covered the last one yet. Its events are staged, unless the power failed.
        if groups and self._staging.is_emptied(groups[-1].commit):
            groups.pop()
        return groups

    def _read_log(self, stored: Stored) -> list[Group]:
        """The groups that the checkpoint covers."""
        if not stored.journal:
            log.info("an older version wrote the position, without an identity log")
            return self._read_names(stored.checkpoint)
        try:
            return self._identities.open(stored.journal, stored.length)
        except (JournalLost, DamagedLog) as error:
            log.warning(
                "the identity log is unusable (%s). The names of the files in %s say what is published; "
                "an event that was moved away, and that the upstream repeats now, is published again",
                error,
                self._publish_dir,
            )
            return self._read_names(stored.checkpoint)

    def _read_names(self, checkpoint: Checkpoint) -> list[Group]:
        """Make an identity log from the names of the files."""
        since_ms = min(checkpoint.known_from.values(), default=checkpoint.started_ms)
        # A topic that stands still may reach back over many more files than memory holds.
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
        run = Run(UNKNOWN_SOURCE, checkpoint.reached(UNKNOWN_SOURCE), b"".join(fingerprints))
        groups = self._identities.begin([Group(self._number, checkpoint, [run])])
        # At once: otherwise each start until the next commit would make another log.
        self._store(checkpoint, self._number)
        return groups
