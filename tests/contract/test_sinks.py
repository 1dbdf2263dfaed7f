"""One suite for all sinks: the contract of pleiades/sinks/base.py."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pleiades.config.settings import ReplaySettings
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import Event
from pleiades.core.fingerprint import fingerprint
from pleiades.core.identity import fallback_identity
from pleiades.core.sse_id import UNKNOWN_SOURCE, compose_id
from pleiades.core.units import iso_time
from pleiades.runtime.child import ChildContext
from pleiades.runtime.errors import DestinationHeld
from pleiades.runtime.metrics import Metrics
from pleiades.sinks import retry
from pleiades.sinks.archive.destination import ArchiveDestination, Options
from pleiades.sinks.base import Sink, SinkContext
from pleiades.sinks.files.destination import FilesDestination
from pleiades.sinks.files.sink import FilesSink
from pleiades.sinks.kafka.destination import DEAD_LETTERS_SUFFIX, KafkaDestination
from pleiades.sinks.retry import Retry
from tests.harness import archived
from tests.harness.broker import topic_records
from tests.harness.finisher import InlineFinisher
from tests.harness.memory import MemorySink, MemoryStore
from tests.harness.settings import settings_of
from tests.unit.conftest import FakeChildContext

SOURCE = ("eqiad.mediawiki.recentchange", 0)
START_MS = 1_760_000_000_000


@dataclass(frozen=True)
class Guarantees:
    """The permitted differences between sinks."""

    newest_wins: bool = False
    """If true, a second instance ends the first; otherwise the first keeps it out."""


@dataclass(frozen=True)
class Place:
    """A destination, and access to its contents."""

    sink: Callable[[], Sink]
    published: Callable[[], list[bytes]]
    dead: Callable[[], list[bytes]]
    guarantees: Guarantees


def files_place(folder: Path, sync: str, metrics: Metrics) -> Place:
    def sink() -> Sink:
        # A pause would be an error: there is nothing to retry.
        child = FakeChildContext(stop_at_pause=1)
        return FilesSink(
            FilesDestination("recentchange", folder, sync),
            Retry(child, metrics.file_errors, folder, "--file.publishDir"),
            500_000,
        )

    def contents(pattern: str) -> list[bytes]:
        return [path.read_bytes() for path in sorted(folder.glob(pattern))]

    return Place(
        sink,
        lambda: [content.removesuffix(b"\n") for content in contents("*/*.json")],
        lambda: contents(".pleiades/dead-letters/*"),
        Guarantees(),
    )


def archive_place(folder: Path, metrics: Metrics) -> Place:
    archive = ArchiveDestination("recentchange", folder)

    def sink() -> Sink:
        child = FakeChildContext(stop_at_pause=1)
        retry = Retry(child, metrics.archive.errors, folder, "--archive.dir")
        return archive.sink(retry, InlineFinisher(), Options(500_000))

    def dead() -> list[bytes]:
        return [
            base64.b64decode(letter["data_base64"])
            if "data_base64" in letter
            else letter["data"].encode()
            for letter in archived.letters(folder)
        ]

    return Place(sink, lambda: archived.lines(folder), dead, Guarantees())


def memory_place() -> Place:
    store = MemoryStore()
    return Place(
        lambda: MemorySink(store),
        lambda: [event.data for event in store.events],
        lambda: [letter.data for letter in store.dead_letters],
        Guarantees(),
    )


def kafka_place(
    bootstrap: str,
    topic: str,
    child: ChildContext,
    metrics: Metrics,
    replay: ReplaySettings | None = None,
    name: str = "recentchange",
) -> Place:
    settings = KafkaDestination(
        brokers=bootstrap,
        topic=topic,
        partitions=1,
        replication=0,
        compression="zstd",
        commit_interval_seconds=0.2,
        key_field=(),
        properties=(),
        position_name=name,
    )

    def sink() -> Sink:
        relay = replace(settings_of("--kafka.enable"), replay=replay)
        return settings.make_sink(SinkContext(child, metrics, relay, reached=False))

    def values(of: str) -> list[bytes]:
        return [record.value or b"" for record in topic_records(bootstrap, of)]

    return Place(
        sink,
        lambda: values(topic),
        lambda: values(topic + DEAD_LETTERS_SUFFIX),
        Guarantees(newest_wins=True),
    )


@pytest.fixture(params=["files-batch", "files-none", "archive", "memory", "kafka"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, child: ChildContext, metrics: Metrics
) -> Place:
    if request.param == "memory":
        return memory_place()
    if request.param == "archive":
        return archive_place(tmp_path / "archive", metrics)
    if request.param == "kafka":
        bootstrap, topic = (request.getfixturevalue(name) for name in ("kafka", "topic"))
        return kafka_place(bootstrap, topic, child, metrics)
    return files_place(tmp_path / "events", request.param.removeprefix("files-"), metrics)


@pytest.fixture
def opened(place: Place) -> Iterator[Sink]:
    sink = place.sink()
    sink.open(resume=True)
    yield sink
    sink.close()


def event(number: int) -> Event:
    """An event as a parser makes it: a sink may reconstruct it from its id and data."""
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


def letter(number: int) -> Event:
    return Event(f"sha256-{number:064}", SOURCE, START_MS, "", b"", b"\xff%d" % number, "not_json")


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint({SOURCE: START_MS + number, ("codfw.x", 0): 0}, START_MS, START_MS + 5)


class Known:
    """The state that a start finds."""

    def __init__(self, sink: Sink, resume: bool = True) -> None:
        opened = sink.open(resume)
        self.checkpoint = opened.checkpoint
        self.window = list(opened.window)
        self.asks = not opened.window_complete

    def __contains__(self, published: Event) -> bool:
        return fingerprint(published.identity) in {entry.fingerprint for entry in self.window}


def test_a_new_destination_knows_nothing(place: Place) -> None:
    sink = place.sink()
    found = Known(sink)
    assert found.checkpoint is None
    assert found.window == []
    sink.close()
    assert place.published() == []


def test_what_is_committed_is_there_byte_for_byte(place: Place, opened: Sink) -> None:
    opened.write([event(1), event(2), letter(1)])
    opened.write([event(3)])
    opened.commit(checkpoint(3))
    assert place.published() == [event(number).data for number in (1, 2, 3)]
    assert place.dead() == [letter(1).data]


def test_it_is_known_to_the_next_one(place: Place, opened: Sink) -> None:
    opened.write([event(1), letter(1)])
    opened.commit(checkpoint(1))
    opened.close()
    sink = place.sink()
    found = Known(sink)
    assert found.checkpoint == checkpoint(1)
    assert event(1) in found
    assert letter(1) in found
    assert event(2) not in found
    assert not found.asks
    sink.close()


def test_equal_events_without_an_identity_are_each_there_and_known(
    place: Place, opened: Sink
) -> None:
    """Only the publisher's numbers distinguish them; see `core.occurrences`."""
    data = b'{"meta":{"topic":"%s","partition":0}}' % SOURCE[0].encode()
    key = event(0).key
    first = fallback_identity(SOURCE, START_MS + 1, data)
    unique = f"{first}-x{0:016x}-1"
    names = (first, f"{first}-2", unique)
    same = [Event(name, SOURCE, START_MS + 1, "", key, data) for name in names]
    stray = same[0]._replace(identity=f"{first}-x{0:016x}-2", source=UNKNOWN_SOURCE)
    letters = [letter(1)._replace(identity=f"{letter(1).identity}{end}") for end in ("", "-2")]
    # Mixed with events that may take another path into the destination.
    opened.write([event(1), *same, event(2), stray, event(3), *letters])
    opened.commit(checkpoint(3))
    assert sorted(place.published()) == sorted([event(n).data for n in (1, 2, 3)] + [data] * 4)
    assert place.dead() == [letter(1).data] * 2
    opened.close()
    sink = place.sink()
    found = Known(sink)
    sink.close()
    everything: list[Event] = [*same, stray, *letters, event(1), event(3)]
    for published in everything:
        assert published in found
    assert same[0]._replace(identity=f"{first}-3") not in found
    sources = {entry.fingerprint: entry.source for entry in found.window}
    assert sources[fingerprint(unique)] == SOURCE
    assert sources[fingerprint(stray.identity)] == UNKNOWN_SOURCE


