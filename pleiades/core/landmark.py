"""Whether the upstream still has what follows a position.

Law: a topic-partition is asked for from its position or earlier, so an event that carries the position's
timestamp comes again: the *landmark*. The position is the greatest timestamp of all that was delivered,
and delivery began at an event that the upstream found by the begin. So everything that the log holds
before the landmark is dated at or before the position, or before the begin. Hence

- while nothing later than both has come, nothing is known to be missing, whatever is dated back;
- if something later than both comes before the landmark, the landmark is gone, and with it perhaps what
  followed it;
- if all that the log holds has come without it, it is gone as well. Only a replay comes to such an end.
  A live relay misses a landmark that is dated ahead when its time has come, and not before.

One timestamp alone does not tell. The first event that comes may be dated an hour ahead, or lie years
before the begin, and nothing is missing.

Two cases can't be told apart by what the upstream sends. If the landmark is the last event that expired,
nothing is lost, and a gap is reported all the same: a false alarm is better than a silent loss. If the
landmark is gone and another event of the same millisecond is left, the gap is not seen.
"""

from __future__ import annotations


class Landmark:
    """Of one topic-partition on one connection.

    Args:
        reached_ms: the greatest timestamp in an id of it so far; or that of an event which is known to
            be there.
        begin_ms: from when on it is wanted at all.
        slack_ms: by how much later an event must be to count. For a position that may be less than the
            greatest timestamp, e.g. one that another program stored.
    """

    __slots__ = ("_latest_ms", "_reached_ms", "settled")

    def __init__(self, reached_ms: int, begin_ms: int, slack_ms: int = 0) -> None:
        self._reached_ms = reached_ms
        self._latest_ms = max(reached_ms, begin_ms) + slack_ms
        self.settled = False
        """The landmark came, or was missed: nothing more is to be learned."""

    def is_missed(self, timestamp_ms: int) -> bool:
        """Take note of the next id's timestamp; True, once, if the landmark must have come before it."""
        if self.settled:
            return False
        missed = timestamp_ms > self._latest_ms
        self.settled = missed or timestamp_ms == self._reached_ms
        return missed
