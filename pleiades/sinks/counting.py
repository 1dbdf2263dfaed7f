"""Publishes nothing: counts what would be published, by topic and hour. For a dry run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from pleiades.core.position import Checkpoint
from pleiades.core.wire import Event
from pleiades.sinks.base import Committed, Opened

HOUR_MS = 3_600_000

Hours: TypeAlias = Mapping[tuple[str, int], int]
"""Events by upstream topic (empty: unknown) and the beginning of the hour, ms since 1970."""


class Counted(NamedTuple):
    """What a dry run ends with."""

    checkpoint: Checkpoint | None
    hours: Hours


class CountingSink:
    """See `Sink`; nothing is durable, so every start begins anew.

    Args:
        tell: gets what was counted, at the end.
    """

    def __init__(self, tell: Callable[[Counted], None]) -> None:
        self._tell = tell
        self._hours: Counter[tuple[str, int]] = Counter()
        self._pending: list[Event] = []
        self._checkpoint: Checkpoint | None = None

    def open(self, resume: bool) -> Opened:  # the contract's
        """See `Sink.open`."""
        return Opened(None)

    def is_published(self, event: Event) -> bool:  # the contract's
        """See `Sink.is_published`."""
        return False

    def write(self, events: list[Event]) -> None:
        """See `Sink.write`."""
        self._pending += events

    def commit(self, checkpoint: Checkpoint) -> Committed:
        """See `Sink.commit`."""
        letters = [event for event in self._pending if event.reason]
        for event in self._pending:
            if event.reason:
                continue
            time_ms = max(event.timestamp_ms - 1, 0)
            self._hours[event.source[0], time_ms - time_ms % HOUR_MS] += 1
        self._pending = []
        self._checkpoint = checkpoint
        return Committed(letters)

    def tend(self) -> None:
        """See `Sink.tend`."""

    def close(self) -> None:
        """See `Sink.close`."""
        self._tell(Counted(self._checkpoint, self._hours))
