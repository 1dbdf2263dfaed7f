"""Distinguishes events that have the same fallback identity.

Law: no two events of one connection get the same identity, and no event ever gets the identity of a
different one, whichever connection delivered it. So a fallback identity may cost a duplicate, but never
an event.

A fallback identity stands for a topic-partition, a timestamp and a content. Events that have all three
in common differ in their order only. The upstream resolves the timestamp that a connection asks for to
the earliest offset at or after it. So if the connection asked for that timestamp or an earlier one,
*all* of them are delivered, in log order, and the n-th one is the same event on each such connection
and in both data centres. From the second one on, it gets the suffix `-n`.

Otherwise, if its source is unknown or it is dated before the requested timestamp, some of them may lie
before the first delivered event, and its number can't be known. It then gets a name that is never used
again, `-x<nonce>-<number>`, and is published at each delivery.

The number of counters is bounded. Those with the least timestamps are forgotten first. An event dated at
or before a forgotten one is treated as one whose number can't be known.

Assumption: the upstream still has what was asked for. If a log was truncated between events that share a
topic-partition, a timestamp and a content, this is not detected.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from pleiades.core.event import Batch, Event
from pleiades.core.identity import is_fallback
from pleiades.core.sse_id import UNKNOWN_SOURCE, TopicPartition

MAX_COUNTED = 50_000
"""Identities whose occurrences are counted, over all open connections (20 MB). More than arrive while
timestamps run backwards: 7 s at the fastest rate of the service."""
_UNIQUE = "-x"


def is_recognisable(identity: str) -> bool:
    """True if the event will have this identity at its next delivery, too."""
    return not is_fallback(identity) or _UNIQUE not in identity


@dataclass(slots=True)
class _Counted:
    """The counters of one connection."""

    connection: int
    asked_ms: dict[TopicPartition, int] | None
    """None: all topics, from `started_ms` on."""
    started_ms: int
    counts: dict[str, int] = field(default_factory=dict)
    oldest: list[tuple[int, str, TopicPartition]] = field(default_factory=list)
    """A heap of the counted identities, by timestamp."""
    forgotten_ms: dict[TopicPartition, int] = field(default_factory=dict)
    """The greatest forgotten timestamp."""

    def certain(self, source: TopicPartition, timestamp_ms: int) -> bool:
        """True if all events of this source and timestamp arrive on this connection, in order."""
        asked_ms = self.started_ms if self.asked_ms is None else self.asked_ms.get(source)
        # A timestamp in an id is that of its event + 1.
        return source != UNKNOWN_SOURCE and asked_ms is not None and timestamp_ms > asked_ms

    def forget_oldest(self) -> None:
        """Forget the counter with the least timestamp."""
        timestamp_ms, identity, source = heappop(self.oldest)
        del self.counts[identity]
        self.forgotten_ms[source] = max(timestamp_ms, self.forgotten_ms.get(source, 0))


class Occurrences:
    """The counters of one generation of the pipeline; batches must come in order.

    Args:
        nonce: unique to this generation: up to 16 characters of `[0-9a-f]`.
    """

    def __init__(self, nonce: str, max_counted: int = MAX_COUNTED) -> None:
        self._nonce = nonce
        self._max_counted = max_counted
        self._unique = count(1)
        self._total = 0
        self._open: dict[TopicPartition | None, _Counted] = {}
        """The open connections by the only topic-partition that each asked for; a replay has several
        open connections."""

    def distinguish(self, batch: Batch) -> Batch:
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
