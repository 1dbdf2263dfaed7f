"""Decides which events of a batch are published.

Law: an event is published, in order, if it is neither published already (a repeat) nor from before the
start of the relay.

A repeat is known to the window, or lies in an interval that an earlier start has relayed
(`core.coverage`).

Before the start: a topic-partition is *young* while all that it delivered is dated at or before the
start, e.g. because the first event after it is an imported edit of 2016. A reconnect must then ask for
older events than the start (see `ResumeCursor.asked_from`), and the upstream sends events that the relay
never took up. On every new connection, events of a young topic-partition are dropped until one comes
that is known, or dated after the start. This is exact, because

- the topic-partition was asked for from the start on, so whatever lies before its first delivered event
  is dated before the start, and it was not delivered, so it is not known;
- the request for a young one begins at or before the delivered event with its greatest timestamp, and
  that event is known: the window keeps it, because it is never older than the window's horizon.

A dropped event does not move the position. Otherwise the position would run ahead of that known event
and let the window forget it.

Assumption: that event was published. Canaries are not, but they carry the time at which they were
produced. So a topic-partition that delivered one after a start in the past is not young, and a canary
ends the wait. Events of unknown source and those with a fallback identity never count as from before the
start. The latter end the wait, because they may be known by another name (`core.occurrences`): one
event too many is better than one too few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from pleiades.core.checkpoint import Checkpoint
from pleiades.core.columns import Columns, identities_of
from pleiades.core.coverage import Covered
from pleiades.core.event import UNPUBLISHED, Batch, Event
from pleiades.core.fingerprint import fingerprint, fingerprints
from pleiades.core.identity import is_fallback
from pleiades.core.sse_id import TopicPartition
from pleiades.core.window import Window

Known: TypeAlias = Callable[[Event], bool]
"""Asks the destination for an event that the window does not hold."""


def nothing_known(_: Event) -> bool:
    """The `Known` of a destination whose window is complete."""
    return False


class Admitted(NamedTuple):
    """The events of a batch to publish, and how far the batch moves the position."""

    events: Sequence[Event]
    """Events and dead letters, in order."""
    timestamps_ms: Mapping[TopicPartition, int]
    """The timestamps by which the checkpoint advances, **instead of** the batch's own."""
    repeated: int
    before_start: int


class Admission:
    """Decides for one generation of the pipeline; batches must come in order.

    Args:
        window: the published events; every admitted or known one is added to it.
        ask_each: the destination must be asked about each event that the window does not hold, because
            the window is not complete.
    """

    def __init__(self, window: Window, ask_each: bool = True) -> None:
        self._window = window
        self._covered = Covered()
        self._ask_each = ask_each
        self._connection = 0
        self._started_ms = 0
        self._awaiting: set[TopicPartition] = set()
        """Young ones that have delivered no known event on this connection."""

    def admit(self, batch: Batch, checkpoint: Checkpoint, known: Known = nothing_known) -> Admitted:
        """Decide about a batch.

        Args:
            batch: the next one.
            checkpoint: the one **before** this batch.
            known: see `Known`.
        """
        # In a replay, the batches of several open connections come interleaved.
        if batch.connection > self._connection:
            self._connection = batch.connection
            self._started_ms = checkpoint.started_ms
            self._awaiting = set(young(checkpoint))
            self._window.connected(checkpoint.position, checkpoint.clock_ms)
            if checkpoint.coverage:
                asked_ms = batch.asked_ms()
                if asked_ms is None:
                    asked_ms = dict.fromkeys(checkpoint.coverage, batch.started_ms)
                self._covered.connected(checkpoint.coverage, asked_ms)
        self._window.observe(batch.timestamps_ms)
        if self._awaiting or self._covered:
            return self._admit_in_order(batch, known)
        came = batch.events
        if isinstance(came, Columns):
            sources = came.sources
        else:
            came = [event for event in came if event.reason not in UNPUBLISHED]
            sources = [event.source for event in came]
        prints = fingerprints(identities_of(came))
        if not self._ask_each and self._window.add_all(sources, prints):
            # The usual case: all events are new.
            return Admitted(came, batch.timestamps_ms, 0, 0)
        add = self._window.add
        events = [
            event
            for event, print_ in zip(came, prints, strict=True)
            if add(event.source, event.timestamp_ms, print_) and not known(event)
        ]
        return Admitted(events, batch.timestamps_ms, len(came) - len(events), 0)

    def _admit_in_order(self, batch: Batch, known: Known) -> Admitted:
        events: list[Event] = []
        repeated = before_start = 0
        waiting = frozenset(self._awaiting)
        timestamps_ms = {
            source: timestamp_ms
            for source, timestamp_ms in batch.timestamps_ms.items()
            if source not in waiting or timestamp_ms > self._started_ms
        }
        for event in batch.events:
            source, timestamp_ms = event.source, event.timestamp_ms
            dropped = event.reason in UNPUBLISHED
            print_ = b"" if dropped else fingerprint(event.identity)
            # `Covered` must see every event, whatever else is known about it.
            is_known = self._covered.holds(source, timestamp_ms) or (
                not dropped and (print_ in self._window or known(event))
            )
            if is_known or is_fallback(event.identity) or timestamp_ms > self._started_ms:
                self._awaiting.discard(source)
            if source in self._awaiting:
                before_start += not dropped
                continue
            if source in waiting:
                timestamps_ms[source] = max(timestamps_ms.get(source, 0), timestamp_ms)
            if dropped:
                continue
            self._window.add(source, timestamp_ms, print_)
            if is_known:
                repeated += 1
            else:
                events.append(event)
        # These delivered something dated after the start, even if its source is unknown.
        self._awaiting.difference_update(waiting & timestamps_ms.keys())
        return Admitted(events, timestamps_ms, repeated, before_start)


def young(checkpoint: Checkpoint) -> Iterator[TopicPartition]:
    """The topic-partitions that have delivered something, but nothing dated at or after the start."""
    for source, reached in checkpoint.position.items():
        # An id's timestamp is that of its event + 1.
        if 0 < reached <= checkpoint.started_ms:
            yield source
