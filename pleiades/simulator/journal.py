"""The journal: everything appended to the upstream's log, in that order, for tests to compare with."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO, NamedTuple

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


def open_journal(path: Path | None) -> IO[bytes]:
    """A file of one JSON line per event, so that a long run needs no memory for it.

    Args:
        path: None: a temporary file.

    Raises:
        UsageError: the file can't be written.
    """
    try:
        return path.open("w+b") if path else tempfile.TemporaryFile("w+b")
    except OSError as error:
        raise UsageError(f"can't write the journal: {error}; check --journal") from None
