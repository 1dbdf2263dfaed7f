"""When the relay reports that it falls behind."""

from __future__ import annotations

from pleiades.core.falling_behind import PERIOD_SECONDS, FallingBehind


def said(lag_per_second: float, unread_bytes: int, minutes: int = 3) -> int:
    watch = FallingBehind()
    seconds = int(minutes * PERIOD_SECONDS)
    return sum(
        watch.observe(float(now), 10 + now * lag_per_second, unread_bytes)
        for now in range(seconds + 1)
    )


def test_it_falls_behind_when_the_lag_grows_and_bytes_wait() -> None:
    assert said(1.0, 1000) == 3, "once a period"
    assert said(0.2, 1) == 3


def test_it_does_not_when_it_keeps_up_catches_up_or_has_nothing_to_read() -> None:
    assert said(0.0, 1000) == 0
    assert said(-1.0, 1000) == 0, "history: many bytes wait, but the lag shrinks"
    assert said(1.0, 0) == 0, "the upstream is silent"


def test_nothing_to_read_once_begins_the_period_anew() -> None:
    watch = FallingBehind()
    assert not any(watch.observe(float(now), float(now), 1) for now in range(50))
    assert not watch.observe(50.0, 50.0, 0)
    assert not any(watch.observe(float(now), float(now), 1) for now in range(51, 111))
    assert watch.observe(111.0, 111.0, 1)


def test_an_idle_stream_that_is_looked_at_once_a_connection_is_not_behind() -> None:
    """The events that each connection repeats wait briefly to be read."""
    watch = FallingBehind()
    assert not any(watch.observe(now, now, 1000) for now in (0.0, 0.5, 60.5, 61.0, 121.0, 181.0))
