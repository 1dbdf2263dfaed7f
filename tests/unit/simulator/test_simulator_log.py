from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.simulator.log import (
    EARLIEST,
    LATEST,
    Cluster,
    Fresh,
    PartitionLog,
    UpstreamLog,
    first_offset,
    home_of,
)

EQIAD = ("eqiad.mediawiki.recentchange", 0)
CODFW = ("codfw.mediawiki.recentchange", 0)
# The example from the description of upstream's resumption: timestamps at offsets 0 to 7.
EXAMPLE = (0, 5, 5, 5, 9, 7, 8, 12)


def fresh(timestamp_ms: int, payload: bytes = b"x", source: tuple[str, int] = EQIAD) -> Fresh:
    return Fresh(0.0, source, timestamp_ms, payload, 0, "identity", canary=False)


def partition_log(timestamps: list[int] | tuple[int, ...], segment_events: int = 3) -> PartitionLog:
    log = PartitionLog(segment_events)
    for timestamp_ms in timestamps:
        log.append(fresh(timestamp_ms), 0.0)
    return log


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        (-1, 0),
        (0, 0),
        (1, 1),
        (5, 1),
        (6, 4),  # resumed with the id of offset 1: 2 and 3 are skipped
        (9, 4),  # with that of offset 6: 4, 5 and 6 are repeated
        (10, 7),  # with that of offset 4: 5 and 6 are skipped
        (12, 7),
        (13, None),
    ],
)
def test_a_timestamp_is_the_earliest_offset_at_or_after_it(asked: int, index: int | None) -> None:
    assert partition_log(EXAMPLE).find(asked) == index


@given(
    st.lists(st.integers(0, 20), max_size=40), st.integers(-1, 21), st.integers(1, 5),
    st.integers(0, 5),
)  # fmt: skip
def test_find_agrees_with_looking_at_every_event(
    timestamps: list[int], asked: int, segment_events: int, expirations: int
) -> None:
    log = partition_log(timestamps, segment_events)
    for _ in range(expirations):
        log.expire_oldest()
    expected = next(
        (i for i, t in enumerate(timestamps) if i >= log.start and t >= asked),
        None,
    )
    assert log.find(asked) == expected


@given(st.lists(st.floats(0, 10), max_size=30), st.floats(-1, 11), st.integers(1, 5))
def test_end_as_of_counts_what_was_appended_until_then(
    moments: list[float], asked: float, segment_events: int
) -> None:
    log = PartitionLog(segment_events)
    for moment in sorted(moments):
        log.append(fresh(1), moment)
    assert log.end_as_of(asked) == sum(moment <= asked for moment in moments)


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 3), st.data())
def test_a_slice_holds_consecutive_events(
    count: int, segment_events: int, expirations: int, data: st.DataObject
) -> None:
    log = PartitionLog(segment_events)
    for number in range(count):
        log.append(fresh(number, b"%d" % number), 0.0)
    for _ in range(expirations):
        log.expire_oldest()
    start = data.draw(st.integers(log.start, count - 1))
    stop = data.draw(st.integers(start + 1, count + 3))
    payloads, _, times = log.slice(start, stop)
    taken = len(payloads)
    assert 1 <= taken <= stop - start
    assert payloads == [b"%d" % n for n in range(start, start + taken)]
    assert list(times) == list(range(start, start + taken))


def test_slices_outside_of_the_log_are_refused() -> None:
    log = partition_log(list(range(9)))
    log.expire_oldest()
    for index in (2, 9, -1):
        with pytest.raises(IndexError):
            log.slice(index, 10)


def test_the_oldest_events_expire_when_the_data_exceed_the_retention() -> None:
    log = UpstreamLog([EQIAD, CODFW], retention_bytes=1000, segment_events=4)
    for number in range(100):
        log.append(fresh(number, b"x" * 50, EQIAD if number % 5 else CODFW), 0.0)
    kept = sum(len(p.slice(i, i + 1)[0][0]) for p in log.partitions.values()
               for i in range(p.start, p.end))  # fmt: skip
    # One segment per topic-partition is being written, and is never dropped.
    assert kept <= 1000 + 2 * 4 * 50
    assert log.partitions[EQIAD].start > 0
    assert log.partitions[EQIAD].end == 80
    # Expired events leave no trace.
    assert log.partitions[EQIAD].find(0) == log.partitions[EQIAD].start


def cluster_of(
    timestamps: tuple[int, ...] = EXAMPLE, data_centre: str = "eqiad", lag: float = 0.0
) -> Cluster:
    log = UpstreamLog([EQIAD, CODFW], 10**9, segment_events=3)
    for second, timestamp_ms in enumerate(timestamps):
        log.append(fresh(timestamp_ms), float(second))
    return Cluster(log, data_centre, 7, lag)


def test_offsets_of_the_two_clusters_differ_by_a_constant() -> None:
    here, there = cluster_of(), cluster_of(data_centre="codfw")
    distances = {
        here.resolve_timestamp(EQIAD, t, 99.0) - there.resolve_timestamp(EQIAD, t, 99.0)
        for t in (0, 5, 9, 12)
    }
    assert len(distances) == 1
    assert distances != {0}
    assert first_offset(7, "eqiad", EQIAD) == here.bases[EQIAD]
    assert first_offset(8, "eqiad", EQIAD) != here.bases[EQIAD]


def test_past_the_end_is_latest() -> None:
    cluster = cluster_of()
    assert cluster.resolve_timestamp(EQIAD, 13, 99.0) == LATEST
    assert cluster.resolve_timestamp(CODFW, 0, 99.0) == LATEST


def test_offsets_are_taken_as_they_are_and_else_mean_the_end() -> None:
    cluster = cluster_of()
    base = cluster.bases[EQIAD]
    assert cluster.index_of(EQIAD, base + 3, 99.0) == 3
    assert cluster.index_of(EQIAD, base + 8, 99.0) == 8
    assert cluster.index_of(EQIAD, base + 9, 99.0) == 8
    assert cluster.index_of(EQIAD, base - 1, 99.0) == 8
    assert cluster.index_of(EQIAD, LATEST, 99.0) == 8
    assert cluster.index_of(EQIAD, EARLIEST, 99.0) == 0


def test_the_mirror_shows_the_other_data_centres_topics_late() -> None:
    home, mirror = cluster_of(lag=2.0), cluster_of(data_centre="codfw", lag=2.0)
    assert home.end(EQIAD, 7.0) == 8
    assert mirror.end(EQIAD, 7.0) == 6
    assert mirror.end(EQIAD, 9.0) == 8
    # The only event at or after 10 is not visible yet, so the time is past the end.
    assert home.resolve_timestamp(EQIAD, 10, 7.0) == home.bases[EQIAD] + 7
    assert mirror.resolve_timestamp(EQIAD, 10, 7.0) == LATEST
    assert mirror.index_of(EQIAD, LATEST, 7.0) == 6


def test_a_topic_is_at_home_where_its_name_says() -> None:
    assert home_of(EQIAD) == "eqiad"
    assert home_of(CODFW) == "codfw"
    assert home_of(("nowhere.else", 0)) == "eqiad"
