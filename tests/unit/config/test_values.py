"""Parsing of single values."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.config import values

NOW = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("now", None),
        ("", None),
        ("1767355200000", 1_767_355_200_000),
        ("-2h", int(NOW.timestamp() * 1000) - 7_200_000),
        ("2026-01-01", 1_767_225_600_000),
        ("2026-01-01T00:00:00", 1_767_225_600_000),
        ("2026-01-01T00:00:00Z", 1_767_225_600_000),
        ("2026-01-01T01:00:00+01:00", 1_767_225_600_000),
        ("2026-01-01T00:00:00.123Z", 1_767_225_600_123),
        ("1970-01-01", 0),
    ],
)
def test_since(text: str, milliseconds: int | None) -> None:
    assert values.since(text, NOW) == milliseconds


@pytest.mark.parametrize("text", ["-2", "-", "-2y", "1969-01-01", "99999999999999999999", "²"])
def test_since_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="no time|no duration|before 1970|in the future"):
        values.since(text, NOW)


@given(st.text())
def test_foreign_text_raises_nothing_but_value_error(text: str) -> None:
    readers: list[Callable[[str], object]] = [
        values.boolean,
        values.duration().read,
        values.integer(0, 9).read,
        values.choice("a").read,
        values.path,
        values.streams,
        values.base_url,
        values.contact,
        lambda value: values.since(value, NOW),
    ]
    for read in readers:
        try:
            read(text)
        except ValueError as error:
            assert str(error)


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_an_accepted_contact_can_not_break_the_header(text: str) -> None:
    try:
        accepted = values.contact(text)
    except ValueError:
        return
    assert accepted.isprintable()
    assert not set(accepted) & set("()\\\r\n")
