"""The journal: everything appended to the upstream's log, in that order, for tests to compare with."""

from __future__ import annotations

import os
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
    """One JSON line per event, on disk, so that a long run needs no memory for it.

    Args:
        path: the file to write; None: a temporary one.

    Raises:
        UsageError: the file can't be written.
    """

    def __init__(self, path: Path | None) -> None:
        try:
            self._file: IO[bytes] = (
                path.open("w+b") if path else tempfile.TemporaryFile("w+b")  # noqa: SIM115
            )
        except OSError as error:
            raise UsageError(f"can't write the journal: {error}; check --journal") from None
        self._flushed_bytes = 0
        weakref.finalize(self, self._file.close)

    def add(self, entry: JournalEntry) -> None:
        """Note an event; it can be read after `flush`."""
        self._file.write(orjson.dumps(entry._asdict()) + b"\n")

    def flush(self) -> None:
        """Make visible what was added."""
        self._file.flush()
        self._flushed_bytes = self._file.tell()

    def read(self) -> bytes:
        """All that was flushed until now, in whole lines; from any thread."""
        text = b""
        # pread leaves the position alone at which another thread may be writing.
        while more := os.pread(self._file.fileno(), self._flushed_bytes - len(text), len(text)):
            text += more
        return text

    def entries(self) -> list[JournalEntry]:
        """The content of `read`, parsed."""
        return [JournalEntry(**orjson.loads(line)) for line in self.read().splitlines()]
