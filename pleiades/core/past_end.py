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
- or if the connection was made because of an event that was left. That one is taken whether or not it
  was found (it may be dated before what was asked for): a topic-partition costs one connection, never a
  loop.
"""

from __future__ import annotations

from collections.abc import Mapping

from pleiades.core.ids import Told
from pleiades.core.position import MAX_SOURCES
from pleiades.core.wire import TopicPartition


class PastEnd:
    """Of one sequence of connections, each opened after the end of the one before."""

    def __init__(self) -> None:
        self._asked_again: set[TopicPartition] = set()
        """The connection was made because of an event of these that was left."""
        self._trusted: set[TopicPartition] = set()
        """On this connection: those that have delivered, or were found in the history."""
        self._delivered: Mapping[TopicPartition, int] | None = None

    def connected(self, delivered: Mapping[TopicPartition, int] | None) -> None:
        """A new connection was made.

        Args:
            delivered: the topic-partitions that it asked for, each with the greatest timestamp in an id
                of it that is known to be in the history from there on; 0: none. What comes of others
                was not asked for and is not looked at. None: it asked for all that there are.
        """
        self._trusted = set()
        self._delivered = None if delivered is None else dict(delivered)

    def first_left(self, told: Told) -> int | None:
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
            elif place is not None or source in told.resolved:
                self._trust(source)
        # Bounded, whatever names come.
        if not left or len(self._asked_again) + len(left) > MAX_SOURCES:
            return None
        self._asked_again.update(left)
        # Without a place for each id all are left: those of others come again, and are dropped as
        # repeats.
        return min(left.values()) if told.aligned else 0

    def _is_suspect(self, source: TopicPartition, timestamp_ms: int, told: Told) -> bool:
        if source in told.resolved or source in self._asked_again:
            return False
        delivered = self._delivered
        return delivered is None or timestamp_ms > delivered.get(source, timestamp_ms)

    def _trust(self, source: TopicPartition) -> None:
        if len(self._trusted) < MAX_SOURCES:
            self._trusted.add(source)
            self._asked_again.discard(source)
