"""The memory of destinations under random histories with crashes between durable steps.

The real publisher, with the real window and admission, publishes into real sinks, fed by a model of the
upstream (`test_exactly_once`). A history consists of events that are dated back and ahead, cuts,
crashes at random steps, new starts with `--resume=false --since=TIME`, other lengths of the overlap and
the window, idle topics, and users who take files as soon as they have their names.

Law: at the end every event from the last start on is published, and no event twice. Two kinds of events
are excepted: those that a start from now on received although they are dated before it
(`History.note_early`), and the last ones before a gap that a start with a later `--since` leaves.

The number of histories is small by default; `DESTINATION_HISTORIES=10000` is the proof.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Protocol, cast

import pytest

from pleiades.config.settings import Settings
from pleiades.core.admission import young
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import CANARY, Batch, End, Event, unpublished
from pleiades.core.fingerprint import fingerprint
from pleiades.core.position import Position, join
from pleiades.core.readback import OutputPartition, Readback, Segment, remembered_as
from pleiades.core.resume_cursor import ResumeCursor
from pleiades.core.sse_id import Assignment, TopicPartition, compose_id
from pleiades.publisher import Publisher
from pleiades.runtime import faultpoints
from pleiades.runtime.channel import Channel
from pleiades.runtime.metrics import Metrics
from pleiades.sinks import disk, identities
from pleiades.sinks.archive import closing
from pleiades.sinks.archive.destination import ArchiveDestination, Options
from pleiades.sinks.archive.sink import ArchiveSink
from pleiades.sinks.base import Committed, Opened, Remembered, Sink
from pleiades.sinks.files import staging
from pleiades.sinks.files.destination import SYNC_NONE, FilesDestination
from pleiades.sinks.files.sink import FilesSink
from pleiades.sinks.kafka.offset_metadata import encode, read_stored
from pleiades.sinks.retry import Retry
from tests.harness import archived
from tests.harness.finisher import InlineFinisher
from tests.harness.memory import MemorySink, MemoryStore
from tests.property.test_exactly_once import START, ModelConnection, ModelUpstream
from tests.unit.conftest import FakeChannel, FakeChildContext

HISTORIES = int(os.environ.get("DESTINATION_HISTORIES", "75"))
STEPS = 120
MAX_STARTS = 1_000
MEMORY = Path("/dev/shm")  # noqa: S108  # a folder of a random name is made in it
CRASH_ODDS = (10, 40, 200)
"""One in this many passed fault points is a crash; each history uses one of these odds."""


class Crash(BaseException):
    """The process has died."""


class World(Protocol):
    """A destination with its durable state."""

    def sink(self) -> Sink:
        """Return the sink of a new process."""
        ...

    def published(self) -> list[str]:
        """The identities of all events ever visible in it, in the order of appearance."""
        ...

    def consume(self, rng: random.Random) -> None:
        """Do what users do with published events."""
        ...


class MemoryWorld:
    """The simplest form of the contract."""

    def __init__(self) -> None:
        self.store = MemoryStore()

    def sink(self) -> Sink:
        self.store.held = False
        return MemorySink(self.store)

    def published(self) -> list[str]:
        return [event.identity for event in self.store.events]

    def consume(self, rng: random.Random) -> None:
        pass


class FilesWorld:
    """A directory."""

    def __init__(self, folder: Path, seen: list[str], metrics: Metrics) -> None:
        self.folder = folder
        self.seen = seen
        self.metrics = metrics

    def sink(self) -> Sink:
        files = FilesDestination("recentchange", self.folder / "events", SYNC_NONE)
        return FilesSink(
            files,
            Retry(
                FakeChildContext(stop_at_pause=1),
                self.metrics.file_errors,
                files.publish_dir,
                files.directory_flag,
            ),
            10**6,
        )

    def published(self) -> list[str]:
        return self.seen

    def consume(self, rng: random.Random) -> None:
        for path in (self.folder / "events").glob("[0-9]*/*.json"):
            if rng.random() < 0.8:
                path.unlink()


class NamedSink(ArchiveSink):
    """Writes the identity of each event as its line: the model's events have no data."""

    def write(self, events: Sequence[Event]) -> None:
        super().write([event._replace(data=event.identity.encode()) for event in events])


