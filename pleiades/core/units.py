"""Durations as a person writes them, e.g. `500ms`, `2s`, `1.5m`, `12h`, `7d`; and ISO 8601 times.

Law: a number without a unit is refused, for a forgotten unit is a factor of a thousand; only zero
is the same in all of them.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_SECONDS_PER_UNIT = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}

# Both lengths are bounded: nobody means a longer number, and float() of one could give infinity.
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?(ms|s|m|h|d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_ROUGH = (("days", 86_400), ("h", 3_600), ("min", 60))
_ZERO = re.compile(r"0(?:\.0{1,9})?", re.ASCII)


def parse_duration(text: str) -> float:
    """A duration in seconds, never negative.

    Raises:
        ValueError: it is no decimal number followed by `ms`, `s`, `m`, `h` or `d`.
    """
    stripped = text.strip()
    if _ZERO.fullmatch(stripped):
        return 0.0
    match = _DURATION.fullmatch(stripped)
    if match is None:
        raise ValueError(
            f"{text[:40]!r} is no duration; write a number with a unit, one of "
            "ms, s, m, h and d, e.g. 500ms, 2s, 10m"
        )
    number, unit = match.groups()
    # By division, so that 500ms is exactly 0.5 and 1ms the float nearest to 0.001.
    return float(number) / 1000.0 if unit == "ms" else float(number) * _SECONDS_PER_UNIT[unit]


def parse_iso_time_ms(text: str) -> int:
    """An ISO 8601 time in ms since 1970, before it negative; UTC where it names no zone.

    Raises:
        ValueError: it is none.
        OverflowError: its zone puts it before the year 1 or after 9999.
    """
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    # Whole numbers: a float of seconds times 1000 can lie just below the millisecond.
    return (when - _EPOCH) // _MILLISECOND


def iso_time(milliseconds: int) -> str:
    """A time as a person reads it, e.g. `2026-01-31T12:00:00.000Z`.

    Args:
        milliseconds: since 1970; from the years 1 to 9999.
    """
    when = _EPOCH + milliseconds * _MILLISECOND
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plural(count: int, one: str, many: str = "") -> str:
    """`1 copy`, `1000 copies`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def rough_duration(seconds: float) -> str:
    """A duration as a person says it, rounded down: `3 s`, `12 min`, `5 h`, `9 days`."""
    for name, size in _ROUGH:
        # `100 min` says more than `1 h`.
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {name}"
    return f"{max(seconds, 0) // 1:.0f} s"
