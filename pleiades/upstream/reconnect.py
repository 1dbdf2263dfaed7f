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
from collections.abc import Callable
from hashlib import blake2b
from typing import TypeVar

from pleiades.core.backoff import Backoff
from pleiades.core.framing import last_event_in
from pleiades.runtime.errors import Transient

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_BACKOFF = Backoff(first_seconds=0.5, max_seconds=60.0)
MIN_CONNECTION_SECONDS = 5.0
"""A connection that ends sooner is short."""
SHORT_BACKOFF = Backoff(first_seconds=0.05, max_seconds=1.0)
"""Between short connections that brought something new."""
DIGEST_BYTES = 16
_OFFSET = re.compile(rb'"offset"\s*:\s*-?[0-9]+')
MAX_RETRY_FIELD_MS = 60_000
"""The longest pause that a `retry:` field of the stream can ask for."""


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
        self._last = self._last_before = b""
        """The digests of the last event, and of the last one before this connection."""

    def opened(self, now: float) -> None:
        """A connection is about to be requested, at this monotonic time."""
        self._opened_at = now
        self.had_events = False
        self._last_before = self._last

    def received(self, blob: bytes) -> None:
        """Whole frames came."""
        if event := last_event_in(blob):
            self.had_events = True
            # In the upstream's other data centre the same event has another offset.
            self._last = blake2b(_OFFSET.sub(b"", event), digest_size=DIGEST_BYTES).digest()

    def asked_to_wait(self, retry_ms: int | None) -> None:
        """Note what a `retry` field of the stream asked for; None: there was none."""
        if retry_ms is not None:
            self._retry_ms = min(retry_ms, MAX_RETRY_FIELD_MS)

    def ended(self, now: float, is_silent: bool) -> bool:
        """Return whether the connection brought something new: repeated events end the same way."""
        is_short = not is_silent and now - self._opened_at < MIN_CONNECTION_SECONDS
        self._short = self._short + 1 if is_short else 0
        return self._last != self._last_before

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
