from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pleiades.core.checkpoint import (
    Checkpoint,
    ReplayProgress,
    UnreadableCheckpoint,
    decode_checkpoint,
)
from pleiades.core.event import Batch
from pleiades.core.position import MAX_SOURCES, Position, join
from pleiades.core.resume_cursor import MAX_LAST_EVENT_ID_BYTES, ResumeCursor
from pleiades.core.sse_id import MAX_TIMESTAMP_MS, parse_id

few_sources = st.tuples(st.sampled_from(["a", "b", "c.d"]), st.integers(0, 1))
few_positions = st.dictionaries(few_sources, st.integers(0, 5))
times = st.integers(0, MAX_TIMESTAMP_MS)
sources = st.tuples(
    st.from_regex(r"[a-zA-Z0-9._-]{1,20}", fullmatch=True), st.integers(0, 2**31 - 1)
)


@st.composite
def all_checkpoints(draw: st.DrawFn) -> Checkpoint:
    position = draw(st.dictionaries(sources, times, max_size=8))
    counts = st.fixed_dictionaries({source: st.integers(0, 2**40) for source in position})
    finished = (
        st.frozensets(st.sampled_from(sorted(position))) if position else st.just(frozenset())
    )
    done = draw(st.none() | st.builds(ReplayProgress, counts, finished, st.booleans()))
    return Checkpoint(position, draw(times), draw(times), done)


checkpoints = all_checkpoints()


@given(few_positions, few_positions)
def test_join_is_commutative(left: Position, right: Position) -> None:
    assert join(left, right) == join(right, left)


@given(few_positions, few_positions, few_positions)
def test_join_is_associative(one: Position, two: Position, three: Position) -> None:
    assert join(join(one, two), three) == join(one, join(two, three))


@given(few_positions)
def test_join_is_idempotent_and_nothing_is_its_bottom(position: Position) -> None:
    assert join(position, position) == position
    assert join(position, {}) == position
    assert join({}, position) == position


@given(few_positions, few_positions)
def test_join_is_the_least_that_holds_both(left: Position, right: Position) -> None:
    joined = join(left, right)
    assert joined.keys() == left.keys() | right.keys()
    for source, reached in joined.items():
        assert reached == max(left.get(source, -1), right.get(source, -1))


@given(few_positions, few_positions)
def test_join_leaves_its_arguments_alone(left: Position, right: Position) -> None:
    before = dict(left), dict(right)
    join(left, right)
    assert (left, right) == before


@given(checkpoints)
def test_checkpoints_are_read_back(checkpoint: Checkpoint) -> None:
    assert decode_checkpoint(checkpoint.encoded()) == checkpoint


@given(checkpoints, st.data())
def test_a_cut_checkpoint_is_unreadable(checkpoint: Checkpoint, draw: st.DataObject) -> None:
    encoded = checkpoint.encoded()
    cut = encoded[: draw.draw(st.integers(0, len(encoded) - 1))]
    with pytest.raises(UnreadableCheckpoint):
        decode_checkpoint(cut)


# The fuzz target `checkpoint` decodes arbitrary and damaged bytes.


@pytest.mark.parametrize("version", [b"true", b"1.0", b'"1"', b"0", b"2", b"null", b"[[1]]"])
def test_another_version_is_unreadable(version: bytes) -> None:
    encoded = Checkpoint({("a", 0): 5}, 1, 2).encoded()
    assert encoded.count(b'"version":1,') == 1
    with pytest.raises(UnreadableCheckpoint):
        decode_checkpoint(encoded.replace(b'"version":1,', b'"version":' + version + b","))


@given(checkpoints, st.dictionaries(sources, times, max_size=8), times, times)
def test_a_checkpoint_only_advances(
    checkpoint: Checkpoint, timestamps_ms: Position, started_ms: int, clock_ms: int
) -> None:
    advanced = checkpoint.advanced(timestamps_ms, started_ms, clock_ms)
    assert advanced.position == join(checkpoint.position, timestamps_ms)
    assert advanced.started_ms == min(checkpoint.started_ms, started_ms)
    assert advanced.clock_ms == max(checkpoint.clock_ms, clock_ms)


@pytest.mark.parametrize("known", [0, 10, MAX_SOURCES, MAX_SOURCES + 10])
def test_invented_topics_are_bounded_and_known_ones_stay(known: int) -> None:
    position = {(f"known-{number}", 0): 5 for number in range(known)}
    invented = {(f"invented-{number}", 0): 5 for number in range(MAX_SOURCES + 500)}
    checkpoint = Checkpoint(position, 0, 0).advanced(invented | dict.fromkeys(position, 9), 0, 0)
    assert len(checkpoint.position) == max(MAX_SOURCES, known)
    assert all(checkpoint.position[source] == 9 for source in position)


names = st.tuples(
    st.text("abcdefgh.", min_size=1, max_size=249),
    st.integers(0, 2**31 - 1),
)


@given(
    st.dictionaries(names, st.sampled_from([0, 5, 10**12]), max_size=300),
    st.lists(st.dictionaries(names, st.sampled_from([0, 0, 7, MAX_TIMESTAMP_MS]), max_size=100)),
    st.sampled_from([0, 10**12, MAX_TIMESTAMP_MS]),
)
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_a_request_is_never_too_long_and_what_has_delivered_comes_first(
    stored: Position, came: list[Position], started_ms: int
) -> None:
    course = ResumeCursor(started_ms, 1)
    course.resume(stored)
    for delivered in came:
        course.observe(delivered)
    asked = course.last_event_id(MAX_TIMESTAMP_MS)
    assert len(asked or "") <= MAX_LAST_EVENT_ID_BYTES
    requested = course.request(MAX_TIMESTAMP_MS)
    delivered_some = {source for each in (stored, *came) for source in each if each[source]}
    assert delivered_some - requested.keys() == course.crowded_out, "told of"
    assert course.crowded_out.isdisjoint(requested)


