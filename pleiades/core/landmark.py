"""Detects that the upstream no longer has everything after a position.

Law: a topic-partition is requested from its position or earlier, so an event that carries the position's
timestamp arrives again: the *landmark*. The position is the greatest timestamp of all delivered events,
and delivery began with an event that the upstream found by the begin. So everything that the log holds
before the landmark is dated at or before the position, or before the begin. Hence

- while nothing later than both has arrived, nothing is known to be missing, whatever is dated back;
- if something later than both arrives before the landmark, the landmark is gone, and with it perhaps the
  events after it;
- if the whole log has arrived without it, it is gone as well. Only a replay comes to such an end. A live
  relay misses a landmark that is dated ahead when its time has come, and not before.

The first timestamp alone does not tell: it may lie an hour ahead or years back with nothing missing.

The upstream's events do not tell two cases apart. If the landmark is the last event that expired,
nothing is lost, and a gap is reported all the same: a false alarm is better than a silent loss. If the
landmark is gone and another event of the same millisecond is left, the gap is not seen.
"""

from __future__ import annotations


class Landmark:
    """The landmark of one topic-partition on one connection.

    Args:
        reached_ms: the greatest timestamp in its ids so far, or that of an event known to be there.
        begin_ms: no earlier event is wanted.
        slack_ms: how much later an event must be to count, for a position that may be less than the
            greatest timestamp, e.g. one that another program stored.
    """

    __slots__ = ("_latest_ms", "_reached_ms", "settled")

    def __init__(self, reached_ms: int, begin_ms: int, slack_ms: int = 0) -> None:
        self._reached_ms = reached_ms
        self._latest_ms = max(reached_ms, begin_ms) + slack_ms
        self.settled = False
        """The landmark arrived, or was missed."""

    def is_missed(self, timestamp_ms: int) -> bool:
        """Take the next id's timestamp; True, once, if the landmark must have arrived before it."""
        if self.settled:
            return False
        missed = timestamp_ms > self._latest_ms
        self.settled = missed or timestamp_ms == self._reached_ms
        return missed
