"""Whatever the clock does, and whenever it is restarted: all that can be repeated is read back."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.position import Checkpoint
from pleiades.core.span import Span

SOURCE = ("eqiad.x", 0)
WINDOW_MS = 100
START_MS = 100_000


class Step(NamedTuple):
    """Publish something and commit it."""

    clock_ms: int
    """How far the clock goes before, back too."""
    delivered_ms: int
    """How far the upstream's timestamps go."""
    restarts: bool


steps = st.lists(
    st.builds(Step, st.integers(-300, 300), st.integers(0, 300), st.booleans()), max_size=40
)


class Record(NamedTuple):
    """As it stands in the topic, and what is true of it."""

    published_ms: int
    position_ms: int


@given(steps)
def test_no_record_that_can_be_repeated_is_left_out_or_held_for_too_old(taken: list[Step]) -> None:
    now_ms = position_ms = START_MS
    clock_ms = 0
    span = Span(now_ms)
    records: list[Record] = []
    for step in taken:
        now_ms += step.clock_ms
        position_ms += step.delivered_ms
        clock_ms = max(clock_ms, now_ms)
        span = span.publishing(now_ms)
        records.append(Record(now_ms, position_ms))
        checkpoint = Checkpoint({SOURCE: position_ms}, 0, clock_ms)
        span = span.committed(checkpoint, WINDOW_MS)
        if step.restarts:
            # What is stored of it.
            span = Span(span.since_ms, span.mark)
        first = next(n for n, record in enumerate(records) if record.published_ms >= span.since_ms)
        for record in records[:first]:
            assert record.position_ms < min(position_ms, clock_ms) - WINDOW_MS, "left out"
        for record in records[first:]:
            reached_ms = span.reached(SOURCE, record.published_ms, checkpoint.position)
            assert reached_ms >= record.position_ms, "held for too old"
