"""Repeats are found wherever they can be, and only those."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.sinks.archive.duplicates import Span, Sweep, passes_for


def found_in(
    segments: list[tuple[Span, list[str]]], passes: int = 1, batch: int = 100
) -> Counter[tuple[str, str, str]]:
    """(segment, earlier segment, identity) of each repeat."""
    found: Counter[tuple[str, str, str]] = Counter()
    for number in range(passes):
        sweep = Sweep(number, passes)
        for span, identities in segments:
            sweep.begin(span)
            for at in range(0, len(identities), batch):
                for repeats in sweep.add(identities[at : at + batch]):
                    found.update(
                        (span.name, repeats.name, identity) for identity in repeats.identities
                    )
    return found


def segment(name: str, first: int, last: int, *identities: str) -> tuple[Span, list[str]]:
    return Span(name, first, last, len(identities)), list(identities)


@pytest.mark.parametrize("batch", [1, 2, 100])
@pytest.mark.parametrize("passes", [1, 3])
def test_a_repeat_in_an_overlapping_segment(passes: int, batch: int) -> None:
    segments = [segment("a", 0, 10, "1", "2", "3"), segment("b", 10, 20, "3", "4", "1")]
    assert found_in(segments, passes, batch) == {("b", "a", "3"): 1, ("b", "a", "1"): 1}


@pytest.mark.parametrize("batch", [1, 2, 100])
@pytest.mark.parametrize("passes", [1, 3])
def test_a_repeat_in_the_same_segment(passes: int, batch: int) -> None:
    segments = [segment("a", 0, 10, "1", "2", "1", "3", "1")]
    assert found_in(segments, passes, batch) == {("a", "a", "1"): 2}


def test_a_long_segment_is_held_until_its_end() -> None:
    segments = [
        segment("long", 0, 100, "1"),
        *(segment(f"short-{n}", n, n + 1, f"s{n}") for n in range(10, 90, 10)),
        segment("last", 100, 110, "1"),
        segment("later", 111, 120, "1"),
    ]
    # `later` overlaps with neither: what it has is no repeat of theirs, or the manifest is wrong.
    assert found_in(segments) == {("last", "long", "1"): 1}


def test_an_event_counts_once_however_many_have_it() -> None:
    segments = [
        segment(name, 0, 10, "1", *more) for name, more in zip("abc", ["", "x", ""], strict=True)
    ]
    segments[1][1].append("1")
    assert found_in(segments) == {("b", "a", "1"): 2, ("c", "a", "1"): 1}


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.lists(st.integers(0, 20), min_size=1, max_size=8)),
        max_size=8,
    ),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_all_repeats_are_found(drawn: list[tuple[int, list[int]]], passes: int, batch: int) -> None:
    """An identity is its timestamp here, as the law says."""
    segments = []
    for number, (_, times) in enumerate(sorted(drawn, key=lambda each: min(each[1]))):
        identities = [str(time) for time in times]
        segments.append((Span(str(number), min(times), max(times), len(times)), identities))
    seen: set[str] = set()
    repeated = set()
    for span, identities in segments:
        for identity in identities:
            if identity in seen:
                repeated.add((span.name, identity))
            seen.add(identity)
    found = found_in(segments, passes, batch)
    assert {(name, identity) for name, _, identity in found} == repeated
    distinct = {identity for _, identities in segments for identity in identities}
    assert found.total() == sum(len(identities) for _, identities in segments) - len(distinct)


def test_as_many_passes_as_memory_allows() -> None:
    apart = [Span("a", 0, 9, 60), Span("b", 10, 19, 60), Span("c", 20, 29, 60)]
    assert passes_for(apart, 100) == 1
    together = [Span("a", 0, 10, 60), Span("b", 10, 20, 60), Span("c", 10, 29, 60)]
    assert passes_for(together, 100) == 2
    assert passes_for(together, 59) == 4
    assert passes_for([], 100) == 1
