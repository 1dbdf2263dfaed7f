"""The pause before the upstream is asked again, after a refusal and after a connection that ended.

Law: after a useful connection the next one follows at once, because a cut is normal. A connection that
ends soon and brings nothing new counts as failed. After several short ones in a row the pauses grow even
if each was useful: an upstream that ends them has a reason, and must not be asked a thousand times a
second.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import TypeAlias, TypeVar

from pleiades.core.backoff import Backoff
from pleiades.core.framing import ids_from_end
from pleiades.core.sse_id import TopicPartition
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

_TIMESTAMP = re.compile(rb'"timestamp"\s*:\s*([0-9]+)')

Tail: TypeAlias = tuple[Mapping[TopicPartition, int], list[bytes], int]


class Reconnect:
    """The state of one sequence of connections; `jitter` gives numbers in [0, 1)."""

    # Jitter spreads out instances that failed together; it guards no secret.
    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self.had_events = False
        """Events came on this connection, perhaps repeated ones."""
        self._jitter = jitter
        self._failed = 0
        """Failures in a row."""
        self._short = 0
        """Short connections in a row."""
        self._retry_ms = 0
        self._opened_at = 0.0
        self._last: list[bytes] = []
        """The parts that identify the last id."""
        self._run = 0
        """The number of ids at the end that equal the last one."""
        self._before: Tail = {}, [], 0

    def opened(self, position: Mapping[TopicPartition, int], now: float) -> None:
        """A connection is about to be requested, at this monotonic time."""
        self._opened_at = now
        self._before = self._tail(position)
        self.had_events = False

    def received(self, blob: bytes) -> None:
        """Whole frames came."""
        last: list[bytes] = []
        run = 0
        for sse_id in ids_from_end(blob):
            found = _identified(sse_id)
            if found and run and found != last:
                break
            if found:
                last, run = found, run + 1
        else:
            # All of them are equal. Those before them may be, too.
            run += self._run if self.had_events and last == self._last else 0
        if last:
            self.had_events = True
            self._last, self._run = last, run

    def asked_to_wait(self, retry_ms: int | None) -> None:
        """Note what a `retry` field of the stream asked for; None: there was none."""
        if retry_ms is not None:
            self._retry_ms = min(retry_ms, MAX_RETRY_FIELD_MS)

    def ended(self, position: Mapping[TopicPartition, int], now: float, is_silent: bool) -> bool:
        """Return whether the connection brought something new; `position` includes what it brought."""
        is_short = not is_silent and now - self._opened_at < MIN_CONNECTION_SECONDS
        self._short = self._short + 1 if is_short else 0
        return self._tail(position) != self._before

    def _tail(self, position: Mapping[TopicPartition, int]) -> Tail:
        """The end of the delivered events: repeated events end the same way, new ones do not.

        The position alone does not tell: it stands still behind an event that is dated ahead. Nor does
        the id, where many events have one millisecond.
        """
        return dict(position), self._last, self._run

    @property
    def was_short(self) -> bool:
        """The connection that ended was not silent, and ended soon."""
        return self._short > 0

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


def _identified(sse_id: bytes) -> list[bytes]:
    """The parts of an id that are the same on every connection; none if it is not that of an event.

    The order of its entries varies, and offsets differ between the upstream's data centres. While
    nothing has been delivered, an id has offsets only: a message of the service may have such an id.
    """
    timestamps = sorted(_TIMESTAMP.findall(sse_id))
    return timestamps or ([sse_id] if sse_id and b'"offset"' not in sse_id else [])


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
