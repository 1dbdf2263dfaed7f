from __future__ import annotations

import pytest

from pleiades.core.admission import Admission, Admitted, nothing_known, young
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import CANARY, Batch, Event, unpublished
from pleiades.core.fingerprint import fingerprint, fingerprints
from pleiades.core.identity import fallback_identity
from pleiades.core.sse_id import UNKNOWN_SOURCE, TopicPartition
from pleiades.core.window import Window

EQIAD: TopicPartition = ("eqiad.x", 0)
CODFW: TopicPartition = ("codfw.x", 0)
START = 1_000


def event(name: str, dated_ms: int, source: TopicPartition = EQIAD) -> Event:
    return Event(name, source, dated_ms + 1, "", b"key", b"{}")


def letter(name: str, dated_ms: int, source: TopicPartition = EQIAD) -> Event:
    return Event(name, source, dated_ms + 1, "", b"key", b"?", "not_json")


def canary(timestamp_ms: int) -> Event:
    return unpublished(EQIAD, timestamp_ms, CANARY)


def batch(*events: Event, connection: int = 1) -> Batch:
    timestamps_ms: dict[TopicPartition, int] = {}
    for one in events:
        if one.source != UNKNOWN_SOURCE:
            reached = timestamps_ms.get(one.source, 0)
            timestamps_ms[one.source] = max(reached, one.timestamp_ms)
    return Batch(0, connection, list(events), timestamps_ms, START, 5_000)


def checkpoint(reached: dict[TopicPartition, int]) -> Checkpoint:
    return Checkpoint(reached, START, 4_000)


def names(admitted: Admitted) -> tuple[list[str], list[str]]:
    return (
        [one.identity for one in admitted.events if not one.reason],
        [one.identity for one in admitted.events if one.reason],
    )


class Destination:
    """Knows some identities, and records which ones it was asked about."""

    def __init__(self, *identities: str) -> None:
        self.identities = identities
        self.asked: list[str] = []

    def knows(self, candidate: Event) -> bool:
        self.asked.append(candidate.identity)
        return candidate.identity in self.identities


@pytest.fixture
def window() -> Window:
    return Window(60, 10**6)


@pytest.mark.parametrize(
    ("reached", "is_young"),
    [(0, False), (1, True), (START - 1, True), (START, True), (START + 1, False)],
)
def test_young(reached: int, is_young: bool) -> None:
    assert list(young(checkpoint({EQIAD: reached}))) == ([EQIAD] if is_young else [])


def test_new_events_are_admitted_in_order_and_repeats_counted(window: Window) -> None:
    admission = Admission(window)
    first = batch(event("b", 2_000), event("a", 1_500), event("b", 2_000))
    admitted = admission.admit(first, checkpoint({}))
    assert names(admitted) == (["b", "a"], [])
    assert (admitted.repeated, admitted.before_start) == (1, 0)
    assert admitted.timestamps_ms == first.timestamps_ms
    again = admission.admit(first, checkpoint({EQIAD: 2_001}))
    assert (names(again), again.repeated) == (([], []), 3)


def test_what_the_destination_knows_is_asked_once_and_remembered(window: Window) -> None:
    admission, destination = Admission(window), Destination("on disk")
    received = batch(event("on disk", 2_000), event("new", 2_001))
    admitted = admission.admit(received, checkpoint({}), destination.knows)
    assert names(admitted) == (["new"], [])
    assert admitted.repeated == 1
    assert fingerprint("on disk") in window
    admission.admit(received, checkpoint({EQIAD: 2_002}), destination.knows)
    assert destination.asked == ["on disk", "new"]


def test_what_has_no_identity_of_its_own_is_never_from_before_the_start(window: Window) -> None:
    """It may already be published, under a name that was generated only once."""
    name = fallback_identity(EQIAD, START - 10, b"{}")
    young_one = checkpoint({EQIAD: START - 10})
    for without, connection in (
        (event(name, START - 20), 2),
        (letter(f"{name}-2", START - 20), 3),
    ):
        old, new = event(f"old-{connection}", START - 30), event(f"new-{connection}", START - 5)
        received = batch(old, without, new, connection=connection)
        admitted = Admission(window).admit(received, young_one)
        assert admitted.before_start == 1
        assert old not in admitted.events
        assert new in admitted.events
        assert without in admitted.events


def test_nothing_is_from_before_the_start_where_no_topic_is_young(window: Window) -> None:
    # An imported edit, delivered among others: it is published as usual.
    admitted = Admission(window).admit(batch(event("old", 5)), checkpoint({EQIAD: START + 1}))
    assert names(admitted) == (["old"], [])


def test_before_the_start_is_dropped_up_to_the_first_known(window: Window) -> None:
    window.restore({EQIAD: 17}, [(EQIAD, 17, fingerprint("first"))])
    received = batch(
        event("before-1", 900), event("before-2", 999), event("first", 16), event("new", 20)
    )
    admitted = Admission(window).admit(received, checkpoint({EQIAD: 17}))
    assert names(admitted) == (["new"], [])
    assert (admitted.repeated, admitted.before_start) == (1, 2)
    assert fingerprint("before-1") not in window
    # 999 belongs to the dropped event: the position stays at the known event.
    assert admitted.timestamps_ms == {EQIAD: 21}


def test_before_the_start_is_dropped_up_to_the_first_that_the_disk_knows(window: Window) -> None:
    destination = Destination("first")
    received = batch(event("before", 900), event("first", 16), event("new", 20))
    admitted = Admission(window).admit(received, checkpoint({EQIAD: 17}), destination.knows)
    assert names(admitted) == (["new"], [])
    assert destination.asked == ["before", "first", "new"]
    assert fingerprint("first") in window