class ArchiveWorld:
    """An archive whose segments are closed all the time, and taken away."""

    def __init__(self, folder: Path, metrics: Metrics) -> None:
        self.folder = folder
        self.metrics = metrics
        self.taken: list[str] = []
        self.clock_ms = START

    def sink(self) -> Sink:
        archive = ArchiveDestination(
            "recentchange", self.folder, rotate_seconds=0.05, rotate_bytes=200
        )
        retry = Retry(
            FakeChildContext(stop_at_pause=1), self.metrics.archive.errors, self.folder, ""
        )
        sink = archive.sink(retry, InlineFinisher(), Options(10**6), self.now_ms)
        sink.__class__ = NamedSink
        return sink

    def now_ms(self) -> int:
        self.clock_ms += 1
        return self.clock_ms

    def published(self) -> list[str]:
        return [*self.taken, *(line.decode() for line in archived.lines(self.folder))]

    def consume(self, rng: random.Random) -> None:
        for path in archived.closed(self.folder):
            if rng.random() < 0.8:
                self.taken += archived.text_of(path).decode().split()
                path.unlink()


class TopicWorld:
    """Output partitions, and the metadata stored with their offsets."""

    def __init__(self) -> None:
        self.partitions: dict[OutputPartition, list[tuple[TopicPartition, str]]] = {
            ("out", 0): [],
            ("out", 1): [],
        }
        self.texts: dict[OutputPartition, str] = {}
        self.order: list[str] = []

    def sink(self) -> Sink:
        return TopicSink(self)

    def published(self) -> list[str]:
        return self.order

    def consume(self, rng: random.Random) -> None:
        if rng.random() < 0.1:
            # A user adds a partition.
            self.partitions["out", len(self.partitions)] = []

    def ends(self) -> dict[OutputPartition, int]:
        return {at: len(records) for at, records in self.partitions.items()}


