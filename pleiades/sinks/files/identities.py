"""The identity log: which events are published, for as long as the upstream can repeat them.

A journal of *groups*, one for each commit: a header in JSON and the events' fingerprints. A header
holds the commit's number and its checkpoint as well, so a damaged checkpoint file can be replaced by
what the log says.

Laws:
- What is read is what was recorded, or it is said to be damaged: each group carries its CRC.
- Compaction drops what `Checkpoint.known_from` allows to forget, and nothing else but what exceeds
  `--dedup.maxEntries`. So the log is bounded, and a start reads at most twice what is needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from pleiades.core.fingerprint import FINGERPRINT_BYTES
from pleiades.core.position import Checkpoint, Position, UnreadableCheckpoint, decode_checkpoint
from pleiades.core.wire import UNKNOWN_SOURCE, TopicPartition, is_source
from pleiades.sinks.base import Remembered
from pleiades.sinks.checkpoints import Committed
from pleiades.sinks.disk import open_own
from pleiades.sinks.journal import CHUNK_BYTES, Journal

log = logging.getLogger(__name__)

MIN_COMPACTED_BYTES = 1024 * 1024
"""A smaller log is not worth compacting."""
GROWTH = 2
"""A log is compacted when it is so many times as long as after the last compaction."""
MAX_RUNS = 10_000
"""Compaction joins more than so many: each costs 50 bytes in the header."""
MAX_HEADER_BYTES = 4 * 1024 * 1024
MAX_GROUP_BYTES = 1024 * 1024 * 1024
"""A longer one is damaged. Compaction makes the longest: `--dedup.maxEntries` fingerprints."""

MAX_BEGUN = 2
"""So many new files stay while a commit is tried again and again: a checkpoint may name that of the try
before, if just then the disk failed."""
MAX_DIGITS = 12
"""Of a file's number."""

_PREFIX = struct.Struct(">4sIIQ")
"""Mark, CRC-32 of the rest, length of the header, length of the fingerprints."""
_MARK = b"PlG1"


class DamagedLog(Exception):
    """The log holds something else than what was recorded."""


class Run(NamedTuple):
    """Events of one topic-partition that were published one after the other."""

    source: TopicPartition
    reached_ms: int
    """As in `Remembered`."""
    fingerprints: bytes
    """One after the other."""


