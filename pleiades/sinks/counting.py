"""The destination of a dry run: counts the events by topic and hour, and publishes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pleiades.config.flags import BOOLEAN, Flag
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import Event
from pleiades.runtime.channel import POLL_SECONDS
from pleiades.sinks.base import Committed, Destination, Opened, SinkContext

HOUR_MS = 3_600_000

Hours: TypeAlias = Mapping[tuple[str, int], int]
"""Events by upstream topic (empty: unknown) and the beginning of the hour, ms since 1970."""


@dataclass(frozen=True)
class CountingDestination(Destination):
    """Counts."""

    enable = Flag(
        "dry-run",
        "false",
        "only count, by topic and hour: needs no publisher, and writes nothing",
        BOOLEAN,
        without=("ingest", "check", "demo"),
    )
    outranks = True
    place = "nothing (a dry run)"

    def make_sink(self, context: SinkContext) -> CountingSink:
        """See `Destination.make_sink`."""

        def tell(counted: Counted) -> None:
            # Sent at once, for it is the last message of this process.
            with context.child.busy(POLL_SECONDS):
                context.child.details = counted

        return CountingSink(tell)


class Counted(NamedTuple):
    """The result of a dry run."""

    checkpoint: Checkpoint | None
    hours: Hours


class CountingSink:
    """See `Sink`; nothing is durable, so every start begins anew.

    Args:
        tell: gets the counts at the end.
    """

    def __init__(self, tell: Callable[[Counted], None]) -> None:
        self._tell = tell
        self._hours: Counter[tuple[str, int]] = Counter()
        self._pending: list[Event] = []
        self._checkpoint: Checkpoint | None = None

    def open(self, resume: bool) -> Opened:
        """See `Sink.open`."""
        return Opened(None)

    def is_published(self, event: Event) -> bool:
        """See `Sink.is_published`."""
        return False

    def write(self, events: Sequence[Event]) -> None:
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

    def poll(self) -> None:
        """See `Sink.poll`."""

    def finish(self) -> None:
        """See `Sink.finish`: nothing is left to do."""

    def close(self) -> None:
        """See `Sink.close`."""
        self._tell(Counted(self._checkpoint, self._hours))