class TopicSink:
    """The memory of the Kafka sink, without Kafka: one commit is one step."""

    def __init__(self, world: TopicWorld) -> None:
        self._world = world
        self._readback = Readback(world.ends(), 0)
        self._written: list[Event] = []

    def open(self, resume: bool) -> Opened:
        world, ends = self._world, self._world.ends()
        if not world.texts:
            return Opened(None)
        stored = read_stored(world.texts, ("out", 0))
        assert stored.readback is not None
        self._readback = stored.readback
        if self._readback.is_mark_due(stored.checkpoint):
            self._readback = self._readback.marked(ends, 0)
        return Opened(stored.checkpoint, self._window(list(self._readback.parts(ends))))

    def _window(self, parts: list[Segment]) -> Iterator[Remembered]:
        for part in parts:
            for at, end in part.end.items():
                for source, identity in self._world.partitions[at][part.begin.get(at, 0) : end]:
                    name = remembered_as(source, part.reached, letter=False)
                    if name in part.reached:
                        yield Remembered(name, part.reached[name], fingerprint(identity))

    def is_published(self, event: Event) -> bool:
        return False

    def write(self, events: Sequence[Event]) -> None:
        self._written += events

    def commit(self, checkpoint: Checkpoint) -> Committed:
        world = self._world
        sources = {event.source for event in self._written}
        readback = self._readback.committed(checkpoint, sources, (), "letters")
        texts = encode(checkpoint, readback, "ab", ("out", 0))
        faultpoints.passing(faultpoints.PRODUCED)
        for event in self._written:
            at = "out", len(event.identity + event.source[0]) * 7 % len(world.partitions)
            world.partitions[at].append((event.source, event.identity))
            world.order.append(event.identity)
        world.texts = texts
        self._readback, self._written = readback, []
        faultpoints.passing(faultpoints.COMMITTED)
        if self._readback.is_mark_due(checkpoint):
            self._readback = self._readback.marked(world.ends(), 0)
        return Committed([])

    def poll(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self._written = []


@pytest.fixture(params=["memory", "files", "archive", "topic"])
def world_of(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, metrics: Metrics
) -> Iterator[Callable[[], World]]:
    if request.param == "memory":
        yield MemoryWorld
        return
    if request.param == "topic":
        yield TopicWorld
        return
    # In memory if possible: thousands of histories write many small files.
    folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    if request.param == "archive":
        monkeypatch.setattr(identities, "MIN_COMPACTED_BYTES", 5_000)
        turns = cycle((0, closing.SMALL_BYTES))

        def make_archive() -> World:
            # In turns with a finisher, and without.
            monkeypatch.setattr(closing, "SMALL_BYTES", next(turns))
            shutil.rmtree(folder / "archive", ignore_errors=True)
            return ArchiveWorld(folder / "archive", metrics)

        yield make_archive
        shutil.rmtree(folder)
        return
    seen: list[str] = []
    rename_new = disk.rename_new

    def noting(name: str, source: int, new: str, target: int) -> bool:
        done = rename_new(name, source, new, target)
        if done:
            seen.append(new.partition("Z-")[2].removesuffix(".json"))
        return done

    monkeypatch.setattr(staging, "rename_new", noting)
    monkeypatch.setattr(identities, "MIN_COMPACTED_BYTES", 2_000)

    def make() -> World:
        seen.clear()
        shutil.rmtree(folder / "events", ignore_errors=True)
        return FilesWorld(folder, seen, metrics)

    yield make
    shutil.rmtree(folder)


class History:
    """One random history of a destination."""

    def __init__(
        self, rng: random.Random, world: World, metrics: Metrics, settings: Settings
    ) -> None:
        self.rng = rng
        self.world = world
        self.metrics = metrics
        self.settings = settings
        self.upstream = ModelUpstream(rng, rng.randrange(1, 4), rng.random() < 0.3)
        self.sources = list(self.upstream.logs)
        self.awake = [source for source in self.sources if rng.random() < 0.7]
        self.seen: Counter[str] = Counter()
        self.publisher: Publisher | None = None
        self.reached: Position = {}
        """The furthest position of any start."""
        self.early: set[str] = set()
        self.clock_ms = START
        for _ in range(rng.choice((0, 20))):
            self.append()
        self.since_ms = self.upstream.now_ms - rng.choice((200, 60, 0))
        self.overlap_ms = rng.choice((1, 2, 10, 60, 400))
        self.window_ms = self.overlap_ms + rng.choice((0, 1, 50))
        self.append()
        self.start(resume=True)

    # The upstream.

    def append(self) -> None:
        for _ in range(self.rng.randrange(1, 8) if self.awake else 0):
            self.upstream.append(self.rng.choice(self.awake))

    # The relay.

    def start(self, resume: bool) -> None:
        """Start a new process; it may crash at once."""
        self.end()
        settings = replace(
            self.settings,
            resume=resume,
            since_ms=self.since_ms,
            window_seconds=self.window_ms / 1000,
            upstream=replace(self.settings.upstream, overlap_seconds=self.overlap_ms / 1000),
        )
        for _ in range(MAX_STARTS):
            resumed: FakeChannel[Checkpoint] = FakeChannel()
            publisher = Publisher(
                FakeChildContext(0),
                self.metrics,
                settings,
                self.world.sink(),
                cast("Channel[Checkpoint]", resumed),
                cast("list[Channel[Batch | End]]", [FakeChannel()]),
            )
            try:
                publisher._open()
            except Crash:
                self.seen["crashes while opening"] += 1
                publisher._sink.close()
            else:
                break
        else:
            raise AssertionError("no start succeeds")
        self.publisher = publisher
        checkpoint = resumed.items[0]
        # A crash may have come just after a commit.
        self.reached = join(self.reached, checkpoint.position)
        self.course = ResumeCursor(
            checkpoint.started_ms,
            self.overlap_ms,
            dict(checkpoint.position),
            dict(checkpoint.known_from),
        )
        self.clock_ms = max(self.clock_ms, checkpoint.clock_ms)
        self.connection: ModelConnection | None = None
        self.connections = self.sequence = 0
        self.queue: list[Batch] = []

    def end(self) -> None:
        if self.publisher is not None:
            self.publisher._sink.close()
            self.publisher = None

    def connect(self) -> None:
        self.connections += 1
        self.clock_ms = max(self.clock_ms, self.upstream.now_ms)
        asked = self.course.request(self.clock_ms)
        self.asked = compose_id(asked) if asked else None
        # A start time only names the topics.
        for source in self.sources:
            asked.setdefault(source, self.course.started_ms)
        self.course.observe(dict.fromkeys(self.sources, 0))
        self.connection = ModelConnection(self.upstream, asked)
        self.send([])

    def read(self, most: int) -> int:
        if self.connection is None:
            self.connect()
        assert self.connection is not None
        received: list[tuple[TopicPartition, int, tuple[Assignment, ...]]] = []
        while len(received) < most and (delivered := self.connection.next()) is not None:
            received.append(delivered)
            self.course.observe({source: ms or 0 for source, ms in delivered[2]})
        if received:
            self.send(received)
        return len(received)

    def send(self, received: list[tuple[TopicPartition, int, tuple[Assignment, ...]]]) -> None:
        started_ms = self.course.started_ms
        batch = Batch(
            self.sequence,
            self.connections,
            [],
            {},
            started_ms,
            self.clock_ms,
            asked=self.asked,
        )
        self.sequence += 1
        batch.timestamps_ms.update(dict.fromkeys(self.sources, 0))
        events: list[Event] = []
        for source, offset, assignments in received:
            for named, timestamp_ms in assignments:
                batch.timestamps_ms[named] = max(batch.timestamps_ms[named], timestamp_ms or 0)
            entry = self.upstream.logs[source][offset]
            timestamp_ms = entry.timestamp_ms + 1
            if entry.canary:
                events.append(unpublished(source, timestamp_ms, CANARY))
            else:
                events.append(Event(entry.identity, source, timestamp_ms, "", b"", b"%d" % offset))
        self.queue.append(batch._replace(events=events))

    def relay(self, step: Callable[[Publisher], None]) -> None:
        """Run a step of the publisher, in which it may crash."""
        assert self.publisher is not None
        try:
            step(self.publisher)
        except Crash:
            self.seen["crashes"] += 1
            self.start(resume=True)

    def take(self) -> None:
        if self.queue:
            batch = self.queue.pop(0)
            self.relay(lambda publisher: publisher._take(batch))

    def commit(self) -> None:
        self.relay(self.committed)

    def committed(self, publisher: Publisher) -> None:
        publisher._commit()
        if self.since_ms > START - 500:
            self.note_early(publisher._checkpoint)
        self.reached = join(self.reached, publisher._checkpoint.position)

    def note_early(self, checkpoint: Checkpoint) -> None:
        """Note the first events of a topic that are dated before a start from now on that received
        them. A later start from before that time does not know that the earlier one has relayed them."""
        for source in young(checkpoint):
            log = self.upstream.logs[source]
            begin = self.upstream.resolve(source, checkpoint.started_ms)
            self.early.update(entry.identity for entry in log[:begin])

    # The events of a history.

    def step(self) -> None:
        rng = self.rng
        action = rng.randrange(24)
        if action < 6:
            self.append()
        elif action < 12:
            self.read(rng.randrange(1, 8))
        elif action < 16:
            self.take()
        elif action < 18:
            self.commit()
        elif action == 18:
            self.connection = None
        elif action == 19:
            self.world.consume(rng)
        elif action == 20:
            self.awake = [source for source in self.sources if rng.random() < 0.7]
        elif action == 21:
            self.start(resume=True)
        elif action == 22:
            self.seen["other lengths"] += 1
            self.overlap_ms = rng.choice((1, 2, 10, 60, 400))
            self.window_ms = self.overlap_ms + rng.choice((0, 1, 50, 1_000))
            self.start(resume=True)
        elif rng.random() < 0.4:
            self.begin_again()

    def begin_again(self) -> None:
        """Start with `--resume=false --since=TIME`, at a time that leaves no topic a gap: the last
        events before a gap would be forgotten."""
        delivered = [ms for ms in self.reached.values() if ms]
        latest = min(delivered, default=self.upstream.now_ms)
        self.since_ms = self.rng.choice((START - 500, latest - 5, latest - 300, latest - 60))
        self.seen["new starts"] += 1
        self.start(resume=False)

    def finish(self) -> None:
        """Deliver and commit all remaining events."""
        while self.read(self.rng.randrange(1, 20)):
            pass
        while self.queue:
            self.take()
        self.commit()
        self.end()

    def check(self) -> None:
        counted = Counter(self.world.published())
        twice = {identity for identity, times in counted.items() if times > 1}
        assert not twice - self.early, f"published twice: {twice}"
        for source, log in self.upstream.logs.items():
            begin = self.upstream.resolve(source, self.since_ms)
            lost = [e for e in log[begin:] if not e.canary and e.identity not in counted]
            assert not lost, f"lost: {lost}"
        self.seen["events"] += len(counted)


def live(
    seed: int, world: World, metrics: Metrics, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Counter[str]:
    """Run one history; returns what happened in it."""
    rng = random.Random(seed)
    deadly = random.Random(seed + 1)
    odds = deadly.choice(CRASH_ODDS)
    armed = True

    def passing(_point: str) -> None:
        if armed and deadly.randrange(odds) == 0:
            raise Crash

    monkeypatch.setattr(faultpoints, "passing", passing)
    history = History(rng, world, metrics, settings)
    for _ in range(STEPS):
        history.step()
    armed = False
    history.finish()
    history.check()
    return history.seen


def test_nothing_is_lost_or_doubled(
    world_of: Callable[[], World],
    metrics: Metrics,
    settings_of: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: Counter[str] = Counter()
    for seed in range(HISTORIES):
        try:
            seen += live(seed, world_of(), metrics, settings_of(), monkeypatch)
        except BaseException as error:
            error.add_note(f"in the history of seed {seed}")
            raise
    assert seen["events"] > 20 * HISTORIES
    assert seen["new starts"] > HISTORIES // 2
    assert seen["other lengths"] > HISTORIES
    assert seen["crashes"] > HISTORIES // 5
