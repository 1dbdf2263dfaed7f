"""Where a start would go on, in words: what `pleiades check` says of any destination's position."""

from __future__ import annotations

from collections.abc import Iterator

from pleiades.core.position import Checkpoint, ResumeCursor
from pleiades.core.units import iso_time, rough_duration
from pleiades.core.wire import compose_id
from pleiades.runtime.findings import Finding, note, ok, warning
from pleiades.runtime.logs import printable
from pleiades.runtime.settings import Settings

PART = "destination"
UPSTREAM_KEEPS_DAYS = 7
"""What Wikimedia promises is 7 days; some streams have 31."""
MAX_SHOWN_POSITION = 400
_DAY_MS = 86_400_000


def stored(
    settings: Settings, checkpoint: Checkpoint, stored_ms: int, place: str, now_ms: int
) -> Iterator[Finding]:
    """What a start makes of a stored position.

    Args:
        checkpoint: the position.
        stored_ms: when it was stored, ms since 1970.
        place: where it is stored, such as `in /srv/events`.
        now_ms: this machine's clock.
    """
    age = rough_duration((now_ms - stored_ms) / 1000)
    position = printable(compose_id(checkpoint.position), MAX_SHOWN_POSITION)
    if not settings.resume:
        yield note(
            PART,
            f"position stored {age} ago {place} is ignored, as --resume=false says: a start begins "
            f"{_since(settings, now_ms)}; it was {position}",
        )
        yield from _too_old(_since_ms(settings, now_ms), now_ms)
        return
    asked_ms = _asked_ms(settings, checkpoint, now_ms)
    unused = " (--since is for a start without one)" if settings.since_ms is not None else ""
    yield ok(
        PART,
        f"position stored {age} ago {place}: a start goes on from there, asking the upstream from "
        f"{iso_time(asked_ms)} on{unused}; it is {position}",
    )
    yield from _too_old(asked_ms, now_ms)


def nothing_stored(settings: Settings, place: str, now_ms: int) -> Iterator[Finding]:
    """What a start makes of no position."""
    yield ok(
        PART,
        f"no position is stored {place}: a start begins {_since(settings, now_ms)}",
    )
    yield from _too_old(_since_ms(settings, now_ms), now_ms)


def _asked_ms(settings: Settings, checkpoint: Checkpoint, now_ms: int) -> int:
    course = ResumeCursor(
        checkpoint.started_ms,
        int(settings.upstream.overlap_seconds * 1000),
        checkpoint.position,
    )
    clock_ms = max(checkpoint.clock_ms, now_ms)
    return min(
        (course.asked_from(source, clock_ms) for source in checkpoint.position),
        default=checkpoint.started_ms,
    )


def _since_ms(settings: Settings, now_ms: int) -> int:
    return now_ms if settings.since_ms is None else settings.since_ms


def _since(settings: Settings, now_ms: int) -> str:
    if settings.since_ms is None:
        return "with what comes from then on (--since)"
    age = rough_duration((now_ms - settings.since_ms) / 1000)
    return f"at {iso_time(settings.since_ms)}, {age} ago (--since)"


def _too_old(asked_ms: int, now_ms: int) -> Iterator[Finding]:
    if now_ms - asked_ms > UPSTREAM_KEEPS_DAYS * _DAY_MS:
        yield warning(
            PART,
            f"that is {rough_duration((now_ms - asked_ms) / 1000)} ago. Wikimedia keeps "
            f"{UPSTREAM_KEEPS_DAYS} days of most streams: what is older and gone can't be relayed; "
            "pleiades_upstream_gaps_total tells",
        )
