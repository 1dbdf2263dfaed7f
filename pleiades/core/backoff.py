"""Pauses that grow, with jitter. Law: never more than `max_seconds`, never below half of the step,
so that many instances that fail together don't return together.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential growth from `first_seconds` to `max_seconds`, by a factor of two."""

    first_seconds: float
    max_seconds: float

    def pause_seconds(self, attempt: int, jitter: float) -> float:
        """The pause after the given failed attempt (1 is the first); `jitter` is in [0, 1)."""
        step = min(self.first_seconds * 2.0 ** min(attempt - 1, 30), self.max_seconds)
        return step * (0.5 + 0.5 * jitter)


def retry_after_seconds(header: str | None, now: datetime, max_seconds: float) -> float | None:
    """A `Retry-After` header as seconds from now (RFC 9110 §10.2.3: seconds or an HTTP date).

    Returns None where there is none or it can't be read; never more than `max_seconds`.
    """
    if header is None:
        return None
    header = header.strip()
    if header.isascii() and header.isdigit():
        return min(float(header[:9]), max_seconds)
    try:
        when = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return min(max((when - now).total_seconds(), 0.0), max_seconds)
