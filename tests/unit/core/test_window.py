from __future__ import annotations

import pytest

from pleiades.core.position import MAX_SOURCES
from pleiades.core.sse_id import UNKNOWN_SOURCE, TopicPartition
from pleiades.core.window import Window

EQIAD: TopicPartition = ("eqiad.x", 0)
CODFW: TopicPartition = ("codfw.x", 0)
FAR = 10**9


def filled(*entries: tuple[TopicPartition, int, bytes], window_ms: int = 10) -> Window:
    """A window as in a relay: each entry came in a separate batch."""
    window = Window(window_ms, FAR)
    for source, timestamp_ms, fingerprint in entries:
        window.observe({source: timestamp_ms} if source != UNKNOWN_SOURCE else {})
        assert window.add(source, timestamp_ms, fingerprint)
    return window


def test_a_repeat_is_recognised_across_topics() -> None:
    window = filled((EQIAD, 5, b"a"))
    assert not window.add(CODFW, 9, b"a")
    assert b"a" in window
    assert len(window) == 1


def test_what_is_older_than_the_horizon_is_dropped() -> None:
    window = filled((EQIAD, 100, b"a"), (EQIAD, 110, b"b"), (EQIAD, 120, b"c"))
    window.advance({EQIAD: 120}, FAR)
    assert [name in window for name in (b"a", b"b", b"c")] == [False, True, True]


def test_a_timestamp_ahead_keeps_all_that_came_after_it() -> None:
    window = filled((EQIAD, 100, b"a"), (EQIAD, 3_700, b"ahead"), (EQIAD, 101, b"b"))
    window.advance({EQIAD: 3_700}, 200)
    assert [name in window for name in (b"a", b"ahead", b"b")] == [False, True, True]


def test_an_event_dated_back_stays_as_long_as_the_one_before_it() -> None:
    window = filled((EQIAD, 1_000, b"a"), (EQIAD, 3, b"imported"), (EQIAD, 1_005, b"b"))
    window.advance({EQIAD: 1_005}, FAR)
    assert b"imported" in window


def test_a_dropped_canary_holds_what_came_after_it() -> None:
    # Upstream resolves to the canary, and repeats from there.
    window = filled((EQIAD, 100, b"a"))
    window.observe({EQIAD: 1_000})
    window.observe({EQIAD: 3})
    window.add(EQIAD, 3, b"imported")
    window.advance({EQIAD: 1_000}, FAR)
    assert b"a" not in window
    assert b"imported" in window


def test_what_is_restored_is_held_as_of_what_was_reached_when_it_was_published() -> None:
    window = Window(10, FAR)
    window.restore({EQIAD: 1_000}, [(EQIAD, 100, b"a"), (EQIAD, 3, b"imported")])
    window.add(EQIAD, 4, b"new")
    window.advance({EQIAD: 1_000}, FAR)
    assert b"a" not in window
    assert b"imported" not in window, "counted as delivered after 100, not at 1,000"
    window.advance({EQIAD: 1_010}, FAR)
    assert b"new" in window
    window.advance({EQIAD: 1_011}, FAR)
    assert len(window) == 0


def test_the_horizon_follows_the_clock_where_the_position_is_ahead_of_it() -> None:
    window = filled((EQIAD, 100, b"a"), (EQIAD, 5_000, b"ahead"))
    window.advance({EQIAD: 5_000}, 105)
    assert b"a" in window
    window.advance({EQIAD: 5_000}, 111)
    assert b"a" not in window


def test_the_horizon_waits_while_a_connection_repeats_from_an_earlier_clock() -> None:
    # Requested at the clock 105: "a" may still come, however late it is by then.
    window = filled((EQIAD, 100, b"a"), (EQIAD, 5_000, b"ahead"))
    window.connected({EQIAD: 5_000}, 105)
    window.advance({EQIAD: 5_000}, 400)
    assert b"a" in window
    window.advance({EQIAD: 5_001}, 400)
    assert b"a" not in window


def test_an_idle_topic_keeps_its_own() -> None:
    window = filled((CODFW, 7, b"idle"), (EQIAD, 100, b"a"), (EQIAD, 900, b"b"))
    window.advance({CODFW: 7, EQIAD: 900}, FAR)
    assert [name in window for name in (b"idle", b"a", b"b")] == [True, False, True]


def test_a_topic_without_a_position_keeps_everything() -> None:
    window = filled((EQIAD, 7, b"a"))
    window.advance({EQIAD: 0}, FAR)
    assert b"a" in window


def test_unknown_source_stays_until_no_topic_can_repeat_it() -> None:
    window = filled((EQIAD, 500, b"a"), (UNKNOWN_SOURCE, 20, b"letter"), (CODFW, 30, b"b"))
    window.advance({EQIAD: 900, CODFW: 30}, FAR)
    assert b"letter" in window
    window.advance({EQIAD: 900, CODFW: 511}, FAR)
    assert b"letter" not in window


def test_unknown_source_stays_behind_a_timestamp_ahead() -> None:
    window = filled((EQIAD, 5_000, b"ahead"), (UNKNOWN_SOURCE, 101, b"letter"))
    window.advance({EQIAD: 5_000}, 300)
    assert b"letter" in window


def test_the_bound_forgets_the_oldest_of_the_longest_queue() -> None:
    window = Window(10, 3)
    for number, source in enumerate((CODFW, EQIAD, EQIAD, EQIAD, EQIAD)):
        window.add(source, number, b"e%d" % number)
    assert [(b"e%d" % number) in window for number in range(5)] == [True, False, False, True, True]
    assert window.take_forgotten() == 2
    assert window.take_forgotten() == 0


@pytest.mark.parametrize("observed", [True, False])
def test_invented_topics_get_no_queue_each(observed: bool) -> None:
    window = Window(10, FAR)
    for number in range(MAX_SOURCES + 500):
        source = (f"invented-{number}", 0)
        if observed:
            window.observe({source: 5})
        assert window.add(source, 5, b"e%d" % number)
        assert not window.add(source, 5, b"e%d" % number)
    assert len(window) == MAX_SOURCES + 500
    assert len(window._queues) <= MAX_SOURCES + 1
    assert len(window._greatest) <= MAX_SOURCES + 1
