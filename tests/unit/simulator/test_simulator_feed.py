from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.simulator.feed import BATCH_EVENTS, Feed
from pleiades.simulator.log import Cluster, Fresh, UpstreamLog
from pleiades.simulator.request import Asked, asked_for

EQIAD = ("eqiad.mediawiki.recentchange", 0)
CODFW = ("codfw.mediawiki.recentchange", 0)
EXAMPLE = (0, 5, 5, 5, 9, 7, 8, 12)


class Upstream:
    """A log of events whose data are their own index, and a client's view of it."""

    def __init__(self, segment_events: int = 3, retention_bytes: int = 10**9) -> None:
        self.log = UpstreamLog([EQIAD, CODFW], retention_bytes, segment_events)
        self.cluster = Cluster(self.log, "eqiad", seed=1)

    def append(self, source: tuple[str, int], *timestamps: int) -> None:
        for timestamp_ms in timestamps:
            index = self.log.partitions[source].end
            self.log.append(Fresh(0, source, timestamp_ms, b"%d" % index, 0, "", False), 0.0)

    def feed(self, *asked: Asked, seed: int = 0) -> Feed:
        return Feed(self.cluster, asked, random.Random(seed), 0.0)

    def resume(self, last_event_id: str, seed: int = 0) -> Feed:
        topics, sources = [EQIAD[0], CODFW[0]], [EQIAD, CODFW]
        return self.feed(*asked_for(last_event_id, None, topics, sources), seed=seed)


def frames(batch: bytes) -> Iterator[tuple[str, int]]:
    """The id and data of each frame."""
    for frame in batch.split(b"\n\n")[:-1]:
        event, sse_id, data = frame.split(b"\n")
        assert event == b"event: message"
        assert sse_id.startswith(b"id: ")
        assert data.startswith(b"data: ")
        yield sse_id[4:].decode(), int(data[6:])


def drained(feed: Feed) -> list[tuple[str, int]]:
    taken: list[tuple[str, int]] = []
    while True:
        batch, events = feed.next_batch(0.0)
        if not events:
            assert batch == b""
            return taken
        found = list(frames(batch))
        assert len(found) == events
        taken += found


def entries(sse_id: str) -> dict[str, dict[str, Any]]:
    return {entry["topic"]: entry for entry in orjson.loads(sse_id)}


@pytest.mark.parametrize(
    ("last", "then"),
    [
        (0, [1, 2, 3, 4, 5, 6, 7]),
        (1, [4, 5, 6, 7]),  # 2 and 3 are skipped
        (4, [7]),  # 5 and 6 are skipped
        (6, [4, 5, 6, 7]),  # 4, 5 and 6 are repeated
        (7, []),
    ],
)
def test_resuming_with_an_events_own_id_skips_and_repeats(last: int, then: list[int]) -> None:
    upstream = Upstream()
    upstream.append(EQIAD, *EXAMPLE)
    delivered = drained(upstream.feed(Asked(EQIAD, -2, None)))
    assert [index for _, index in delivered] == list(range(8))
    assert [index for _, index in drained(upstream.resume(delivered[last][0]))] == then


def test_an_entry_says_one_ms_more_or_where_it_starts() -> None:
    upstream = Upstream()
    upstream.append(EQIAD, 10, 20)
    sse_id = drained(upstream.feed(Asked(EQIAD, -2, None), Asked(CODFW, -1, None)))[1][0]
    assert entries(sse_id) == {
        EQIAD[0]: {"topic": EQIAD[0], "partition": 0, "timestamp": 21},
        CODFW[0]: {"topic": CODFW[0], "partition": 0, "offset": -1},
    }


def test_a_topic_that_delivered_nothing_shows_the_offset_it_was_resolved_to() -> None:
    upstream = Upstream()
    upstream.append(CODFW, 5, 6, 7)
    feed = upstream.feed(Asked(CODFW, None, 6), Asked(EQIAD, None, 6))
    found = entries(feed.id_line()[4:].decode())
    assert found[CODFW[0]]["offset"] == upstream.cluster.bases[CODFW] + 1
    assert found[EQIAD[0]]["offset"] == -1


def test_a_second_disconnect_with_an_offset_of_minus_one_loses_events() -> None:
    upstream = Upstream()
    upstream.append(EQIAD, 10)
    upstream.append(CODFW, 10)
    first = drained(upstream.feed(Asked(EQIAD, -2, None), Asked(CODFW, -2, None)))[-1][0]
    # Caught up: both entries become -1 until their next event.
    again = upstream.resume(first)
    upstream.append(EQIAD, 20)
    sse_id = drained(again)[-1][0]
    assert entries(sse_id)[CODFW[0]]["offset"] == -1
    upstream.append(CODFW, 30)
    lost = upstream.resume(sse_id)
    assert drained(lost) == []


def test_topics_that_are_not_asked_for_are_not_served() -> None:
    upstream = Upstream()
    upstream.append(EQIAD, 1, 2)
    upstream.append(CODFW, 1, 2)
    delivered = drained(upstream.feed(Asked(CODFW, -2, None)))
    assert len(delivered) == 2
    assert set(entries(delivered[0][0])) == {CODFW[0]}


def test_a_partition_that_does_not_exist_is_silent() -> None:
    upstream = Upstream()
    upstream.append(EQIAD, 1)
    feed = upstream.feed(Asked((EQIAD[0], 9), 0, None), Asked((EQIAD[0], 8), None, 5))
    assert feed.next_batch(0.0) == (b"", 0)


