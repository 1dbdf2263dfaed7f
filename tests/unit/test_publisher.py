"""The publisher with a store in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from pleiades.config.settings import Settings
from pleiades.core.checkpoint import Checkpoint, ReplayProgress, decode_checkpoint
from pleiades.core.event import Batch, End, Event
from pleiades.core.identity import fallback_identity
from pleiades.core.restart import MAX_RESTARTS, Ended, RestartPolicy
from pleiades.core.sse_id import UNKNOWN_SOURCE
from pleiades.core.units import iso_time
from pleiades.core.window import Window
from pleiades.publisher import Publisher
from pleiades.runtime.channel import Channel
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.base import MAX_BYTES_IN_FLIGHT, CommitPolicy
from tests.harness.memory import MemorySink, MemoryStore
from tests.harness.settings import kafka_of, settings_of
from tests.unit.conftest import FakeChannel, FakeChildContext

SOURCE = ("eqiad.x", 0)
START_MS = 1_760_000_000_000

Run = Callable[..., Checkpoint]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def lives() -> list[FakeChildContext]:
    """The context of each generation."""
    return []


@pytest.fixture
def run(
    metrics: Metrics,
    settings_of: Callable[..., Settings],
    store: MemoryStore,
    lives: list[FakeChildContext],
) -> Run:
    """Publishes batches and the end marker; returns the checkpoint that the reader received."""

    def publish(
        *channels: list[Batch], flags: tuple[str, ...] = (), last: Checkpoint | None = None
    ) -> Checkpoint:
        resume: FakeChannel[Checkpoint] = FakeChannel()
        parsers = [FakeChannel[Batch | End](*batches, End()) for batches in channels]
        lives.append(FakeChildContext(0))
        Publisher(
            lives[-1],
            metrics,
            settings_of(*flags),
            MemorySink(store),
            cast("Channel[Checkpoint]", resume),
            [cast("Channel[Batch | End]", parser) for parser in parsers],
            last,
        ).run()
        told = resume.items[0]
        assert isinstance(told, Checkpoint)
        return told

    return publish


def event(number: int) -> Event:
    return Event(
        f"id-{number}", SOURCE, START_MS + number, iso_time(START_MS), b"[]", b"%d" % number
    )


def batch(sequence: int, *numbers: int, connection: int = 1) -> Batch:
    return Batch(
        sequence,
        connection,
        [event(number) for number in numbers],
        {SOURCE: START_MS + max(numbers, default=0)},
        START_MS,
        START_MS + 10_000,
    )


def published(store: MemoryStore) -> list[int]:
    return [int(event.data) for event in store.events]


def test_repeats_are_dropped_and_the_order_kept(run: Run, store: MemoryStore) -> None:
    run([batch(0, 1, 2, 3), batch(1, 2, 3, 4, connection=2), batch(2, 4, 5, connection=3)])
    assert published(store) == [1, 2, 3, 4, 5]
    assert store.checkpoint is not None
    assert decode_checkpoint(store.checkpoint).position == {SOURCE: START_MS + 5}


@pytest.mark.parametrize("resume", [True, False])
def test_the_reader_need_not_wait_for_the_window_of_a_stored_position(
    run: Run, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """It waits for that of a new position, which counts only once it is committed."""
    run([batch(0, 1, 2)])
    told: list[object] = []
    steps: list[str] = []
    put, restore = FakeChannel.put, Window.restore

    def noted_put(channel: FakeChannel[object], item: object, alive: Callable[[], None]) -> None:
        told.append(item)
        steps.append("told")
        put(channel, item, alive)

    def noted_restore(*arguments: Any) -> None:
        steps.append("restored")
        restore(*arguments)

    monkeypatch.setattr(FakeChannel, "put", noted_put)
    monkeypatch.setattr(Window, "restore", noted_restore)
    run([batch(0, 2, 3)], flags=(f"--resume={str(resume).lower()}",))
    assert steps == (["told", "restored"] if resume else ["restored", "told"])
    assert len(told) == 1
    assert published(store) == [1, 2, 3]


@pytest.mark.parametrize(
    ("flags", "events", "lag"),
    [
        ((), "file_events", False),
        (("--file.enable=false", "--kafka.enable"), "kafka_events", True),
    ],
)
def test_the_destination_counts_what_is_published(
    run: Run, metrics: Metrics, flags: tuple[str, ...], events: str, lag: bool
) -> None:
    run([batch(0, 1, 2, 3), batch(1, 2, 3, 4, connection=2)], flags=flags)
    assert getattr(metrics, events)._value.get() == 4
    assert (metrics.kafka_lag_ms._value.get() > 0) is lag


def test_several_parsers_are_read_in_turn(run: Run, store: MemoryStore) -> None:
    run([batch(0, 1), batch(2, 3)], [batch(1, 2), batch(3, 4)])
    assert published(store) == [1, 2, 3, 4]


def test_a_batch_out_of_turn_is_a_crash_and_commits_nothing_of_it(
    run: Run, store: MemoryStore
) -> None:
    with pytest.raises(AssertionError, match="batch 2 arrived instead of 1"):
        run([batch(0, 1), batch(2, 3)])
    assert 3 not in published(store)


def test_the_next_run_goes_on_from_what_was_committed(run: Run, store: MemoryStore) -> None:
    run([batch(0, 1, 2)])
    told = run([batch(0, 1, 2, 3)])
    assert told.position == {SOURCE: START_MS + 2}
    assert published(store) == [1, 2, 3]


def test_a_new_start_is_stored_before_anybody_acts_on_it(run: Run, store: MemoryStore) -> None:
    told = run([], flags=("--since=2026-01-01",))
    assert told == Checkpoint({}, 1_767_225_600_000, 0)
    assert store.checkpoint is not None
    assert decode_checkpoint(store.checkpoint) == told


def test_without_resume_the_stored_position_is_replaced_at_once(
    run: Run, store: MemoryStore
) -> None:
    run([batch(0, 1, 2)])
    told = run([batch(0, 2, 3)], flags=("--no-resume", "--since=2026-01-01"))
    assert told.position == {}
    assert published(store) == [1, 2, 3], "published events stay known"


def test_since_counts_until_something_was_delivered(run: Run) -> None:
    run([], flags=("--since=2026-01-02",))
    assert run([], flags=("--since=2026-01-01",)).started_ms == 1_767_225_600_000
    run([batch(0, 1)], flags=("--since=2026-01-01",))
    assert run([], flags=("--since=2026-01-02",)).position == {SOURCE: START_MS + 1}


def test_since_skips_nothing_that_an_earlier_start_was_to_get(run: Run) -> None:
    """For example with `--since=-1h` in a file, and an upstream that is down for longer than that."""
    run([], flags=("--since=2026-01-01",))
    assert run([], flags=("--since=2026-01-02",)).started_ms == 1_767_225_600_000


def test_since_counts_also_after_a_start_that_was_set_back_and_got_nothing(run: Run) -> None:
    """The reader sets it back if this machine's clock is ahead of the upstream's."""
    set_back = batch(0)._replace(timestamps_ms={}, started_ms=START_MS - 1)
    run([set_back])
    assert run([], flags=("--since=2020-01-01",)).started_ms == 1_577_836_800_000


def test_since_does_not_count_where_a_time_was_found_in_a_directory(
    run: Run, store: MemoryStore
) -> None:
    store.checkpoint = Checkpoint({}, START_MS - 5, START_MS - 5).encoded()
    assert run([], flags=("--since=2020-01-01",)).started_ms == START_MS - 5


def test_since_does_not_count_where_a_time_was_found_by_what_is_there(
    run: Run, store: MemoryStore
) -> None:
    """For example a topic with one upstream topic, whose stored position is lost."""
    run([batch(0, 1)])
    store.checkpoint = Checkpoint({}, START_MS - 5, 0).encoded()
    assert run([], flags=("--since=2026-01-01",)).started_ms == START_MS - 5


def test_a_destination_that_was_emptied_meanwhile_goes_on_where_it_was(
    run: Run, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    last = Checkpoint({SOURCE: START_MS + 2, ("codfw.x", 0): 0}, START_MS - 5, START_MS + 2)
    assert run([], last=last) == last
    assert store.checkpoint is not None
    assert decode_checkpoint(store.checkpoint) == last, "it is durable before it is used"
    assert "the stored position is gone" in caplog.text


def test_what_is_stored_and_since_outrank_what_was_known_before(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    last = Checkpoint({SOURCE: START_MS + 2}, START_MS - 5, START_MS + 2)
    told = run([], flags=("--since=2026-01-01",), last=last)
    assert told == Checkpoint({}, 1_767_225_600_000, 0)
    run([batch(0, 1)])
    assert run([], last=last).position == {SOURCE: START_MS + 1}
    assert "the stored position is gone" not in caplog.text


def test_dropped_events_still_move_the_position(run: Run, store: MemoryStore) -> None:
    moved = batch(0)._replace(timestamps_ms={SOURCE: START_MS + 77, ("codfw.x", 0): 0})
    run([moved])
    assert store.events == []
    assert store.checkpoint is not None
    assert decode_checkpoint(store.checkpoint).position == {
        SOURCE: START_MS + 77,
        ("codfw.x", 0): 0,
    }


def test_dead_letters_are_published_once_and_said(
    run: Run, store: MemoryStore, lives: list[FakeChildContext], caplog: pytest.LogCaptureFixture
) -> None:
    letter = Event("sha256-1", SOURCE, START_MS + 1, "", b"", b"?", "not_json")
    with_letter = batch(0, 1)._replace(events=[letter, event(1)])
    run([with_letter, with_letter._replace(sequence=1, connection=2)])
    assert [stored.data for stored in store.dead_letters] == [b"?"]
    assert published(store) == [1]
    assert lives[-1].published_total == 1
    assert "1 events could not be published (not_json)" in caplog.text


def test_a_replay_counts_no_dead_letters(run: Run, store: MemoryStore) -> None:
    store.checkpoint = Checkpoint({SOURCE: 0}, START_MS, START_MS, ReplayProgress()).encoded()
    letter = Event("sha256-1", SOURCE, START_MS + 1, "", b"", b"?", "not_json")
    # More than one commit takes: the second begins with the remaining count.
    many = [event(number) for number in range(2, CommitPolicy().max_events + 2)]
    run(
        [
            batch(0, 1)._replace(events=[letter, event(1), *many], source=SOURCE),
            batch(1, 0)._replace(source=SOURCE),
        ]
    )
    assert decode_checkpoint(store.checkpoint).done == ReplayProgress({SOURCE: len(many) + 2})


def test_equal_events_without_an_identity_are_each_published(run: Run, store: MemoryStore) -> None:
    """They used to become one file, and one dead letter."""
    name = fallback_identity(SOURCE, START_MS + 1, b"{}")
    same = event(1)._replace(identity=name)
    letter = Event(name, SOURCE, START_MS + 1, "", b"", b"?", "not_json")
    three = batch(0, 1)._replace(events=[same] * 2 + [letter] * 3, fallbacks=5)
    run([three, three._replace(sequence=1, connection=2)])
    run([three])
    assert [stored.identity for stored in store.events] == [name, f"{name}-2"]
    assert [stored.identity for stored in store.dead_letters] == [f"{name}-{n}" for n in (3, 4, 5)]


def progress(ended: FakeChildContext) -> Ended:
    return Ended("parser-0", False, ended.committed_total > 0, lived_seconds=1.0)


def test_to_publish_the_same_again_is_no_progress(
    run: Run, store: MemoryStore, lives: list[FakeChildContext]
) -> None:
    """An event that cannot be recognised as published is published at each start. If a pipeline always
    fails after it, restarts would never end."""
    name = fallback_identity(UNKNOWN_SOURCE, 0, b"{}")
    unknown = Event(name, UNKNOWN_SOURCE, 0, "", b"", b"{}")
    again = batch(0)._replace(events=[unknown], timestamps_ms={}, fallbacks=1)
    policy = RestartPolicy()
    pauses = []
    for _ in range(MAX_RESTARTS + 1):
        run([again])
        pauses.append(policy.pause_seconds(progress(lives[-1]), jitter=0.0))
    assert len(store.events) == MAX_RESTARTS + 1
    assert pauses[-1] is None, "not given up"
    assert None not in pauses[:-1]


def test_what_is_progress(run: Run, lives: list[FakeChildContext]) -> None:
    def progressed(*batches: Batch, last: Checkpoint | None = None) -> bool:
        run(list(batches), last=last)
        return lives[-1].committed_total > 0

    assert not progressed(batch(0)._replace(timestamps_ms={SOURCE: 0})), (
        "a topic without events yet"
    )
    assert progressed(batch(0, 5))
    assert not progressed(batch(0, 5))
    assert not progressed(batch(0, 5)._replace(clock_ms=START_MS + 20_000))
    assert progressed(batch(0, 4)), "dated back: the position stands still, the event is new"
    assert not progressed(batch(0, 4, 5))
    assert progressed(batch(0)._replace(timestamps_ms={SOURCE: START_MS + 6})), "a canary"
    letter = Event("sha256-1", SOURCE, START_MS + 1, "", b"", b"?", "not_json")
    with_letter = batch(0)._replace(events=[letter], fallbacks=1)
    assert progressed(with_letter)
    assert not progressed(with_letter)


def test_a_destination_that_loses_its_position_makes_no_progress_of_old_events(
    run: Run, store: MemoryStore, lives: list[FakeChildContext]
) -> None:
    last = Checkpoint({SOURCE: START_MS + 9}, START_MS, START_MS + 9)
    moved = batch(0)._replace(timestamps_ms={SOURCE: START_MS + 9})
    store.checkpoint = Checkpoint({SOURCE: START_MS + 2}, START_MS, START_MS + 9).encoded()
    run([moved], last=last)
    assert lives[-1].committed_total == 0


def test_the_windows_bound_is_announced(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run([batch(0, *range(1, 1200))], flags=("--dedup.maxEntries=1000",))
    assert "--dedup.maxEntries (1000) is reached" in caplog.text


@pytest.mark.parametrize(
    ("since_last_seconds", "events", "size_bytes", "backlog", "due"),
    [
        (0.0, 0, 0, False, False),
        (0.19, 4999, MAX_BYTES_IN_FLIGHT - 1, False, False),
        (0.2, 1, 1, False, True),
        (0.2, 1, 1, True, False),
        (1.0, 1, 1, True, True),
        (0.0, 5000, 1, True, True),
        (0.0, 1, MAX_BYTES_IN_FLIGHT, True, True),
    ],
)
def test_commit_policy(
    since_last_seconds: float, events: int, size_bytes: int, backlog: bool, due: bool
) -> None:
    assert CommitPolicy().due(since_last_seconds, events, size_bytes, backlog) is due


def test_the_commit_policy_of_a_topic_is_its_own() -> None:
    policy = kafka_of(settings_of("--kafka.enable", "--kafka.commitInterval=3s")).commit_policy
    assert policy.interval_seconds == 3.0
    assert policy.max_events > CommitPolicy().max_events


def test_a_backlog_does_not_shorten_a_long_interval() -> None:
    policy = CommitPolicy(interval_seconds=5.0)
    assert not policy.due(4.9, 1, 1, backlog=True)
    assert policy.due(5.0, 1, 1, backlog=True)


def test_an_old_date_is_no_lag(run: Run, metrics: Metrics) -> None:
    """One of years ago would spoil the average for ever."""
    now_ms = time.time_ns() // 1_000_000
    ages_ms = {1: 5000, 2: 10 * 365 * 86_400_000, 3: 4000}
    dated = [event(n)._replace(dt=iso_time(now_ms - age)) for n, age in ages_ms.items()]
    run([batch(0)._replace(events=dated, timestamps_ms={SOURCE: START_MS + 3})])
    assert 9 <= metrics.lag_seconds._sum.get() < 60
    assert metrics.lag_left_out._value.get() == 1
