from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.units import (
    iso_time,
    parse_duration,
    parse_iso_time_ms,
    plural,
    rough_duration,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("1ms", 0.001),
        ("2s", 2.0),
        ("1.5m", 90.0),
        ("10m", 600.0),
        ("12h", 43_200.0),
        ("7d", 604_800.0),
        ("0", 0.0),
        ("0.0", 0.0),
        ("0s", 0.0),
        (" 2 s ", 2.0),
    ],
)
def test_durations_with_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "10",
        "-1s",
        "+1s",
        "1e3s",
        "1,5s",
        ".5s",
        "1.s",
        "2 seconds",
        "2S",
        "nan",
        "infs",
        "1m30s",
        "1s\n2s",
        "٣s",
        "9999999999999s",
        "1__0s",
    ],
)
def test_everything_else_is_refused_and_says_why(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration; write a number with a unit"):
        parse_duration(text)


def test_the_message_does_not_repeat_endless_input() -> None:
    with pytest.raises(ValueError, match="no duration") as refused:
        parse_duration("x" * 10_000)
    assert len(str(refused.value)) < 200


@given(st.integers(0, 10**9), st.sampled_from(["ms", "s", "m", "h", "d"]))
def test_units_are_multiples_of_each_other(number: int, unit: str) -> None:
    factor = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}[unit]
    assert parse_duration(f"{number}{unit}") == pytest.approx(number * factor)


@given(st.text(max_size=20))
def test_any_text_gives_a_duration_or_a_value_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert 0 <= seconds < float("inf")


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1970-01-01", 0),
        ("2026-01-01T00:00:00.123Z", 1_767_225_600_123),
        ("2026-01-01T01:00:00+01:00", 1_767_225_600_000),
        ("2026-01-01T00:00:00", 1_767_225_600_000),
        ("1969-12-31T23:59:59.999Z", -1),
        # A float of seconds times 1000 gives …000.
        ("2004-06-15T12:34:56.001Z", 1_087_302_896_001),
    ],
)
def test_iso_times(text: str, milliseconds: int) -> None:
    assert parse_iso_time_ms(text) == milliseconds


@pytest.mark.parametrize("text", ["", "banana", "12", "2026-13-01", "2026-01-01T25:00"])
def test_no_iso_time(text: str) -> None:
    with pytest.raises(ValueError, match="isoformat|must be in"):
        parse_iso_time_ms(text)


@given(st.integers(-62_135_596_800_000, 253_402_300_799_999))
def test_a_time_is_read_back_as_it_was_written(milliseconds: int) -> None:
    assert parse_iso_time_ms(iso_time(milliseconds)) == milliseconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (0.9, "0 s"),
        (119.9, "119 s"),
        (120, "2 min"),
        (7_199, "119 min"),
        (7_200, "2 h"),
        (172_799, "47 h"),
        (172_800, "2 days"),
        (31 * 86_400, "31 days"),
    ],
)
def test_a_duration_is_said_roughly(seconds: float, text: str) -> None:
    assert rough_duration(seconds) == text


def test_plural() -> None:
    assert plural(0, "restart") == "0 restarts"
    assert plural(1, "copy", "copies") == "1 copy"
    assert plural(1000, "copy", "copies") == "1000 copies"
