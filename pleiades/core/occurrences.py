"""Tells events apart that have the same fallback identity.

Law: on one connection no two events get the same identity; and an event never gets that of another
one, whatever connection brought it. So a fallback identity may cost a double, and never an event.

A fallback identity stands for a topic-partition, a timestamp and a content. Events that have all three
in common differ in nothing but their order. The upstream resolves the timestamp that a connection asks
for to the earliest offset at or after it. So if it asked for that timestamp or an earlier one, *all* of
them come, in the order of the log: the n-th one is the same event on each such connection, and in both
data centres. It gets the suffix `-n` from the second one on.

Otherwise (its source is unknown, or it is dated before what was asked for) some of them may lie before
what the connection brings, and nobody can say which one it is. It then gets a name that is never given
again, `-x<nonce>-<number>`, and is published at each delivery.

What is counted is bounded: of what is forgotten, the least timestamps first, an event dated there or
before counts as one of which nobody can say which it is.

Assumed: the upstream still has what was asked for. A log that was cut in the middle of events that
share a topic-partition, a timestamp and a content is not recognised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from pleiades.core.identity import is_fallback
from pleiades.core.wire import UNKNOWN_SOURCE, Batch, Event, TopicPartition

MAX_COUNTED = 50_000
"""Identities whose occurrences are counted, over all open connections: 20 MB. It must be more than come
while timestamps run backwards: 7 s at the fastest rate of the service."""
_UNIQUE = "-x"


def is_recognisable(identity: str) -> bool:
    """Whether the event will have this identity at its next delivery, too."""
    return not is_fallback(identity) or _UNIQUE not in identity


@dataclass(slots=True)
class _Counted:
    """What one connection brought."""

    connection: int
    asked_ms: dict[TopicPartition, int] | None
    """None: all topics from `started_ms` on."""
    started_ms: int
    counts: dict[str, int] = field(default_factory=dict)
    oldest: list[tuple[int, str, TopicPartition]] = field(default_factory=list)
    """A heap of what is counted, by timestamp."""
    forgotten_ms: dict[TopicPartition, int] = field(default_factory=dict)
    """The greatest timestamp of what was forgotten."""

    def certain(self, source: TopicPartition, timestamp_ms: int) -> bool:
        """Whether all events of this source and timestamp come on this connection, in order."""
        asked_ms = self.started_ms if self.asked_ms is None else self.asked_ms.get(source)
        # A timestamp in an id is its event's + 1.
        return source != UNKNOWN_SOURCE and asked_ms is not None and timestamp_ms > asked_ms

    def forget_oldest(self) -> None:
        """Make room for another one."""
        timestamp_ms, identity, source = heappop(self.oldest)
        del self.counts[identity]
        self.forgotten_ms[source] = max(timestamp_ms, self.forgotten_ms.get(source, 0))


class Occurrences:
    """Counts for one generation of the pipeline; batches must come in their order.

    Args:
        nonce: no other generation has the same: up to 16 characters of `[0-9a-f]`.
    """

    def __init__(self, nonce: str, max_counted: int = MAX_COUNTED) -> None:
        self._nonce = nonce
        self._max_counted = max_counted
        self._unique = count(1)
        self._total = 0
        self._open: dict[TopicPartition | None, _Counted] = {}
        """By the only topic-partition that the connection asked for, as in a replay, where several are
        open at once."""

    def told_apart(self, batch: Batch) -> Batch:
        """The batch with identities of which no two are equal."""
        counted = self._of(batch)
        if batch.finished and batch.source is not None:
            self._total -= len(self._open.pop(batch.source).counts)
        if not batch.fallbacks:
            return batch
        return batch._replace(events=[self._numbered(event, counted) for event in batch.events])

    def _of(self, batch: Batch) -> _Counted:
        counted = self._open.get(batch.source)
        if counted is None or counted.connection != batch.connection:
            if counted is not None:
                self._total -= len(counted.counts)
            counted = _Counted(batch.connection, batch.asked_ms(), batch.started_ms)
            self._open[batch.source] = counted
        return counted

    def _numbered(self, event: Event, counted: _Counted) -> Event:
        identity, source, timestamp_ms = event.identity, event.source, event.timestamp_ms
        if not is_fallback(identity):
            return event
        number = counted.counts.get(identity, 0) + 1
        if not counted.certain(source, timestamp_ms) or (
            number == 1 and timestamp_ms <= counted.forgotten_ms.get(source, 0)
        ):
            unique = f"{identity}{_UNIQUE}{self._nonce}-{next(self._unique)}"
            return event._replace(identity=unique)
        if number == 1:
            heappush(counted.oldest, (timestamp_ms, identity, source))
            self._total += 1
        counted.counts[identity] = number
        if self._total > self._max_counted:
            counted.forget_oldest()
            self._total -= 1
        return event if number == 1 else event._replace(identity=f"{identity}-{number}")
