"""Topic-partitions that may have missed events on a connection: those asked for from past their end.

Law: the first event of a topic-partition is taken only on a connection on which nothing can have been
missed before it.

The upstream resolves "past the end" to "latest" when it begins to fetch, half a second after its answer:
it never sends on that connection what is produced meanwhile. An event that comes later proves that there
is history to ask for. So it is left, and the next connection asks again from the position as it was:
that finds the event, or what came before it.

On a connection, nothing was missed of a topic-partition

- if an id showed the offset that it was resolved to, and not -1,
- or if its first event was delivered before, so that it was found in the history,
- or if the event that was left before, or one that is dated before it, comes first. A mirror that lags
  may not have that event yet: then the next one is left, too.

An event that is dated before what was asked for, such as an imported edit of 2016, can't be found by
asking again: it is taken as it comes. Unless no topic was known, and only a time was asked for: then it
may also show that the upstream ignored the time and sends all that it has. It did not if the other
topic- partitions are past their end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pleiades.core.ids import ParsedIds
from pleiades.core.position import MAX_SOURCES
from pleiades.core.wire import TopicPartition

MAX_TIMES = 3
"""So often the first events of one topic-partition are left, then they are taken: never a loop."""


class _Left(NamedTuple):
    """What was left of a topic-partition since it last delivered."""

    timestamp_ms: int
    """The greatest of the events that came first."""
    times: int


class PastEnd:
    """Of one sequence of connections, each opened after the end of the one before."""

    def __init__(self) -> None:
        self._left: dict[TopicPartition, _Left] = {}
        """The connection was made because of events of these that were left."""
        self._trusted: set[TopicPartition] = set()
        """On this connection: those that have delivered, or were found in the history."""
        self._asked: Mapping[TopicPartition, int] | None = None
        self._delivered: Mapping[TopicPartition, int] = {}
        self._since_ms = 0

    def connected(
        self,
        asked: Mapping[TopicPartition, int] | None,
        delivered: Mapping[TopicPartition, int],
        since_ms: int,
    ) -> None:
        """A new connection was made.

        Args:
            asked: what it asked for, a timestamp for each topic-partition; what comes of others is not
                looked at. None: a time was asked for, of all that there are.
            delivered: of each topic-partition the greatest timestamp in an id of it that is known to be
                in the history from there on; 0 or none: there is none.
            since_ms: that time.
        """
        self._trusted = set()
        self._asked = None if asked is None else dict(asked)
        self._delivered = dict(delivered)
        self._since_ms = since_ms

    def first_left(self, told: ParsedIds) -> int | None:
        """Which of the next ids must be left, with all that follow; None: none of them.

        Args:
            told: what they say.
        """
        left: dict[TopicPartition, int] = {}
        for source, column in told.timestamps_ms.items():
            if source in self._trusted:
                continue
            place = next((place for place, time in enumerate(column) if time), None)
            if place is not None and self._is_suspect(source, column[place] or 0, told):
                left[source] = place
            elif place is not None or told.offsets.get(source, -1) >= 0:
                self._trust(source)
        # Bounded, whatever names come.
        if not left or len(self._left) + len(left) > MAX_SOURCES:
            return None
        for source, place in left.items():
            timestamp_ms = told.timestamps_ms[source][place] or 0
            before = self._left.get(source, _Left(0, 0))
            self._left[source] = _Left(max(timestamp_ms, before.timestamp_ms), before.times + 1)
        # Without a place for each id all are left: those of others come again, and are dropped as
        # repeats.
        return min(left.values()) if told.aligned else 0

    def _is_suspect(self, source: TopicPartition, timestamp_ms: int, told: ParsedIds) -> bool:
        if told.offsets.get(source, -1) >= 0:
            return False
        left = self._left.get(source)
        if left is not None and (timestamp_ms <= left.timestamp_ms or left.times == MAX_TIMES):
            return False
        if self._asked is None:
            honoured = bool(told.offsets) and max(told.offsets.values()) < 0
            return timestamp_ms > self._since_ms or not honoured
        if timestamp_ms <= self._asked.get(source, timestamp_ms):
            return False
        return timestamp_ms > self._delivered.get(source, 0)

    def _trust(self, source: TopicPartition) -> None:
        if len(self._trusted) < MAX_SOURCES:
            self._trusted.add(source)
            self._left.pop(source, None)
