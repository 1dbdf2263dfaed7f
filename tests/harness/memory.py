# ruff: noqa: RUF009  # `flag` declares fields of dataclasses
"""A destination in memory: the simplest form of the contract, for tests to inspect.

Everything is really serialised, so that unserialisable state fails here too.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pleiades.config.flags import BOOLEAN, DIRECTORY, Flag, flag
from pleiades.core.checkpoint import Checkpoint, decode_checkpoint
from pleiades.core.event import Event
from pleiades.core.fingerprint import fingerprint
from pleiades.runtime.errors import DestinationHeld
from pleiades.sinks.base import Committed, Destination, Opened, Remembered, SinkContext


@dataclass(slots=True)
class MemoryStore:
    """The state that survives a crash of the sink: its "disk"."""

    events: list[Event] = field(default_factory=list)
    dead_letters: list[Event] = field(default_factory=list)
    window: list[Remembered] = field(default_factory=list)
    checkpoint: bytes | None = None
    held: bool = False


class MemorySink:
    """Publishes into a `MemoryStore`; events and checkpoint become durable in one step."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._written: list[Event] = []
        self._opened = False

    def open(self, resume: bool) -> Opened:
        """See `Sink.open`."""
        if self._store.held:
            raise DestinationHeld("another instance publishes into this store")
        self._store.held = self._opened = True
        encoded = self._store.checkpoint
        checkpoint = None if encoded is None else decode_checkpoint(encoded)
        return Opened(checkpoint, list(self._store.window))

    def is_published(self, event: Event) -> bool:  # the contract's
        """Always false: the window returned by `open` holds everything."""
        return False

    def write(self, events: Sequence[Event]) -> None:
        """See `Sink.write`."""
        self._written += events

    def commit(self, checkpoint: Checkpoint) -> Committed:
        """See `Sink.commit`."""
        letters = [event for event in self._written if event.reason]
        self._store.events += [event for event in self._written if not event.reason]
        self._store.dead_letters += letters
        for each in self._written:
            reached_ms = checkpoint.reached(each.source)
            self._store.window.append(
                Remembered(each.source, reached_ms, fingerprint(each.identity))
            )
        self._store.window = [
            entry
            for entry in self._store.window
            if entry.reached_ms >= checkpoint.known_from.get(entry.source, 0)
        ]
        self._store.checkpoint = checkpoint.encoded()
        self._written = []
        return Committed(letters)

    def poll(self) -> None:
        """See `Sink.poll`."""

    def finish(self) -> None:
        """See `Sink.finish`."""

    def close(self) -> None:
        """See `Sink.close`."""
        if self._opened:
            self._store.held = self._opened = False
        self._written = []


@dataclass(frozen=True)
class MemoryDestination(Destination):
    """A destination for the command line; each commit is copied into a file for the test."""

    copy: Path = flag("memory.pickle", "file that gets a copy of each commit", DIRECTORY)

    prefix = "memory."
    enable = Flag("memory.enable", "false", "publish into memory", BOOLEAN)
    place = "the memory of a test"

    def make_sink(self, context: SinkContext) -> CopyingSink:
        return CopyingSink(self.copy)


class CopyingSink(MemorySink):
    """Starts from the copy of an earlier sink, as if the memory had survived."""

    def __init__(self, copy: Path) -> None:
        super().__init__(stored_in(copy))
        self._copy = copy

    def commit(self, checkpoint: Checkpoint) -> Committed:
        committed = super().commit(checkpoint)
        new = self._copy.with_suffix(".new")
        new.write_bytes(pickle.dumps(self._store, pickle.HIGHEST_PROTOCOL))
        new.replace(self._copy)
        return committed


def stored_in(copy: Path) -> MemoryStore:
    """The last commit of a destination, possibly in another process."""
    try:
        store: MemoryStore = pickle.loads(copy.read_bytes())  # noqa: S301  # written above
    except FileNotFoundError:
        return MemoryStore()
    store.held = False
    return store