def test_what_is_not_committed_is_not_covered(place: Place, opened: Sink) -> None:
    opened.write([event(1)])
    opened.commit(checkpoint(1))
    opened.write([event(2)])
    opened.close()
    sink = place.sink()
    found = Known(sink)
    assert found.checkpoint == checkpoint(1)
    assert place.published() == [event(1).data]
    sink.commit(checkpoint(9))
    assert place.published() == [event(1).data], "the events of an earlier instance came back"
    sink.close()


def test_the_position_may_move_without_events(place: Place, opened: Sink) -> None:
    opened.commit(checkpoint(7))
    opened.commit(checkpoint(8))
    opened.close()
    sink = place.sink()
    assert sink.open(resume=True).checkpoint == checkpoint(8)
    sink.close()


def test_without_resume_all_is_known_as_well(place: Place, opened: Sink) -> None:
    opened.write([event(1)])
    opened.commit(checkpoint(1))
    opened.close()
    sink = place.sink()
    found = Known(sink, resume=False)
    assert found.checkpoint == checkpoint(1)
    assert event(1) in found
    sink.close()


def test_of_two_instances_one_is_kept_out(
    place: Place, opened: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "LOCK_WAIT_SECONDS", 0.0)
    opened.write([event(1)])
    opened.commit(checkpoint(1))
    if place.guarantees.newest_wins:
        opened.write([event(2)])
        second = place.sink()
        found = Known(second)
        assert found.checkpoint == checkpoint(1)
        with pytest.raises(DestinationHeld):
            opened.commit(checkpoint(2))
    else:
        with pytest.raises(DestinationHeld):
            place.sink().open(resume=True)
        opened.close()
        second = place.sink()
        found = Known(second)
    assert event(1) in found
    assert event(2) not in found
    second.write([event(3)])
    second.commit(checkpoint(3))
    second.close()
    assert place.published() == [event(1).data, event(3).data]