def test_as_many_topics_as_a_stream_has_fit() -> None:
    position = {(f"eqiad.mediawiki.page-properties-chan-{n:03}", 0): 10**12 for n in range(128)}
    course = ResumeCursor(0, 1)
    course.resume(position)
    course.observe({("eqiad.one_more", 0): 0, ("eqiad.another", 0): 0})
    assert course.request(10**13).keys() >= position.keys()
    assert not course.crowded_out


def test_what_has_delivered_takes_the_place_of_what_has_not() -> None:
    course = ResumeCursor(0, 1)
    idle = {(f"codfw.{number:04}" + "x" * 200, 0): 0 for number in range(100)}
    course.observe(idle)
    before = list(course.position)
    assert 0 < len(before) < 100, "those that fit"
    course.observe({("eqiad.new" + "y" * 200, 0): 5})
    assert course.position[("eqiad.new" + "y" * 200, 0)] == 5
    assert list(course.position)[:-1] == before[:-1], "only the last one makes room"
    assert not course.crowded_out


def test_a_topic_that_is_left_out_keeps_its_position() -> None:
    course = ResumeCursor(100, 10, {("a", 0): 500, ("a", 1): 0, ("b", 0): 700})
    course.left_out = {"a"}
    assert course.request(1000) == {("b", 0): 690}
    course.left_out = set()
    assert course.request(1000) == {("a", 0): 490, ("a", 1): 100, ("b", 0): 690}


@given(times, times, times, times, st.integers(1, 10**6))
def test_a_floor_is_never_undercut_and_never_skips(
    started_ms: int, reached: int, floor: int, clock_ms: int, overlap_ms: int
) -> None:
    source = ("a", 0)
    without = ResumeCursor(started_ms, overlap_ms, {source: reached}).asked_from(source, clock_ms)
    course = ResumeCursor(started_ms, overlap_ms, {source: reached}, {source: floor})
    asked = course.asked_from(source, clock_ms)
    if not reached:
        assert asked == started_ms, "nothing of it was published"
        return
    assert asked >= min(floor, reached - 1)
    assert asked <= reached - 1, "a delivered event has this date"
    assert asked == without or asked == max(without, min(floor, reached - 1))


@given(
    st.dictionaries(sources, times, min_size=1, max_size=5),
    times,
    st.integers(1, 10**6),
    times,
)
def test_what_is_asked_for_lies_at_or_before_a_delivered_event(
    position: Position, started_ms: int, overlap_ms: int, clock_ms: int
) -> None:
    course = ResumeCursor(started_ms, overlap_ms, position)
    asked = course.last_event_id(clock_ms)
    assert asked is not None
    timestamps = dict(parse_id(asked.encode()))
    assert timestamps.keys() == position.keys()
    for source, reached in position.items():
        from_ms = timestamps[source]
        assert from_ms is not None
        if not reached:
            assert from_ms == started_ms
        else:
            # The event itself is dated one before its id's timestamp.
            assert from_ms <= reached - 1
            assert from_ms >= min(reached, clock_ms) - overlap_ms
            assert from_ms >= started_ms or reached <= started_ms


def test_the_event_that_is_dated_just_before_the_start_is_asked_for() -> None:
    # Its id says 1000. A request from 1000 on would skip the next event with the same timestamp.
    course = ResumeCursor(1000, 60, {("a", 0): 1000})
    assert course.asked_from(("a", 0), 5000) == 940
    assert ResumeCursor(1000, 60, {("a", 0): 1001}).asked_from(("a", 0), 5000) == 1000


def test_nothing_known_asks_for_no_id() -> None:
    assert ResumeCursor(1000, 60).last_event_id(5000) is None


@given(st.lists(st.lists(st.tuples(few_sources, st.none() | st.integers(0, 5)))))
def test_a_course_and_a_checkpoint_come_to_the_same(
    ids: list[list[tuple[tuple[str, int], int | None]]],
) -> None:
    course, checkpoint = ResumeCursor(0, 1), Checkpoint({}, 0, 0)
    for assignments in ids:
        for source, timestamp_ms in assignments:
            course.observe({source: timestamp_ms or 0})
            checkpoint = checkpoint.advanced({source: timestamp_ms or 0}, 0, 0)
    assert course.position == checkpoint.position


@given(
    st.lists(st.tuples(few_sources, st.integers(0, 5), st.booleans(), st.booleans()), max_size=9)
)
def test_what_a_replay_has_done_adds_up(
    batches: list[tuple[tuple[str, int], int, bool, bool]],
) -> None:
    done = ReplayProgress()
    for source, published, finished, gap in batches:
        batch = Batch(0, 1, [], {}, 0, 0, source, finished, gap)
        done = done.after(batch, published)
    assert done.total == sum(published for _, published, _, _ in batches)
    assert done.finished == {source for source, _, finished, _ in batches if finished}
    assert done.incomplete == any(gap for *_, gap in batches)
    for source in list(done.published):
        assert done.less(source).total == done.total - 1
    assert done.less(("unknown", 0)) == done


def test_a_batch_of_all_topics_is_none_of_a_replay() -> None:
    assert ReplayProgress().after(Batch(0, 1, [], {}, 0, 0), 5) == ReplayProgress()