def test_events_appended_later_follow() -> None:
    upstream = Upstream()
    feed = upstream.feed(Asked(EQIAD, -1, None))
    assert drained(feed) == []
    upstream.append(EQIAD, 5)
    assert [index for _, index in drained(feed)] == [0]
    assert drained(feed) == []


def test_history_comes_in_batches_by_topic_and_not_in_time_order() -> None:
    upstream = Upstream(segment_events=10_000)
    for moment in range(3 * BATCH_EVENTS):
        upstream.append(EQIAD, moment)
        upstream.append(CODFW, moment)
    feed = upstream.feed(Asked(EQIAD, -2, None), Asked(CODFW, -2, None))
    sizes = []
    while (taken := feed.next_batch(0.0))[1]:
        sizes.append(taken[1])
    assert sizes == [BATCH_EVENTS] * 6


def test_a_client_that_is_overtaken_by_expiry_goes_on_at_the_end() -> None:
    upstream = Upstream(segment_events=2, retention_bytes=4)
    upstream.append(EQIAD, 1)
    feed = upstream.feed(Asked(EQIAD, -2, None))
    upstream.append(EQIAD, *range(2, 11))
    assert upstream.log.partitions[EQIAD].start > 0
    assert drained(feed) == []
    upstream.append(EQIAD, 11)
    assert [index for _, index in drained(feed)] == [10]


def test_the_offset_is_the_serving_clusters_own() -> None:
    upstream = Upstream()
    payload = b'{"offset":}'
    upstream.log.append(Fresh(0, EQIAD, 5, payload, 10, "", False), 0.0)
    for data_centre in ("eqiad", "codfw"):
        cluster = Cluster(upstream.log, data_centre, seed=1)
        batch, _ = Feed(cluster, [Asked(EQIAD, -2, None)], random.Random(0), 0.0).next_batch(0.0)
        data = orjson.loads(batch.split(b"data: ")[1])
        assert data == {"offset": cluster.bases[EQIAD]}


def test_a_lagging_mirror_has_it_later() -> None:
    upstream = Upstream()
    upstream.log.append(Fresh(0, CODFW, 5, b"0", 0, "", False), 10.0)
    cluster = Cluster(upstream.log, "eqiad", 1, mirror_lag_seconds=30.0)
    feed = Feed(cluster, [Asked(CODFW, -2, None)], random.Random(0), 10.0)
    assert feed.next_batch(39.9) == (b"", 0)
    assert feed.next_batch(40.0)[1] == 1


def test_the_order_of_entries_and_keys_varies_between_connections() -> None:
    upstream = Upstream()
    upstream.append(EQIAD, 5)
    asked = (Asked(EQIAD, -2, None), Asked(CODFW, -1, None))
    ids = {drained(upstream.feed(*asked, seed=seed))[0][0] for seed in range(50)}
    orders = {tuple(entry["topic"] for entry in orjson.loads(sse_id)) for sse_id in ids}
    keys = {tuple(entry) for sse_id in ids for entry in orjson.loads(sse_id)}
    assert len(orders) == 2
    assert len(keys) > 4


@given(
    st.lists(st.tuples(st.sampled_from([EQIAD, CODFW]), st.integers(0, 15)), max_size=60),
    st.integers(0, 16),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_all_from_the_resolved_offset_on_is_served_once_and_in_order(
    appended: list[tuple[tuple[str, int], int]], asked_ms: int, segment_events: int, seed: int
) -> None:
    upstream = Upstream(segment_events)
    for number, (source, timestamp_ms) in enumerate(appended):
        fresh = Fresh(0, source, timestamp_ms, b"%d" % number, 0, "", False)
        upstream.log.append(fresh, 0.0)
    feed = upstream.feed(Asked(EQIAD, None, asked_ms), Asked(CODFW, None, asked_ms), seed=seed)
    served = drained(feed)
    for source in (EQIAD, CODFW):
        all_of_it = [(number, t) for number, (s, t) in enumerate(appended) if s == source]
        first = next((i for i, (_, t) in enumerate(all_of_it) if t >= asked_ms), len(all_of_it))
        mine = [(sse_id, number) for sse_id, number in served if appended[number][0] == source]
        assert [number for _, number in mine] == [number for number, _ in all_of_it[first:]]
        for sse_id, number in mine:
            assert entries(sse_id)[source[0]]["timestamp"] == appended[number][1] + 1


def test_what_was_past_its_end_is_deaf_at_first_and_what_was_not_is_not() -> None:
    upstream = Upstream()
    upstream.append(EQIAD, 10)
    asked = (Asked(EQIAD, None, 10), Asked(CODFW, None, 10))
    feed = Feed(upstream.cluster, asked, random.Random(0), 0.0, deaf_seconds=0.5)
    assert [data for _, data in drained(feed)] == [0]
    upstream.append(CODFW, 20)
    upstream.append(EQIAD, 21)
    (first,) = drained(feed)
    assert entries(first[0])[CODFW[0]]["offset"] == -1
    assert feed.next_batch(0.5) == (b"", 0), (
        "the events in between are never sent on this connection"
    )
    upstream.append(CODFW, 22)
    ((sse_id, data),) = list(frames(feed.next_batch(0.6)[0]))
    assert (data, entries(sse_id)[CODFW[0]]["timestamp"]) == (1, 23)
    again = Feed(upstream.cluster, asked, random.Random(0), 1.0, deaf_seconds=0.5)
    assert len(drained(again)) == 4, "a new connection finds it"
