from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.range import Bound, Range
from pleiades.core.sse_id import UNKNOWN_SOURCE, TopicPartition
from pleiades.sinks.kafka.records import Published
from pleiades.sinks.kafka.skip_existing import SLACK_MS, Existing, since_ms
from tests.unit.sinks.kafka.ids import sse_id

A, B = ("eqiad.x", 0), ("codfw.x", 0)
SPAN = Range(Bound(100, {B: 50}), Bound(200))


@given(st.lists(st.lists(st.text(max_size=5))), st.text(max_size=5))
def test_it_holds_what_was_added_and_nothing_else(batches: list[list[str]], other: str) -> None:
    existing = Existing()
    model: set[str] = set()
    for batch in batches:
        existing.add(batch)
        model.update(batch)
    assert len(existing) == len(model)
    assert all(identity in existing for identity in model)
    assert (other in existing) == (other in model)
    existing.close()


def record(source: TopicPartition, *reached: tuple[TopicPartition, int | None]) -> Published:
    return Published("id", source, "x", sse_id(*reached))


@pytest.mark.parametrize(
    ("published", "inside"),
    [
        (record(A, (A, 101), (B, 999)), True),
        (record(A, (A, 100), (B, 150)), False),
        (record(A, (A, 200)), True),
        (record(A, (A, 201)), False),
        (record(B, (A, 150), (B, 51)), True),
        (record(B, (A, 150), (B, 50)), False),
        (record(UNKNOWN_SOURCE, (A, 999), (B, 999)), True),
        (record(A), True),
        (record(A, (A, None), (B, 999)), True),
    ],
)
def test_of_the_range_is_what_its_own_time_says_and_what_it_leaves_open(
    published: Published, inside: bool
) -> None:
    assert published.may_be_of(SPAN) == inside


def test_records_are_looked_for_from_before_the_earliest_begin() -> None:
    assert since_ms(SPAN) == 0
    late = Range(Bound(9 * SLACK_MS, {B: 8 * SLACK_MS}), Bound(10 * SLACK_MS))
    assert since_ms(late) == 7 * SLACK_MS
