from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pleiades.range_reader import RateLimiter

rates = st.floats(0.5, 1e6)
reads = st.lists(st.tuples(st.integers(0, 500), st.floats(0, 3)), min_size=1, max_size=50)


@given(rates, reads)
def test_never_faster_than_promised(
    per_second: float, events_and_gaps: list[tuple[int, float]]
) -> None:
    limiter = RateLimiter(per_second)
    now = 0.0
    passed: list[tuple[float, int]] = []
    for events, gap in events_and_gaps:
        now += gap
        now += limiter.pause_seconds(events, now)
        passed.append((now, events))
    for begin, (start, _) in enumerate(passed):
        total = 0
        for at, events in passed[begin:]:
            # The first batch may pass at once; after that the rate must not exceed the promise.
            assert total <= (at - start) * per_second * (1 + 1e-9) + 1e-6
            total += events


@given(rates, reads)
def test_no_slower_than_promised(
    per_second: float, events_and_gaps: list[tuple[int, float]]
) -> None:
    limiter = RateLimiter(per_second)
    now = sum(
        limiter.pause_seconds(events, 0.0) if not place else 0.0
        for place, (events, _) in enumerate(events_and_gaps)
    )
    total = events_and_gaps[0][0]
    for events, _ in events_and_gaps[1:]:
        now += limiter.pause_seconds(events, now)
        assert now <= total / per_second * (1 + 1e-9) + 1e-6
        total += events


def test_without_a_rate_there_is_no_wait() -> None:
    limiter = RateLimiter(0)
    assert [limiter.pause_seconds(10**9, 0.0) for _ in range(3)] == [0.0] * 3
