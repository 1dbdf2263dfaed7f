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
from itertools import takewhile
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
    """The state of one sequence of connections; `jitter` gives numbers in [0, 1)."""

    # Jitter spreads out instances that failed together; it guards no secret.
    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self.events = 0
        """Ids that came on this connection, repeated ones too."""
        self._jitter = jitter
        self._failed = 0
        """Failures in a row."""
        self._short = 0
        """Short connections in a row."""
        self._retry_ms = 0
        self._opened_at = 0.0
        self._last_event_id = b""
        self._run = 0
        """The number of ids at the end that equal the last one."""
        self._before: tuple[Position, bytes, int] = ({}, b"", 0)

    def opened(self, position: Position, now: float) -> None:
        """A connection is about to be requested, at this monotonic time."""
        self._opened_at = now
        self.events = 0
        self._before = self._tail(position)

    def received(self, ids: list[bytes], retry_ms: int | None) -> None:
        """Events came; `retry_ms` is what a `retry:` field among them asked for."""
        if retry_ms is not None:
            self._retry_ms = min(retry_ms, MAX_RETRY_FIELD_MS)
        if not ids:
            return
        last = ids[-1]
        run = sum(1 for _ in takewhile(last.__eq__, reversed(ids)))
        goes_on = self.events and last == self._last_event_id and run == len(ids)
        self._run = self._run + run if goes_on else run
        self._last_event_id = last
        self.events += len(ids)

    def ended(self, position: Position, now: float, is_silent: bool) -> bool:
        """Return whether the connection brought something new."""
        is_short = not is_silent and now - self._opened_at < MIN_CONNECTION_SECONDS
        self._short = self._short + 1 if is_short else 0
        return self._tail(position) != self._before

    @property
    def was_short(self) -> bool:
        """The connection that ended was not silent, and ended soon."""
        return self._short > 0

    def _tail(self, position: Position) -> tuple[Position, bytes, int]:
        """The end of the delivered events: repeated events end the same way, new ones do not.

        The position alone does not tell: it stands still behind an event that is dated ahead. Nor does
        the id, where many events have one millisecond.
        """
        return dict(position), self._last_event_id, self._run

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
