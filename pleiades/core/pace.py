"""A promise not to be faster than so many events per second."""

from __future__ import annotations


class Pace:
    """Tells how long to wait before what was read is passed on.

    What was not used is not saved up: after a pause it does not go faster than promised.

    Args:
        per_second: events; 0: no limit.
    """

    def __init__(self, per_second: float) -> None:
        self._seconds_each = 1.0 / per_second if per_second else 0.0
        self._free_at = 0.0

    def pause_seconds(self, events: int, now: float) -> float:
        """The wait before so many events.

        Args:
            now: monotonic, in seconds.
        """
        pause = max(self._free_at - now, 0.0)
        self._free_at = now + pause + events * self._seconds_each
        return pause
