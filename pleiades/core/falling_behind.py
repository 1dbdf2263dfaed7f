"""Detects that the relay falls behind.

Law: it falls behind if, for `PERIOD_SECONDS`, bytes were waiting at every look and the lag grew by more
than `GROWTH_SECONDS`. A relay that catches up has much to read too, but its lag shrinks. With a slow
upstream the lag grows, but there is nothing to read.
"""

from __future__ import annotations

PERIOD_SECONDS = 60.0
MAX_UNSEEN_SECONDS = 10.0
"""After a longer time without a look the period begins anew. An idle stream has none between two
connections."""
GROWTH_SECONDS = 5.0


class FallingBehind:
    """The state of one reader."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._looked = 0.0
        self._lag_seconds = 0.0

    def observe(self, now: float, lag_seconds: float, unread_bytes: int) -> bool:
        """Take one look; True once for each period in which the relay fell behind.

        Args:
            now: monotonic time in seconds.
            lag_seconds: age of the newest event that was read.
            unread_bytes: bytes from the upstream that wait on this machine.
        """
        unseen_seconds, self._looked = now - self._looked, now
        if (
            not unread_bytes
            or self._since is None
            or unseen_seconds > MAX_UNSEEN_SECONDS
            or lag_seconds < self._lag_seconds
        ):
            self._since = now if unread_bytes else None
            self._lag_seconds = lag_seconds
            return False
        if now - self._since < PERIOD_SECONDS:
            return False
        fell_behind = lag_seconds - self._lag_seconds > GROWTH_SECONDS
        self._since, self._lag_seconds = now, lag_seconds
        return fell_behind