class Group(NamedTuple):
    """What one commit, or a compaction, has written."""

    commit: int
    """Its number; those of a log ascend."""
    checkpoint: Checkpoint
    runs: list[Run]

    def encoded(self) -> bytes:
        """For the journal."""
        rows = [
            (*run.source, run.reached_ms, len(run.fingerprints) // FINGERPRINT_BYTES)
            for run in self.runs
        ]
        header = orjson.dumps(
            {
                "commit": self.commit,
                "checkpoint": orjson.Fragment(self.checkpoint.encoded()),
                "runs": rows,
            }
        )
        fingerprints = b"".join([run.fingerprints for run in self.runs])
        crc = zlib.crc32(fingerprints, zlib.crc32(header))
        return _PREFIX.pack(_MARK, crc, len(header), len(fingerprints)) + header + fingerprints

    def remembered(self) -> Iterator[Remembered]:
        """Its events, in the order of delivery."""
        for source, reached_ms, fingerprints in self.runs:
            for at in range(0, len(fingerprints), FINGERPRINT_BYTES):
                yield Remembered(source, reached_ms, fingerprints[at : at + FINGERPRINT_BYTES])


def runs_of(entries: Iterable[tuple[TopicPartition, bytes]], checkpoint: Checkpoint) -> list[Run]:
    """The runs of a commit with this checkpoint, by source; within each in the order of delivery."""
    by_source: dict[TopicPartition, list[bytes]] = {}
    for source, fingerprint in entries:
        by_source.setdefault(source, []).append(fingerprint)
    return [
        Run(source, checkpoint.reached(source), b"".join(fingerprints))
        for source, fingerprints in by_source.items()
    ]


def read_groups(pieces: Iterator[bytes]) -> Iterator[Group]:
    """The groups of a log.

    Raises:
        DamagedLog: what comes next is none, or is cut short.
    """
    buffer = bytearray()

    def take(size: int) -> bytes:
        while len(buffer) < size:
            piece = next(pieces, None)
            if piece is None:
                raise DamagedLog("it is cut short")
            buffer.extend(piece)
        taken = bytes(buffer[:size])
        del buffer[:size]
        return taken

    while True:
        if not buffer:
            piece = next(pieces, None)
            if piece is None:
                return
            buffer.extend(piece)
        mark, crc, header_bytes, fingerprints_bytes = _PREFIX.unpack(take(_PREFIX.size))
        if mark != _MARK or header_bytes > MAX_HEADER_BYTES or fingerprints_bytes > MAX_GROUP_BYTES:
            raise DamagedLog("it holds something else")
        header, fingerprints = take(header_bytes), take(fingerprints_bytes)
        if zlib.crc32(fingerprints, zlib.crc32(header)) != crc:
            raise DamagedLog("a checksum does not hold")
        yield _group(header, fingerprints)


def _group(header: bytes, fingerprints: bytes) -> Group:
    try:
        fields: dict[str, Any] = orjson.loads(header)
        checkpoint = decode_checkpoint(orjson.dumps(fields["checkpoint"]))
        commit = fields["commit"]
        runs, at = [], 0
        for topic, partition, reached_ms, count in fields["runs"]:
            source = (topic, partition)
            end = at + count * FINGERPRINT_BYTES
            if not (is_source(source) or source == UNKNOWN_SOURCE) or not at <= end:
                raise DamagedLog("it holds something else")
            runs.append(Run(source, reached_ms, fingerprints[at:end]))
            at = end
    except (ValueError, KeyError, TypeError, UnreadableCheckpoint) as error:
        raise DamagedLog(f"a header can't be read ({type(error).__name__})") from None
    if at != len(fingerprints) or type(commit) is not int:
        raise DamagedLog("it holds something else")
    return Group(commit, checkpoint, runs)


def compacted(groups: Iterable[Group], known_from: Position, max_entries: int) -> list[Run]:
    """The runs that must stay; of each source in the order of delivery.

    Args:
        max_entries: of more than so many events the oldest are forgotten.
    """
    kept: deque[Run] = deque()
    excess_bytes = -max_entries * FINGERPRINT_BYTES
    for group in groups:
        for run in group.runs:
            if run.reached_ms >= known_from.get(run.source, 0):
                kept.append(run)
                excess_bytes += len(run.fingerprints)
        while excess_bytes > 0:
            run = kept.popleft()
            rest = run.fingerprints[excess_bytes:]
            excess_bytes -= len(run.fingerprints) - len(rest)
            if rest:
                kept.appendleft(run._replace(fingerprints=rest))
    return joined(kept)


def joined(runs: Sequence[Run]) -> list[Run]:
    """At most about `MAX_RUNS` runs with the same events; some of these are kept longer by it."""
    most = -(-len(runs) // MAX_RUNS)
    by_source: dict[TopicPartition, list[list[Run]]] = {}
    for run in runs:
        parts = by_source.setdefault(run.source, [[]])
        # Where it falls another start begins, whose events can be forgotten earlier.
        if len(parts[-1]) == most or (parts[-1] and run.reached_ms < parts[-1][-1].reached_ms):
            parts.append([])
        parts[-1].append(run)
    return [
        Run(source, part[-1].reached_ms, b"".join([run.fingerprints for run in part]))
        for source, parts in by_source.items()
        for part in parts
    ]


class IdentityLog:
    """The log of one position, in `<folder>/identities-<name>.<number>`.

    Args:
        max_entries: it is bounded to so many events.
    """

    def __init__(self, folder: Path, name: str, max_entries: int) -> None:
        self._folder = folder
        self._name = name
        self._max_entries = max_entries
        self._number = 0
        self._journal: Journal | None = None
        self._next: tuple[int, Journal] | None = None
        """Takes the journal's place when the checkpoint names it."""
        self._compacting = False
        """The next one is this one compacted."""
        self._compact_at = MIN_COMPACTED_BYTES
        self._begun: list[int] = []
        """Numbers of the files that no checkpoint names, except perhaps the last but one."""

    def open(self, number: int, length: int) -> list[Group]:
        """Open what a checkpoint names; returns all of it.

        Raises:
            JournalLost, DamagedLog: it is not there, or not whole.
            OSError: it can't be read.
        """
        journal = Journal(self._path(number), length)
        try:
            groups = list(read_groups(journal.content()))
        except BaseException:
            journal.close()
            raise
        self._number, self._journal = number, journal
        self._compact_at = max(MIN_COMPACTED_BYTES, length)
        return groups

    def salvage(self) -> list[Group]:
        """See `newest_groups`."""
        return newest_groups(self._folder, self._name)

    def begin(self, group: Group | None) -> None:
        """Begin a new file with this group, which counts once a checkpoint names it."""
        self._close_next()
        number = max([*numbers_of(self._folder, self._name), self._number]) + 1
        journal = Journal(self._path(number), 0)
        self._next = number, journal
        self._begun.append(number)
        if len(self._begun) > MAX_BEGUN:
            self._path(self._begun.pop(0)).unlink(missing_ok=True)
        if group is not None:
            journal.record(journal.append(group.encoded()))
            journal.sync()

    def salvaged(self, groups: list[Group]) -> Group:
        """One group in place of those that a log holds: the last one's, with what it must remember."""
        last = groups[-1]
        runs = compacted(groups, last.checkpoint.known_from, self._max_entries)
        return last._replace(runs=runs)

    def mend(self) -> None:
        """Begin a new file if somebody has removed this one.

        Raises:
            OSError: it can't be made.
        """
        if not any(journal.is_in_place() for journal in self._journals()):
            log.warning(
                "the identity log was removed while the relay ran. Events are not affected now; after a "
                "restart, what the upstream repeats is published again if its files were moved away"
            )
            self.begin(None)

    def _journals(self) -> list[Journal]:
        newest = [] if self._next is None else [self._next[1]]
        return newest or ([] if self._journal is None else [self._journal])

    def append(self, group: Group) -> Committed:
        """Append what a commit has published; returns what its checkpoint must name.

        It may be called again before `record`.

        Raises:
            OSError: the disk is full, for example.
        """
        if self._compacting:
            # The commit that asked for it is tried again.
            self._close_next()
        (journal,) = self._journals()
        encoded = group.encoded()
        if self._next is None and journal.length + len(encoded) > self._compact_at:
            groups = [*read_groups(journal.content()), group]
            runs = compacted(groups, group.checkpoint.known_from, self._max_entries)
            encoded = group._replace(runs=runs).encoded()
            self.begin(None)
            self._compacting = True
            (journal,) = self._journals()
        return self.named(group.commit)._replace(length=journal.append(encoded))

    def named(self, commit: int) -> Committed:
        """What a checkpoint must name if nothing was appended."""
        (journal,) = self._journals()
        number = self._number if self._next is None else self._next[0]
        return Committed(commit, number, journal.length)

    def record(self, committed: Committed) -> None:
        """A checkpoint that names this is durable."""
        if self._compacting:
            self._compact_at = max(MIN_COMPACTED_BYTES, GROWTH * committed.length)
        if self._next is not None and self._next[0] == committed.journal:
            if self._journal is not None:
                self._journal.close()
            self._number, self._journal = self._next
            self._next = None
            self._compacting = False
            self._begun = []
            for number in numbers_of(self._folder, self._name):
                if number != self._number:
                    self._path(number).unlink(missing_ok=True)
        if self._journal is not None:
            self._journal.record(committed.length)

    def close(self) -> None:
        """Close the files."""
        self._close_next()
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _close_next(self) -> None:
        if self._next is not None:
            self._next[1].close()
            self._next = None
        self._compacting = False

    def _path(self, number: int) -> Path:
        return path_of(self._folder, self._name, number)


def path_of(folder: Path, name: str, number: int) -> Path:
    """Where the file of this number lies."""
    return folder / f"identities-{name}.{number}"


def numbers_of(folder: Path, name: str) -> list[int]:
    """The numbers of the files that there are."""
    prefix = path_of(folder, name, 0).name[:-1]
    with os.scandir(folder) as entries:
        ends = [
            entry.name.removeprefix(prefix) for entry in entries if entry.name.startswith(prefix)
        ]
    return [int(end) for end in ends if end.isascii() and end.isdigit() and len(end) < MAX_DIGITS]


def newest_groups(folder: Path, name: str) -> list[Group]:
    """The whole groups at the head of the newest file that has any; where no checkpoint says what is
    valid. Changes nothing.

    Raises:
        OSError: it can't be read.
    """
    for number in sorted(numbers_of(folder, name), reverse=True):
        groups: list[Group] = []
        descriptor = open_own(path_of(folder, name, number), os.O_RDONLY)
        with os.fdopen(descriptor, "rb") as file, contextlib.suppress(DamagedLog):
            groups.extend(read_groups(iter(lambda: file.read(CHUNK_BYTES), b"")))  # at once
        if groups:
            return groups
    return []
