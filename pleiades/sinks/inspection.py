"""Findings about a stored position, which all destinations share."""

from __future__ import annotations

from collections.abc import Iterator

from pleiades.config.settings import Settings
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.resume_cursor import ResumeCursor
from pleiades.core.sse_id import compose_id
from pleiades.core.units import iso_time, rough_duration
from pleiades.runtime.findings import Finding, note, now_ms, ok, warning
from pleiades.runtime.logs import printable

UPSTREAM_KEEPS_DAYS = 7
"""Wikimedia promises 7 days; some streams have 31."""
MAX_SHOWN_POSITION = 400
_DAY_MS = 86_400_000


def stored_position(
    settings: Settings, checkpoint: Checkpoint, stored_ms: int, place: str
) -> Iterator[Finding]:
    """Yield the findings about a start from a stored position.

    Args:
        checkpoint: the position.
        stored_ms: when it was stored, ms since 1970.
        place: where it is stored, such as `in /srv/events`.
    """
    stored = f"position stored {_ago(stored_ms)} {place}"
    position = "empty: no event has come yet"
    if checkpoint.position:
        position = printable(compose_id(checkpoint.position), MAX_SHOWN_POSITION)
    if not settings.resume:
        begin, begin_ms = _without_position(settings)
        yield note(
            f"--resume=false ignores the {stored}: a start begins {begin}; it was {position}"
        )
        yield from _too_old(begin_ms)
        return
    overlap_ms = int(settings.upstream.overlap_seconds * 1000)
    cursor = ResumeCursor(checkpoint.started_ms, overlap_ms, checkpoint.position)
    clock_ms = max(checkpoint.clock_ms, now_ms())
    asked_ms = min(
        (cursor.asked_from(source, clock_ms) for source in checkpoint.position),
        default=checkpoint.started_ms,
    )
    unused = " (--since is for a start without one)" if settings.since_ms is not None else ""
    yield ok(
        f"{stored}: a start goes on from there, asking the upstream from {iso_time(asked_ms)} "
        f"on{unused}; it is {position}"
    )
    yield from _too_old(asked_ms)


def no_position(settings: Settings, place: str) -> Iterator[Finding]:
    """Yield the findings about a start without a stored position."""
    begin, begin_ms = _without_position(settings)
    yield ok(f"no position is stored {place}: a start begins {begin}")
    yield from _too_old(begin_ms)


def _without_position(settings: Settings) -> tuple[str, int]:
    """In words, and in ms since 1970."""
    since_ms = settings.since_ms
    if since_ms is None:
        overlap_seconds = settings.upstream.overlap_seconds
        words = f"with the events of the last {overlap_seconds:g} s before it (--since=now)"
        return words, now_ms() - int(overlap_seconds * 1000)
    return f"at {iso_time(since_ms)}, {_ago(since_ms)} (--since)", since_ms


def _too_old(asked_ms: int) -> Iterator[Finding]:
    if now_ms() - asked_ms > UPSTREAM_KEEPS_DAYS * _DAY_MS:
        yield warning(
            f"that is {_ago(asked_ms)}. Wikimedia keeps {UPSTREAM_KEEPS_DAYS} days of most streams: "
            "older events that are gone can't be relayed; pleiades_upstream_gaps_total counts the gaps"
        )


def _ago(then_ms: int) -> str:
    return f"{rough_duration((now_ms() - then_ms) / 1000)} ago"
