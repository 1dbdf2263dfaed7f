"""The journal: everything appended to the upstream's log, in that order, for tests to compare with."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import IO, NamedTuple

import orjson

from pleiades.core.sse_id import TopicPartition
from pleiades.runtime.errors import UsageError


class JournalEntry(NamedTuple):
    """One event that was appended."""

    topic: str
    partition: int
    offset: int
    """In the cluster of the topic's own data centre."""
    timestamp: int
    """Kafka's, ms since 1970; the id says one more."""
    identity: str
    """`meta.id`; empty for a recorded event without one."""
    canary: bool

    @property
    def source(self) -> TopicPartition:
        """The topic-partition."""
        return self.topic, self.partition


class Journal:
    """One JSON line per event, on disk, so that a long run needs no memory for it. Not thread-safe.

    Args:
        path: the file to write; None: a temporary one.

    Raises:
        UsageError: the file can't be written.
    """

    def __init__(self, path: Path | None) -> None:
        try:
            self._file: IO[bytes] = path.open("w+b") if path else tempfile.TemporaryFile("w+b")  # noqa: SIM115
        except OSError as error:
            raise UsageError(f"can't write the journal: {error}; check --journal") from None
        weakref.finalize(self, self._file.close)

    def add(self, entry: JournalEntry) -> None:
        """Note an event."""
        self._file.write(orjson.dumps(entry._asdict()) + b"\n")

    def flush(self) -> None:
        """Make what was added visible in the file."""
        self._file.flush()

    def read(self) -> bytes:
        """All lines."""
        self._file.seek(0)
        # Ends where the next event is to be written.
        return self._file.read()
