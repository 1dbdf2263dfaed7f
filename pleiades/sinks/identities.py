"""The identity log of a destination: a journal of the events that are published.

It remembers an event for as long as the upstream can repeat it; `core.identity_log` has the format.

Laws:
- A checkpoint names a file and its valid length. Older files are removed once a checkpoint names a newer
  one, so a crash at any time leaves the file that the stored checkpoint names.
- The log is bounded: it is compacted when its length has doubled, so a start reads at most twice as much
  as it needs.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from pleiades.core.fingerprint import FINGERPRINT_BYTES
from pleiades.core.identity_log import DamagedLog, Group, merged, read_groups
from pleiades.sinks.base import Remembered
from pleiades.sinks.disk import open_own
from pleiades.sinks.journal import Journal

log = logging.getLogger(__name__)

MIN_COMPACTED_BYTES = 1024 * 1024
"""Shorter logs are not compacted."""
GROWTH = 2
"""A log is compacted when it is this many times as long as after the last compaction."""
MAX_DIGITS = 12
"""The most digits in the number of a file."""


class IdentityLog:
    """The log of one position, in `<folder>/identities-<name>.<number>`.

    Args:
        max_entries: compaction keeps this many events at most.
    """

    def __init__(self, folder: Path, name: str, max_entries: int) -> None:
        self._folder = folder
        self._prefix = f"identities-{name}."
        self._max_entries = max_entries
        self.number = 0
        """The number of the current file, which a checkpoint must name."""
        self.length = 0
        """Its length with what was appended last: a checkpoint must name that, too."""
        self._journal: Journal
        """From `open` or `begin` on."""
        self._open = contextlib.ExitStack()
        self._compact_at = 0
        self._has_older_files = False

    def open(self, number: int, length: int) -> list[Group]:
        """Open the file that a checkpoint names; returns its groups.

        Raises:
            JournalLost, DamagedLog: it is missing or damaged.
            OSError: it can't be read.
        """
        journal = Journal(self._path(number), length)
        try:
            groups = list(read_groups(journal.reader()))
        except BaseException:
            journal.close()
            raise
        self._use(number, journal, length)
        return groups

    def salvage(self) -> list[Group]:
        """Read the newest file that begins with whole groups, up to the first damage; for a start
        without a usable checkpoint. Changes nothing.

        Raises:
            OSError: it can't be read.
        """
        for number in sorted(self._numbers(), reverse=True):
            groups: list[Group] = []
            descriptor = open_own(self._path(number), os.O_RDONLY)
            with os.fdopen(descriptor, "rb") as file, contextlib.suppress(DamagedLog):
                groups.extend(read_groups(file.read))  # keeps those before the damage
            if groups:
                return groups
        return []

    def refuse_link(self, number: int) -> None:
        """Make sure that the file that a checkpoint names can be opened, if it is there.

        Raises:
            OSError: it can't, for example because it is a link.
        """
        with contextlib.suppress(FileNotFoundError):
            os.close(open_own(self._path(number), os.O_RDONLY))

    def begin(self, groups: list[Group]) -> list[Group]:
        """Begin a new file with these groups merged into one, which is durable then and returned.

        The caller must store a checkpoint that names the file.

        Raises:
            OSError: nothing has changed.
        """
        begun = [merged(groups, self._max_entries)] if groups else []
        number = max([*self._numbers(), self.number]) + 1
        journal = Journal(self._path(number), 0)
        try:
            for group in begun:
                journal.length = journal.append(group.encoded())
                journal.sync()
        except BaseException:
            journal.close()
            journal.path.unlink(missing_ok=True)
            raise
        self._use(number, journal, GROWTH * journal.length)
        self._has_older_files = True
        return begun

    def append(self, group: Group) -> None:
        """Append the events of a commit. It may be repeated before `keep`.

        Raises:
            OSError: for example, the disk is full.
        """
        encoded = group.encoded()
        length = self._journal.length
        if not self._journal.is_in_place():
            log.warning(
                "the identity log was removed while the relay ran. Events are not affected now; after a "
                "restart, what the upstream repeats may be published again"
            )
            self.begin([])
        elif length and length + len(encoded) > self._compact_at:
            self.begin(list(read_groups(self._journal.reader())))
        self.length = self._journal.append(encoded)

    def sync(self) -> None:
        """Bring what was appended to the disk."""
        self._journal.sync()

    def keep(self) -> None:
        """Never overwrite what was appended: a checkpoint that names it is about to be stored."""
        self._journal.length = self.length

    def remove_older_files(self) -> None:
        """The stored checkpoint names the current file: remove the others."""
        if self._has_older_files:
            for number in self._numbers():
                if number != self.number:
                    self._path(number).unlink(missing_ok=True)
            self._has_older_files = False

    def close(self) -> None:
        """Close the file."""
        self._open.close()

    def _use(self, number: int, journal: Journal, compact_at: int) -> None:
        self._open.close()
        self._open.callback(journal.close)
        self.number, self.length, self._journal = number, journal.length, journal
        self._compact_at = max(MIN_COMPACTED_BYTES, compact_at)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._prefix}{number}"

    def _numbers(self) -> list[int]:
        """The numbers of the files that exist."""
        names = [path.name for path in self._folder.iterdir()]
        ends = [name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix)]
        return [
            int(end) for end in ends if end.isascii() and end.isdigit() and len(end) < MAX_DIGITS
        ]


def remembered(groups: list[Group]) -> Iterator[Remembered]:
    """The events of a log in the order of delivery; takes each group off the list to free its memory."""
    groups.reverse()
    while groups:
        for source, reached_ms, fingerprints in groups.pop().runs:
            for at in range(0, len(fingerprints), FINGERPRINT_BYTES):
                yield Remembered(source, reached_ms, fingerprints[at : at + FINGERPRINT_BYTES])
