"""Compressed segments of many events, exactly once.

Laws:
- A commit appends whole frames to raw files and a group to the identity log, makes both durable, and
  then replaces the checkpoint, which has each raw file and its valid length. A start truncates to that.
- Nothing is appended to a sealed segment. It is closed in steps that can each be repeated after a crash:
  a file for readers is made of it; the checkpoint holds its entry for the manifest; the entry is
  appended; the file gets its name. Then users may do with it what they like.
- The identity log says what is published, not the segments.
- Each step is retried until it succeeds: a full disk is no reason to skip an event.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, TypeVar

import orjson

from pleiades.core.checkpoint import Checkpoint, UnreadableCheckpoint
from pleiades.core.columns import Columns
from pleiades.core.event import Event
from pleiades.core.fingerprint import fingerprints
from pleiades.core.identity_log import DamagedLog, Group, Run
from pleiades.core.position import join
from pleiades.core.sse_id import UNKNOWN_SOURCE, TopicPartition
from pleiades.runtime import faultpoints
from pleiades.sinks.archive.closing import Closer
from pleiades.sinks.archive.destination import ArchiveDestination, Options
from pleiades.sinks.archive.layout import DEAD_LETTERS, stream_of
from pleiades.sinks.archive.raw import RawSegments
from pleiades.sinks.archive.segment import Segments, read_segments
from pleiades.sinks.base import Committed, Opened
from pleiades.sinks.checkpoints import CheckpointFile, Stored
from pleiades.sinks.directory import OwnFolders
from pleiades.sinks.identities import IdentityLog, remembered
from pleiades.sinks.journal import JournalLost
from pleiades.sinks.retry import Once

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_SEALED = 8
"""The most segments that wait to be closed after a commit. With more the relay waits, too."""
CLOSE_POLL_SECONDS = 0.05
UPLOAD_POLL_SECONDS = 0.2


class ArchiveSink:
    """Publishes into an archive.

    Args:
        raw: the segments that are not closed.
        closer: closes them.
    """

    def __init__(
        self,
        archive: ArchiveDestination,
        retry: Once,
        raw: RawSegments,
        closer: Closer,
        options: Options,
    ) -> None:
        self._options = options
        is_replay = options.is_replay
        self._destination = archive
        self._attempts = retry
        self._raw = raw
        self._closer = closer
        own = archive.position_folder(is_replay)
        self._own = OwnFolders(archive, is_replay, options.reached)
        self._checkpoints = CheckpointFile(own, archive.position_name, synced=True)
        self._identities = IdentityLog(own, self._checkpoints.name, options.max_entries)
        self._number = 0
        """The number of the last commit that a stored checkpoint may cover."""
        self._last: Checkpoint | None = None
        """The checkpoint that is stored."""
        self._appended = 0
        """The number of the commit that is appended and synced; 0: none."""
        self._is_covered = False
        """A stored checkpoint covers what was written."""
        self._state: Any = None
        """The segments' part of the present commit's checkpoint."""
        self._fingerprints: dict[TopicPartition, list[bytes]] = {}
        """Of the events since the last commit, by source."""
        self._letters: list[Event] = []

    def open(self, resume: bool) -> Opened:
        """See `Sink.open`."""
        groups, checkpoint = self._retry("open", lambda: self._recover(resume), is_start=True)
        self._retry("close segments in", self._name)
        self._announce()
        return Opened(checkpoint, remembered(groups))

    def is_published(self, event: Event) -> bool:
        """See `Sink.is_published`: the window has all."""
        return False

    def write(self, events: Sequence[Event]) -> None:
        """See `Sink.write`."""
        if not events:
            return
        if isinstance(events, Columns):
            streams = set(map(stream_of, events.known))
            if len(streams) == 1:
                times_ms = [timestamp_ms - 1 for timestamp_ms in events.timestamps_ms]
                sources = events.sources
                self._raw.take(streams.pop(), events.keys_and_data()[1], times_ms, sources)
                self._remember(sources, fingerprints(events.identities))
                return
        for stream, run in groupby(events, _stream_of_event):
            part = list(run)
            sources = [event.source for event in part]
            self._raw.take(stream, list(map(_line, part)), list(map(_time_ms, part)), sources)
            self._remember(sources, fingerprints([event.identity for event in part]))
            if stream == DEAD_LETTERS:
                self._letters += part

    def commit(self, checkpoint: Checkpoint) -> Committed:
        """See `Sink.commit`."""
        if self._last is None or not _continues(self._last, checkpoint):
            self._raw.begin_anew()
        self._raw.seal_due()
        self._closer.take()
        self._commit(checkpoint)
        self._closer.start()
        self._announce()
        while len(self._raw.sealed) > MAX_SEALED:
            self._options.pause(CLOSE_POLL_SECONDS)
            self._tend()
        letters, self._letters = self._letters, []
        return Committed(letters)

    def poll(self) -> None:
        """See `Sink.poll`."""
        # What was written is covered by the next checkpoint only, which soon follows.
        if not self._raw.has_taken:
            self._raw.seal_due()
            self._tend()

    def finish(self) -> None:
        """See `Sink.finish`."""
        if not self._options.is_replay:
            return
        self._raw.seal_all()
        self._tend()
        while not self._closer.is_done:
            self._options.pause(CLOSE_POLL_SECONDS)
            self._tend()
        uploads = self._options.uploads
        if uploads is not None and not uploads.is_done():
            log.info(
                "all is archived; waiting for the uploads. A stop leaves them for the next run"
            )
            while not uploads.is_done():
                self._options.pause(UPLOAD_POLL_SECONDS)
                uploads.poll()

    def close(self) -> None:
        """See `Sink.close`."""
        if self._options.uploads is not None:
            self._options.uploads.close()
        self._closer.close()
        self._raw.close()
        self._identities.close()
        self._own.release()

    def _retry(self, operation: str, attempt: Callable[[], T], is_start: bool = False) -> T:
        return self._attempts(operation, attempt, self._own.prepare, is_start)

    def _announce(self) -> None:
        """Tell the uploader which segments have their names."""
        # In this thread, which lives as long as the process: the uploader ends with it.
        if self._options.uploads is not None:
            self._options.uploads.announce(self._closer.manifest_bytes)

    def _remember(self, sources: Sequence[TopicPartition], known: list[bytes]) -> None:
        for source, each in zip(sources, known, strict=True):
            self._fingerprints.setdefault(source, []).append(each)

    # ---- the steps of a commit ----

    def _tend(self) -> None:
        """Go on with the closing of segments, where there is nothing to commit."""
        self._closer.take()
        raw = self._raw
        is_due = raw.is_changed or raw.has_removed or self._closer.has_small
        if self._last is not None and is_due:
            self._commit(self._last)
        self._closer.start()
        self._announce()
        self._options.observe(self._raw, [])

    def _commit(self, checkpoint: Checkpoint) -> None:
        self._appended, self._is_covered = 0, False
        self._retry("publish events in", lambda: self._commit_once(checkpoint))
        self._fingerprints = {}
        self._last = checkpoint

    def _commit_once(self, checkpoint: Checkpoint) -> None:
        """Go on with the commit where the last attempt failed."""
        if not self._appended:
            self._raw.give_up_removed()
            self._closer.finish_small()
            self._append(self._number + 1, checkpoint)
        if not self._is_covered:
            self._own.check()
            self._store(checkpoint, self._appended)
            self._raw.covered()
            self._is_covered = True
        self._name()

    def _append(self, number: int, checkpoint: Checkpoint) -> None:
        """Append the events and their identities; both are durable when this returns."""
        self._own.check()
        self._raw.append()
        faultpoints.passing(faultpoints.APPENDED)
        self._state = self._closer.with_closing(self._raw.state()).stored()
        runs = [
            Run(source, checkpoint.reached(source), b"".join(known))
            for source, known in self._fingerprints.items()
        ]
        self._identities.append(Group(number, checkpoint, runs, self._state))
        self._identities.sync()
        faultpoints.passing(faultpoints.SYNCED)
        self._appended = number

    def _store(self, checkpoint: Checkpoint, number: int) -> None:
        # If this fails, either checkpoint may be stored: from now on nothing that the new one names is
        # overwritten.
        self._number = number
        identities = self._identities
        self._raw.keep()
        identities.keep()
        self._checkpoints.replace(
            Stored(checkpoint, number, identities.number, identities.length, self._state)
        )
        identities.remove_older_files()

    def _name(self) -> None:
        if self._closer.closing:
            self._own.check()
            self._options.observe(self._raw, self._closer.name())

    # ---- opening ----

    def _recover(self, resume: bool) -> tuple[list[Group], Checkpoint | None]:
        """Find out what is published and where to go on."""
        self._own.prepare()
        if self._options.probes:
            self._destination.probe(self._destination.own_folder, self._options.is_replay)
        stored, damage, segments = None, None, Segments()
        try:
            stored = self._checkpoints.read()
            segments = read_segments(stored.own if stored else None)
        except UnreadableCheckpoint as error:
            stored, damage = None, error
            self._checkpoints.copy_damaged(error)
        if stored:
            self._number, self._last = stored.commit, stored.checkpoint
            groups = self._read_log(stored)
        else:
            groups = self._salvage()
            if groups:
                self._number = groups[0].commit
                segments = read_segments(groups[0].own)
        self._raw.recover(segments)
        self._closer.recover(segments)
        if stored or groups:
            self._raw.remove_others({closing.number for closing in segments.closing})
        elif left := self._raw.unknown_files():
            log.warning(
                "%d files of open segments that no position names are left as they are: %s",
                left,
                self._raw.folder,
            )
        if self._options.is_replay and not resume:
            # The range is archived again, whatever an earlier run published of it.
            self._last = None
            return self._identities.begin([]), None
        if stored:
            return groups, stored.checkpoint
        if damage and groups:
            log.warning(
                "the identity log had the position: going on from there. No event is lost or published "
                "again"
            )
            self._state = groups[0].own
            self._store(groups[0].checkpoint, self._number)
            self._last = groups[0].checkpoint
            return groups, groups[0].checkpoint
        if damage:
            log.error(
                "the position is lost, and the identity log does not have it either: starting at "
                "--since. What came since the last run is missing, unless you start again with "
                "--resume=false --since=TIME"
            )
        return groups, None

    def _salvage(self) -> list[Group]:
        """The groups of the identity log, merged, where no checkpoint says which are valid."""
        groups = self._identities.salvage()
        # Perhaps no checkpoint covered the last one yet, and the power failed before its events were on
        # the disk. The upstream repeats them after the position of the one before.
        if groups and not self._raw.are_whole(read_segments(groups[-1].own)):
            groups.pop()
        return self._identities.begin(groups)

    def _read_log(self, stored: Stored) -> list[Group]:
        """The groups that the checkpoint covers."""
        try:
            return self._identities.open(stored.journal, stored.length)
        except (JournalLost, DamagedLog) as error:
            log.warning(
                "the identity log is unusable (%s): an event that the upstream repeats now is published "
                "again. pleiades verify finds such events",
                error,
            )
        groups = self._identities.begin([Group(self._number, stored.checkpoint, [], stored.own)])
        # At once: otherwise each start until the next commit would make another log.
        self._state = stored.own
        self._store(stored.checkpoint, self._number)
        return groups


def _continues(last: Checkpoint, checkpoint: Checkpoint) -> bool:
    """False if a new start lies between two checkpoints."""
    return join(last.position, checkpoint.position) == dict(checkpoint.position)


def _stream_of_event(event: Event) -> str:
    return DEAD_LETTERS if event.reason else stream_of(event.source)


def _time_ms(event: Event) -> int:
    """The Kafka timestamp of an event, or the best that is known of it."""
    if event.source == UNKNOWN_SOURCE:
        return event.dt_ms or max(event.timestamp_ms - 1, 0)
    return max(event.timestamp_ms - 1, 0)


def _line(event: Event) -> bytes:
    """The line of an event or a dead letter, without its end."""
    if event.reason:
        return _letter(event)
    # The upstream can spread the data over several lines. Between the values of JSON a space means the
    # same, and there is no line end within one.
    return event.data.replace(b"\n", b" ")


def _letter(letter: Event) -> bytes:
    fields = {"reason": letter.reason, "id": letter.key.decode(errors="replace")}
    try:
        fields["data"] = letter.data.decode()
    except UnicodeDecodeError:
        fields["data_base64"] = base64.b64encode(letter.data).decode()
    return orjson.dumps(fields)
