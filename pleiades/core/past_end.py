"""Topic-partitions that may have missed events because a connection asked for them from past their end.

Law: no event is taken that may have missed others: of each topic-partition the first event, and those
after it, only on a connection on which no event before them can have been missed.

The upstream resolves "past the end" to "latest" when it begins to fetch, half a second after its answer,
and never sends events of that half second on that connection. A later event proves that there is history
to ask for. So that event is left, and the next connection asks again from the unchanged position: it
finds the event, or the ones before it. Nothing was missed of a topic-partition on a connection

- if an id shows the offset that it was resolved to, and not -1,
- or from the known event on: the one with the position's timestamp, delivered before or found in the
  history,
- or if the event that was left on the connection before comes first again. If another one does, it is
  left, too: the history begins with it, or a mirror that lags does not have the other one yet.

Until one of these is true an event is taken if it is dated at or before the requested time, such as an
imported edit of 2016, or the known event: asking again might not find it. It proves nothing about the
events after it. There is one exception. If only a time was requested because no topic was known, such an
event may also show that the upstream ignored the time and sends its whole history. It did not if the
other topic-partitions are past their end.

Not guaranteed: if a mirror reaches the known event in that half second, and the first event after it is
dated back to before it, that event is taken before those that were missed. They follow it. And if a
topic-partition has no known event, the next connection may lead to a mirror that lags, and be deaf
exactly up to the event that was left before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pleiades.core.ids import ParsedIds
from pleiades.core.position import MAX_SOURCES
from pleiades.core.sse_id import TopicPartition

MAX_TIMES = 3
"""After so many times the first events of a topic-partition are taken: never a loop."""


class _Left(NamedTuple):
    """Events of a topic-partition that were left since nothing of it could have been missed."""

    timestamp_ms: int = 0
    """That of the last one."""
    times: int = 0


class PastEnd:
    """The state of one sequence of connections, each opened after the end of the one before."""

    def __init__(self) -> None:
        self._left: dict[TopicPartition, _Left] = {}
        self._trusted: set[TopicPartition] = set()
        """On this connection: those that have delivered, or were found in the history."""
        self._named: set[TopicPartition] = set()
        """On this connection: those that were requested, or that an id names."""
        self._asked: Mapping[TopicPartition, int] | None = None
        self._delivered: Mapping[TopicPartition, int] = {}
        self._since_ms = 0

    def connected(
        self,
        asked: Mapping[TopicPartition, int] | None,
        delivered: Mapping[TopicPartition, int],
        since_ms: int,
    ) -> None:
        """A new connection was opened.

        Args:
            asked: the timestamp it requests for each topic-partition; others are ignored. None: it
                requests all of them from `since_ms` on.
            delivered: topic-partition → the greatest timestamp in its ids that is known to be in the
                history from there on; 0 or none: there is none.
        """
        self._trusted = set()
        self._named = set(asked or ())
        self._asked = None if asked is None else dict(asked)
        self._delivered = dict(delivered)
        self._since_ms = since_ms

    @property
    def is_over(self) -> bool:
        """True if nothing of this connection can be left any more.

        The upstream names all topic-partitions of a connection in each id.
        """
        return bool(self._named) and self._named <= self._trusted

    def first_left(self, parsed: ParsedIds) -> int | None:
        """Which of the next ids must be left, with everything after it; None: none of them."""
        left: dict[TopicPartition, int] = {}
        proven = []
        if len(self._named) < MAX_SOURCES:
            self._named |= parsed.timestamps_ms.keys()
        for source in parsed.timestamps_ms.keys() - self._trusted:
            if parsed.offsets.get(source, -1) >= 0:
                proven.append(source)
                continue
            for place, timestamp_ms in enumerate(parsed.timestamps_ms[source]):
                if not timestamp_ms:
                    continue
                if self._is_proof(source, timestamp_ms):
                    proven.append(source)
                    break
                if self._is_suspect(source, timestamp_ms, parsed):
                    left[source] = place
                    break
        # Bounded, whatever names come.
        if not left or len(self._left) + len(left) > MAX_SOURCES:
            for source in proven:
                self._trust(source)
            return None
        for source, place in left.items():
            timestamp_ms = parsed.timestamps_ms[source][place] or 0
            before = self._left.get(source, _Left())
            self._left[source] = _Left(timestamp_ms, before.times + 1)
        # Without a place for each id all are left: those of others come again and are dropped as
        # repeats.
        return min(left.values()) if parsed.aligned else 0

    def _is_proof(self, source: TopicPartition, timestamp_ms: int) -> bool:
        """True if nothing was missed before the event with this timestamp."""
        left = self._left.get(source)
        if left is not None and (timestamp_ms == left.timestamp_ms or left.times == MAX_TIMES):
            return True
        if self._asked is None:
            return False
        return source not in self._asked or timestamp_ms == self._delivered.get(source)

    def _is_suspect(self, source: TopicPartition, timestamp_ms: int, parsed: ParsedIds) -> bool:
        if self._asked is None:
            honoured = bool(parsed.offsets) and max(parsed.offsets.values()) < 0
            return timestamp_ms > self._since_ms or not honoured
        return timestamp_ms > max(self._asked[source], self._delivered.get(source, 0))

    def _trust(self, source: TopicPartition) -> None:
        if len(self._trusted) < MAX_SOURCES:
            self._trusted.add(source)
            self._left.pop(source, None)
