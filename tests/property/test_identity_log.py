"""An identity log is read as it was written, or the damage is detected."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.checkpoint import Checkpoint
from pleiades.core.identity_log import DamagedLog, Group, Run, merged, read_groups
from pleiades.core.sse_id import UNKNOWN_SOURCE
from tests.property.test_position import checkpoints

sources = st.sampled_from([("a", 0), ("a", 1), ("b.c", 0), UNKNOWN_SOURCE])
fingerprints = st.binary(min_size=16, max_size=16)
runs = st.builds(Run, sources, st.integers(0, 50), st.lists(fingerprints).map(b"".join))
own = st.none() | st.dictionaries(st.text(), st.integers(0, 2**40), max_size=3)
groups = st.builds(Group, st.integers(0, 2**40), checkpoints, st.lists(runs, max_size=5), own)


def read(content: bytes) -> list[Group]:
    return list(read_groups(io.BytesIO(content).read))


@given(st.lists(groups, max_size=4))
def test_a_log_is_read_as_it_was_written(written: list[Group]) -> None:
    assert read(b"".join(group.encoded() for group in written)) == written


@given(groups, groups, st.data())
def test_a_log_that_is_cut_short_has_its_first_groups(
    first: Group, second: Group, data: st.DataObject
) -> None:
    encoded = second.encoded()
    cut = data.draw(st.integers(1, len(encoded) - 1))
    found = read_groups(io.BytesIO(first.encoded() + encoded[:cut]).read)
    assert next(found) == first
    with pytest.raises(DamagedLog):
        next(found)


@given(groups, st.data())
def test_a_changed_byte_is_recognised(group: Group, data: st.DataObject) -> None:
    encoded = bytearray(group.encoded())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedLog):
        read(bytes(encoded))


@given(st.binary(min_size=1))
def test_other_bytes_are_recognised(content: bytes) -> None:
    with pytest.raises(DamagedLog):
        read(content)


@given(
    st.lists(st.lists(runs, max_size=5), min_size=1, max_size=4),
    st.dictionaries(sources, st.integers(0, 50)),
    st.integers(0, 40),
)
def test_merged_groups_hold_what_must_be_remembered(
    of_commits: list[list[Run]], known_from: dict[tuple[str, int], int], max_entries: int
) -> None:
    checkpoint = Checkpoint({}, 0, 0, known_from=known_from)
    log = [Group(number, checkpoint, of_commit) for number, of_commit in enumerate(of_commits)]
    found = merged(log, max_entries)
    assert found[:2] == log[-1][:2]
    needed = [
        (run.source, run.fingerprints[at : at + 16])
        for group in log
        for run in group.runs
        for at in range(0, len(run.fingerprints), 16)
        if run.reached_ms >= known_from.get(run.source, 0)
    ]
    newest = needed[max(len(needed) - max_entries, 0) :]
    for source in {source for source, _ in needed}:
        kept = b"".join(run.fingerprints for run in found.runs if run.source == source)
        assert kept == b"".join(of for at, of in newest if at == source)
