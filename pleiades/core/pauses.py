"""When to ask the upstream again: after a refusal, and after a connection that ended.

Law: a connection of use is followed by the next at once, for a cut is normal. One that ended soon and
brought nothing new counts as failed. Those that are of use and yet short, one after the other, are
followed by pauses that grow: an upstream that ends them does so for a reason, and is not helped by
being asked a thousand times a second.
"""

from __future__ import annotations

from pleiades.core.backoff import Backoff
from pleiades.core.position import Position

CONNECT_BACKOFF = Backoff(first_seconds=0.5, max_seconds=60.0)
MIN_CONNECTION_SECONDS = 5.0
"""A connection that ends sooner and brought nothing new counts as failed."""
SHORT_BACKOFF = Backoff(first_seconds=0.05, max_seconds=1.0)
"""Between connections that were short, one after the other, but did bring something new."""
MAX_RETRY_FIELD_MS = 60_000
"""The longest pause that a `retry:` field of the stream can ask for."""


class Pauses:
    """Of one sequence of connections, each opened after the end of the one before."""

    def __init__(self) -> None:
        self._short = 0
        self._delivered = 0
        """Events that came on this connection, repeated ones too."""
        self._most_delivered = 0
        """The most that any one brought since the position last moved."""
        self._retry_ms = 0
        self._opened_at = 0.0
        self._before: tuple[Position, bytes] = ({}, b"")

    def opened(self, position: Position, last_event_id: bytes, now: float) -> None:
        """Before a connection is asked for, at this monotonic time."""
        self._opened_at = now
        self._delivered = 0
        self._before = dict(position), last_event_id

    def delivered(self, events: int, retry_ms: int | None) -> None:
        """Something came; `retry_ms`: what a `retry:` field among it asked for."""
        self._delivered += events
        if retry_ms is not None:
            self._retry_ms = min(retry_ms, MAX_RETRY_FIELD_MS)

    def ended(self, position: Position, last_event_id: bytes, now: float, idle: bool) -> bool:
        """Whether the connection was of use; if not, the next one waits as after a failure.

        Args:
            idle: it was silent until we ended it, which is always of use.
        """
        useful = self._brought_something_new(position, last_event_id)
        short = not idle and now - self._opened_at < MIN_CONNECTION_SECONDS
        self._short = self._short + 1 if short else 0
        return useful or not short

    def _brought_something_new(self, position: Position, last_event_id: bytes) -> bool:
        # What is repeated after a reconnect is nothing new, and ends with the id that the last
        # connection ended with. The position alone does not tell: after an event that is dated ahead,
        # what comes is new and does not move it. Nor does the id, where many events have one
        # millisecond.
        position_before, id_before = self._before
        moved = position != position_before
        more = self._delivered > self._most_delivered
        self._most_delivered = (
            self._delivered if moved else max(self._delivered, self._most_delivered)
        )
        return moved or more or (self._delivered > 0 and last_event_id != id_before)

    def after_end(self, jitter: float) -> float:
        """Seconds until the next connection after one that was of use; `jitter` is in [0, 1)."""
        pause = SHORT_BACKOFF.pause_seconds(self._short - 1, jitter) if self._short > 1 else 0.0
        return max(pause, self._retry_ms / 1000)

    def after_failure(
        self, attempt: int, jitter: float, retry_after_seconds: float | None
    ) -> float:
        """Seconds until the next try; `attempt`: how many failed in a row, from 1."""
        pause = CONNECT_BACKOFF.pause_seconds(attempt, jitter)
        return max(pause, retry_after_seconds or 0.0, self._retry_ms / 1000)