def test_a_canary_dated_after_the_start_ends_the_wait_in_its_place(window: Window) -> None:
    # The reader is ahead of the publisher and asked from the canary: no known event comes.
    received = batch(event("before", 900), canary(2_001), event("imported", 5))
    admitted = Admission(window).admit(received, checkpoint({EQIAD: 17}))
    assert names(admitted) == (["imported"], [])
    assert admitted.before_start == 1
    assert admitted.timestamps_ms == {EQIAD: 2_001}


def test_after_a_batch_with_something_dated_after_the_start_nothing_waits(window: Window) -> None:
    # A dead letter has no source, but the ids of its batch do.
    admission = Admission(window)
    received = batch(letter("bad", 2_000, UNKNOWN_SOURCE))
    received.timestamps_ms[EQIAD] = 2_001
    one = admission.admit(received, checkpoint({EQIAD: 17}))
    assert one.timestamps_ms == {EQIAD: 2_001}
    two = admission.admit(batch(event("imported", 5)), checkpoint({EQIAD: 2_001}))
    assert names(two) == (["imported"], [])


def test_an_event_dated_at_the_start_ends_the_wait(window: Window) -> None:
    received = batch(event("before", START - 1), event("at", START), event("imported", 5))
    admitted = Admission(window).admit(received, checkpoint({EQIAD: 17}))
    assert names(admitted) == (["at", "imported"], [])
    assert admitted.before_start == 1


def test_the_wait_goes_on_over_batches_and_holds_the_position(window: Window) -> None:
    window.restore({EQIAD: 17}, [(EQIAD, 17, fingerprint("first"))])
    admission, before = Admission(window), checkpoint({EQIAD: 17, CODFW: 0})
    one = admission.admit(
        batch(event("before-1", 800), event("other", 2_000, CODFW)), before, nothing_known
    )
    assert names(one) == (["other"], [])
    assert one.timestamps_ms == {CODFW: 2_001}
    two = admission.admit(batch(event("before-2", 900)), before)
    assert (names(two), two.before_start, two.timestamps_ms) == (([], []), 1, {})
    three = admission.admit(batch(event("first", 16)), before)
    assert (names(three), three.repeated) == (([], []), 1)
    four = admission.admit(batch(event("imported", 7)), before)
    assert names(four) == (["imported"], [])


def test_the_wait_begins_anew_with_every_connection(window: Window) -> None:
    window.restore({EQIAD: 17}, [(EQIAD, 17, fingerprint("first"))])
    admission, before = Admission(window), checkpoint({EQIAD: 17})
    admission.admit(batch(event("first", 16), event("new", 18)), before)
    again = batch(event("before", 900), event("first", 16), event("newer", 19), connection=2)
    admitted = admission.admit(again, checkpoint({EQIAD: 19}))
    assert names(admitted) == (["newer"], [])
    assert (admitted.repeated, admitted.before_start) == (1, 1)


def test_a_topic_that_delivers_first_on_this_connection_does_not_wait(window: Window) -> None:
    admission = Admission(window)
    admission.admit(batch(event("imported", 5)), checkpoint({}))
    admitted = admission.admit(batch(event("also", 6)), checkpoint({EQIAD: 6}))
    assert names(admitted) == (["also"], [])


def test_dead_letters_wait_in_their_place_among_the_events(window: Window) -> None:
    window.restore({EQIAD: 17}, [(EQIAD, 17, fingerprint("first"))])
    received = batch(
        event("before", 900),
        letter("bad-before", 901),
        letter("first", 16),
        event("new", 20),
        letter("bad-new", 30),
    )
    admitted = Admission(window).admit(received, checkpoint({EQIAD: 17}))
    assert names(admitted) == (["new"], ["bad-new"])
    assert (admitted.repeated, admitted.before_start) == (1, 2)


def test_dead_letters_stand_in_the_window_in_their_place(window: Window) -> None:
    received = batch(letter("bad", 2_000), event("a", 2_000))
    Admission(window).admit(received, checkpoint({}))
    assert list(window._queues[EQIAD].take_oldest(3)) == fingerprints(["bad", "a"])


def test_unknown_source_is_never_from_before_the_start(window: Window) -> None:
    received = batch(letter("bad", 5, UNKNOWN_SOURCE))
    admitted = Admission(window).admit(received, checkpoint({EQIAD: 17}))
    assert names(admitted) == ([], ["bad"])


def test_a_canary_in_the_batch_holds_what_comes_after_it(window: Window) -> None:
    admission = Admission(window)
    admission.admit(batch(canary(2_001)), checkpoint({}))
    admission.admit(batch(event("imported", 5)), checkpoint({EQIAD: 2_001}))
    window.advance({EQIAD: 2_001}, 10**9)
    assert fingerprint("imported") in window


def test_the_window_waits_for_what_a_new_connection_repeats(window: Window) -> None:
    # The position is ahead of the clock, which was 4000 when the connection was opened.
    admission, position = Admission(window), {EQIAD: 90_001}
    admission.admit(batch(event("a", 3_990)), checkpoint({}))
    admission.admit(batch(event("ahead", 90_000)), checkpoint({EQIAD: 3_991}))
    admission.admit(batch(connection=2), checkpoint(position))
    window.advance(position, 80_000)
    assert fingerprint("a") in window