def test_close_is_safe_at_any_time(place: Place) -> None:
    place.sink().close()
    sink = place.sink()
    sink.open(resume=True)
    sink.write([event(1)])
    sink.close()
    sink.close()
    assert place.published() == []


def test_many_events_of_one_commit(place: Place, opened: Sink) -> None:
    events = [event(number) for number in range(2500)]
    for begin in range(0, 2500, 100):
        opened.write(events[begin : begin + 100])
    opened.commit(checkpoint(2500))
    assert place.published() == [one.data for one in events]


def test_only_what_the_checkpoint_allows_is_forgotten(place: Place) -> None:
    """Despite restarts and other events it remembers at most twice what is needed."""
    needed = 40
    for begin in range(0, 600, 60):
        sink = place.sink()
        found = Known(sink)
        for number in range(max(begin - needed, 0), begin):
            assert event(number) in found
        for number in range(begin, begin + 60, 20):
            sink.write([event(at) for at in range(number, number + 20)])
            reached = checkpoint(number + 20)
            known_from = {SOURCE: START_MS + number + 20 - needed}
            sink.commit(replace(reached, known_from=known_from))
        sink.close()


def test_what_an_earlier_start_published_stays_known(place: Place, opened: Sink) -> None:
    """A new start begins far back, and needs the window of the one before once it has caught up."""
    for number in range(50, 60):
        opened.write([event(number)])
        opened.commit(replace(checkpoint(number + 1), known_from={SOURCE: START_MS + 40}))
    opened.close()
    sink = place.sink()
    before = Known(sink, resume=False)
    assert all(event(number) in before for number in range(50, 60))
    sink.commit(Checkpoint({}, START_MS - 5_000, 0))
    for number in range(0, 40, 2):
        sink.write([event(number), event(number + 1)])
        known_from = {SOURCE: START_MS + number - 10}
        sink.commit(replace(checkpoint(number + 2), known_from=known_from))
        if number % 10 == 0:
            sink.close()
            sink = place.sink()
            found = Known(sink)
            assert all(event(one) in found for one in range(50, 60)), number
            assert all(event(one) in found for one in range(max(number - 8, 0), number + 2))
    sink.close()


def test_a_topic_that_stands_still_is_known_for_ever(place: Place) -> None:
    idle = ("codfw.x", 0)

    def of_idle(number: int) -> Event:
        data = event(number).data.replace(SOURCE[0].encode(), b"codfw.x")
        key = compose_id({SOURCE: 1, idle: START_MS + number + 1}).encode()
        return event(number)._replace(source=idle, data=data, key=key)

    position = {SOURCE: START_MS, idle: START_MS + 5}
    sink = place.sink()
    sink.open(resume=True)
    sink.write([of_idle(number) for number in range(5)])
    sink.commit(Checkpoint(position, START_MS, START_MS))
    for number in range(1_000, 21_000, 1_000):
        if number % 5_000 == 0:
            sink.close()
            sink = place.sink()
            found = Known(sink)
            assert all(of_idle(one) in found for one in range(5)), number
        sink.write([event(number)])
        position = {SOURCE: START_MS + number + 1, idle: START_MS + 5}
        known_from = {SOURCE: START_MS + number - 500, idle: START_MS - 500}
        sink.commit(Checkpoint(position, START_MS, START_MS + number, known_from=known_from))
    sink.close()
