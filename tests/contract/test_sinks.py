"""One suite for all sinks: what stands in pleiades/sinks/base.py, on each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pleiades.core.fingerprint import fingerprint
from pleiades.core.position import Checkpoint
from pleiades.core.units import iso_time
from pleiades.core.wire import DeadLetter, Event, compose_id
from pleiades.runtime.child import Life
from pleiades.runtime.errors import DestinationHeld
from pleiades.runtime.metrics import Metrics
from pleiades.runtime.settings import DEAD_LETTERS_SUFFIX, KafkaSettings, ReplaySettings
from pleiades.sinks import files
from pleiades.sinks.base import Remembered, Sink
from pleiades.sinks.files import FilesSink, Surroundings
from pleiades.sinks.kafka import KafkaSink
from pleiades.sinks.kafka.reporting import Reporting
from pleiades.sinks.memory import MemorySink, MemoryStore
from tests.harness.broker import topic_records

SOURCE = ("eqiad.mediawiki.recentchange", 0)
START_MS = 1_760_000_000_000


@dataclass(frozen=True)
class Guarantees:
    """In what the sinks may differ."""

    tells_window: bool
    """`open` gives the identities; else `is_published` knows them."""
    newest_wins: bool = False
    """A second instance ends the first; else it is kept out by it."""


@dataclass(frozen=True)
class Place:
    """A destination, and how to look into it."""

    sink: Callable[[], Sink]
    published: Callable[[], list[bytes]]
    dead: Callable[[], list[bytes]]
    guarantees: Guarantees


def no_trouble(operation: str, error: OSError, pause_seconds: float) -> None:
    raise AssertionError(f"trouble: {operation}: {error} ({pause_seconds})")


def files_place(folder: Path, sync: str) -> Place:
    def sink() -> Sink:
        return FilesSink(
            folder,
            sync,
            "recentchange",
            window_ms=600_000,
            around=Surroundings(lambda _: None, no_trouble),
        )

    def contents(pattern: str) -> list[bytes]:
        return [path.read_bytes() for path in sorted(folder.glob(pattern))]

    return Place(
        sink,
        lambda: [content.removesuffix(b"\n") for content in contents("*/*.json")],
        lambda: contents(".pleiades/dead-letters/*"),
        Guarantees(tells_window=False),
    )


def memory_place() -> Place:
    store = MemoryStore()
    return Place(
        lambda: MemorySink(store),
        lambda: [event.data for event in store.events],
        lambda: [letter.data for letter in store.dead_letters],
        Guarantees(tells_window=True),
    )


def kafka_place(
    bootstrap: str,
    topic: str,
    life: Life,
    metrics: Metrics,
    replay: ReplaySettings | None = None,
) -> Place:
    settings = KafkaSettings(
        brokers=bootstrap,
        topic=topic,
        partitions=1,
        replication=0,
        compression="zstd",
        commit_interval_seconds=0.2,
        key_field=(),
        properties=(),
        position_name="recentchange",
    )

    def sink() -> Sink:
        return KafkaSink(
            settings,
            ("recentchange",),
            overlap_ms=60_000,
            window_ms=600_000,
            reached=False,
            reporting=Reporting(life, metrics),
            replay=replay,
        )

    def values(of: str) -> list[bytes]:
        return [record.value or b"" for record in topic_records(bootstrap, of)]

    return Place(
        sink,
        lambda: values(topic),
        lambda: values(topic + DEAD_LETTERS_SUFFIX),
        Guarantees(tells_window=True, newest_wins=True),
    )


@pytest.fixture(params=["files-batch", "files-none", "memory", "kafka"])
def place(request: pytest.FixtureRequest, tmp_path: Path, life: Life, metrics: Metrics) -> Place:
    if request.param == "memory":
        return memory_place()
    if request.param == "kafka":
        bootstrap, topic = (request.getfixturevalue(name) for name in ("kafka", "topic"))
        return kafka_place(bootstrap, topic, life, metrics)
    return files_place(tmp_path / "events", request.param.removeprefix("files-"))


@pytest.fixture
def opened(place: Place) -> Iterator[Sink]:
    sink = place.sink()
    sink.open(resume=True)
    yield sink
    sink.close()


def event(number: int) -> Event:
    """As a parser makes it: a sink may read back what an event is from its id and data."""
    identity = f"00000000-0000-4000-8000-{number:012}"
    data = (
        b'{"meta":{"id":"%s","topic":"%s","partition":0},"n":%d,"text":"\xe2\x80\xa8\xc3\xa9"}'
        % (identity.encode(), SOURCE[0].encode(), number)
    )
    return Event(
        identity,
        SOURCE,
        START_MS + number + 1,
        iso_time(START_MS + number),
        compose_id({SOURCE: START_MS + number + 1, ("codfw.x", 0): 1}).encode(),
        data,
    )


def letter(number: int) -> DeadLetter:
    return DeadLetter(f"sha256-{number:064}", SOURCE, START_MS, "not_json", b"", b"\xff%d" % number)


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint({SOURCE: START_MS + number, ("codfw.x", 0): 0}, START_MS, START_MS + 5)


def knows(sink: Sink, window: Iterable[Remembered], published: Event | DeadLetter) -> bool:
    known = {(entry.source, entry.fingerprint) for entry in window}
    return (published.source, fingerprint(published.identity)) in known or sink.is_published(
        published
    )


def test_a_new_destination_knows_nothing(place: Place) -> None:
    sink = place.sink()
    found = sink.open(resume=True)
    assert found.checkpoint is None
    assert not knows(sink, found.window, event(1))
    sink.close()
    assert place.published() == []


def test_what_is_committed_is_there_byte_for_byte(place: Place, opened: Sink) -> None:
    opened.write([event(1), event(2)], [letter(1)])
    opened.write([event(3)], [])
    opened.commit(checkpoint(3))
    assert place.published() == [event(number).data for number in (1, 2, 3)]
    assert place.dead() == [letter(1).data]


def test_it_is_known_to_the_next_one(place: Place, opened: Sink) -> None:
    opened.write([event(1)], [letter(1)])
    opened.commit(checkpoint(1))
    opened.close()
    sink = place.sink()
    found = sink.open(resume=True)
    assert found.checkpoint == checkpoint(1)
    assert knows(sink, found.window, event(1))
    assert knows(sink, found.window, letter(1))
    assert not knows(sink, found.window, event(2))
    assert bool(found.window) is place.guarantees.tells_window
    sink.close()


def test_what_is_not_committed_is_not_covered(place: Place, opened: Sink) -> None:
    opened.write([event(1)], [])
    opened.commit(checkpoint(1))
    opened.write([event(2)], [])
    opened.close()
    sink = place.sink()
    found = sink.open(resume=True)
    assert found.checkpoint == checkpoint(1)
    assert place.published() == [event(1).data]
    sink.commit(checkpoint(9))
    assert place.published() == [event(1).data], "an earlier one's events came back"
    sink.close()


def test_the_position_may_move_without_events(place: Place, opened: Sink) -> None:
    opened.commit(checkpoint(7))
    opened.commit(checkpoint(8))
    opened.close()
    sink = place.sink()
    assert sink.open(resume=True).checkpoint == checkpoint(8)
    sink.close()


def test_without_resume_the_position_is_ignored_and_the_events_are_known(
    place: Place, opened: Sink
) -> None:
    opened.write([event(1)], [])
    opened.commit(checkpoint(1))
    opened.close()
    sink = place.sink()
    found = sink.open(resume=False)
    assert found.checkpoint is None
    assert knows(sink, found.window, event(1))
    sink.close()


def test_of_two_instances_one_is_kept_out(
    place: Place, opened: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_WAIT_SECONDS", 0.0)
    opened.write([event(1)], [])
    opened.commit(checkpoint(1))
    if place.guarantees.newest_wins:
        opened.write([event(2)], [])
        second = place.sink()
        found = second.open(resume=True)
        assert found.checkpoint == checkpoint(1)
        with pytest.raises(DestinationHeld):
            opened.commit(checkpoint(2))
    else:
        with pytest.raises(DestinationHeld):
            place.sink().open(resume=True)
        opened.close()
        second = place.sink()
        found = second.open(resume=True)
    assert knows(second, found.window, event(1))
    assert not knows(second, found.window, event(2))
    second.write([event(3)], [])
    second.commit(checkpoint(3))
    second.close()
    assert place.published() == [event(1).data, event(3).data]


def test_close_is_safe_at_any_time(place: Place) -> None:
    place.sink().close()
    sink = place.sink()
    sink.open(resume=True)
    sink.write([event(1)], [])
    sink.close()
    sink.close()
    assert place.published() == []


def test_many_events_of_one_commit(place: Place, opened: Sink) -> None:
    events = [event(number) for number in range(2500)]
    for begin in range(0, 2500, 100):
        opened.write(events[begin : begin + 100], [])
    opened.commit(checkpoint(2500))
    assert place.published() == [one.data for one in events]
