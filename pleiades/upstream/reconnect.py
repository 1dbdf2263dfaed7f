"""The pause before the upstream is asked again, after a refusal and after a connection that ended.

Law: after a useful connection the next one follows at once, because a cut is normal. A connection that
ends soon and brings nothing new counts as failed. After several short ones in a row the pauses grow even
if each was useful: an upstream that ends them has a reason, and must not be asked a thousand times a
second.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pleiades.core.backoff import Backoff
from pleiades.core.position import Position
from pleiades.runtime.errors import Transient

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_BACKOFF = Backoff(first_seconds=0.5, max_seconds=60.0)
MIN_CONNECTION_SECONDS = 5.0
"""A connection that ends sooner is short."""
SHORT_BACKOFF = Backoff(first_seconds=0.05, max_seconds=1.0)
"""Between short connections that brought something new."""
MAX_RETRY_FIELD_MS = 60_000
"""The longest pause that a `retry:` field of the stream can ask for."""


class Reconnect:
    """The pauses of one sequence of connections; `jitter` gives numbers in [0, 1)."""

    # Jitter spreads out instances that failed together; it guards no secret.
    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._failed = 0
        """Failures in a row."""
        self._short = 0
        """Short connections in a row."""
        self._delivered = 0
        """Events that came on this connection, repeated ones too."""
        self._most_delivered = 0
        """The most that any connection brought since the position last moved."""
        self._retry_ms = 0
        self._opened_at = 0.0
        self._before: tuple[Position, bytes] = ({}, b"")

    def opened(self, position: Position, last_event_id: bytes, now: float) -> None:
        """A connection is about to be requested, at this monotonic time."""
        self._opened_at = now
        self._delivered = 0
        self._before = dict(position), last_event_id

    def received(self, events: int, retry_ms: int | None) -> None:
        """Events came; `retry_ms` is what a `retry:` field among them asked for."""
        self._delivered += events
        if retry_ms is not None:
            self._retry_ms = min(retry_ms, MAX_RETRY_FIELD_MS)

    def ended(self, position: Position, last_event_id: bytes, now: float, is_silent: bool) -> bool:
        """Return whether the connection was useful; a silent one always is."""
        brought_new = self._brought_something_new(position, last_event_id)
        is_short = not is_silent and now - self._opened_at < MIN_CONNECTION_SECONDS
        self._short = self._short + 1 if is_short else 0
        return brought_new or not is_short

    def _brought_something_new(self, position: Position, last_event_id: bytes) -> bool:
        # Events that are repeated after a reconnect are not new, and end with the id that the last
        # connection ended with. The position alone does not tell: after an event that is dated ahead,
        # new events do not move it. Nor does the id, where many events have one millisecond.
        position_before, id_before = self._before
        moved = position != position_before
        more = self._delivered > self._most_delivered
        self._most_delivered = (
            self._delivered if moved else max(self._delivered, self._most_delivered)
        )
        return moved or more or (self._delivered > 0 and last_event_id != id_before)

    def after_end(self) -> float:
        """Seconds until the next connection, after a useful one."""
        self._failed = 0
        pause = (
            SHORT_BACKOFF.pause_seconds(self._short - 1, self._jitter()) if self._short > 1 else 0.0
        )
        return max(pause, self._retry_ms / 1000)

    def after_failure(self, retry_after_seconds: float | None = None) -> float:
        """Seconds until the next try, after a failure."""
        self._failed += 1
        pause = CONNECT_BACKOFF.pause_seconds(self._failed, self._jitter())
        return max(pause, retry_after_seconds or 0.0, self._retry_ms / 1000)


def persist(ask: Callable[[], T]) -> T:
    """Ask until no `Transient` is raised."""
    reconnect = Reconnect()
    while True:
        try:
            return ask()
        except Transient as error:
            seconds = reconnect.after_failure(error.retry_after_seconds)
            log.warning("%s; trying again in %.1f s", error, seconds)
            time.sleep(seconds)
