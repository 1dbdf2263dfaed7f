"""Intervals of history that earlier starts published, from before the window.

A start with `--resume=false --since=TIME` asks for events that may be published already. The window
knows only the latest ones, so the checkpoint keeps, for each topic-partition, the *intervals* that
earlier starts relayed without a gap. A relay that only resumes has none.

Laws:
- An interval (from, until) means: every event from the first one dated at or after `from` up to, and not
  including, the first one dated at or after `until` is published. From there on the window knows.
- The upstream resolves a timestamp to the earliest offset at or after it. So on a connection that begins
  before an interval, the first event dated at or after `from` is its beginning, whatever the dates of
  the others; and the first one dated at or after `until` is its end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from pleiades.core.sse_id import TopicPartition

MAX_INTERVALS = 4
"""For each topic-partition. Intervals that touch are merged; a start that leaves a gap adds one."""


class Interval(NamedTuple):
    """A part of one topic-partition's history: Kafka timestamps in ms since 1970."""

    from_ms: int
    until_ms: int


Coverage = Mapping[TopicPartition, tuple[Interval, ...]]
"""Intervals in ascending order, disjoint, by topic-partition."""


def covered_by(
    coverage: Coverage, started_ms: int, position: Mapping[TopicPartition, int], clock_ms: int
) -> Coverage:
    """The coverage for the next start, to which the last one's interval is added.

    Args:
        started_ms: where the last start began.
        position: how far it got.
        clock_ms: see `Checkpoint.clock_ms`.
    """
    joined = dict(coverage)
    for source, reached in position.items():
        # An event dated `reached - 1` was published, so the first one dated at or after that was, too.
        # One dated ahead may be missing in the other data centre, so the clock is the limit.
        until_ms = min(reached - 1, clock_ms)
        if until_ms > started_ms:
            joined[source] = _union(joined.get(source, ()), Interval(started_ms, until_ms))
    return joined


def _union(intervals: tuple[Interval, ...], new: Interval) -> tuple[Interval, ...]:
    merged: list[Interval] = []
    for interval in sorted((*intervals, new)):
        if merged and interval.from_ms <= merged[-1].until_ms:
            until_ms = max(merged[-1].until_ms, interval.until_ms)
            merged[-1] = Interval(merged[-1].from_ms, until_ms)
        else:
            merged.append(interval)
    # The oldest is dropped: the upstream deletes its events first.
    return tuple(merged[-MAX_INTERVALS:])


class Covered:
    """Follows the topic-partitions of one connection through their intervals."""

    def __init__(self) -> None:
        self._ahead: dict[TopicPartition, deque[Interval]] = {}
        """Intervals whose end has not been reached; the first may have been entered."""
        self._entered: set[TopicPartition] = set()

    def __bool__(self) -> bool:
        """True if an event of this connection may be covered."""
        return bool(self._ahead)

    def connected(self, coverage: Coverage, asked_ms: Mapping[TopicPartition, int]) -> None:
        """A new connection was made.

        Args:
            asked_ms: the timestamp that it asked for, by topic-partition.
        """
        self._ahead = {}
        self._entered = set()
        for source, intervals in coverage.items():
            asked = asked_ms.get(source)
            ahead = deque(each for each in intervals if asked is not None and asked < each.until_ms)
            if asked is None or not ahead:
                continue
            self._ahead[source] = ahead
            if asked >= ahead[0].from_ms:
                self._entered.add(source)

    def holds(self, source: TopicPartition, timestamp_ms: int) -> bool:
        """True if the next event of a topic-partition is published already.

        Args:
            timestamp_ms: the one in its id: that of the event + 1. This must be called for every event,
                in order, canaries included.
        """
        ahead = self._ahead.get(source)
        if ahead is None:
            return False
        while ahead:
            if source not in self._entered:
                if timestamp_ms <= ahead[0].from_ms:
                    return False
                self._entered.add(source)
            if timestamp_ms <= ahead[0].until_ms:
                return True
            ahead.popleft()
            self._entered.discard(source)
        del self._ahead[source]
        return False
