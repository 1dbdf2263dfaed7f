from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.backoff import Backoff, retry_after_seconds

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("attempt", "jitter", "seconds"),
    [
        (1, 0.0, 0.25),
        (1, 0.5, 0.375),
        (2, 0.0, 0.5),
        (3, 0.0, 1.0),
        (7, 0.0, 16.0),
        (8, 0.0, 30.0),
        (10**9, 0.0, 30.0),
    ],
)
def test_pause(attempt: int, jitter: float, seconds: float) -> None:
    assert Backoff(0.5, 60.0).pause_seconds(attempt, jitter) == seconds


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_pause_stays_between_half_of_the_step_and_the_most(attempt: int, jitter: float) -> None:
    backoff = Backoff(0.5, 60.0)
    step = min(0.5 * 2 ** min(attempt - 1, 20), 60.0)
    assert step / 2 <= backoff.pause_seconds(attempt, jitter) <= step


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("\u0663", None),
        ("0", 0.0),
        (" 17 ", 17.0),
        ("901", 900.0),
        ("9" * 5_000, 900.0),
        ("Fri, 02 Jan 2026 03:04:35 GMT", 30.0),
        ("Fri, 02 Jan 2026 03:04:35 -0000", 30.0),
        ("Fri, 02 Jan 2026 04:04:35 +0100", 30.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 900.0),
        ("Fri, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Fri, 02 Jan 2026 99999999999999999999:00:00 GMT", None),
        ("Fri, 02 Jan 2026 03:04:35 +9999", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, NOW, 900.0) == seconds


@given(st.text() | st.from_regex(r"[0-9 ]*(Jan|Feb)? ?[0-9:+ -]*(GMT)?", fullmatch=True))
def test_retry_after_never_raises(header: str) -> None:
    seconds = retry_after_seconds(header, NOW, 900.0)
    assert seconds is None or 0 <= seconds <= 900
