"""The proof of the promise: every upstream event once and in order, whatever happens.

A model of the upstream (topic logs, timestamp resolution, ids) and of the core's surroundings (reader,
queue, publisher, two kinds of destination) runs the real `ResumeCursor`, `Window`, `Admission`,
`Readback` and `Checkpoint` through appends, cuts, crashes, lagging publishers and clocks that are set
back.

Law, for each topic: the published events are one contiguous run of its log, each event once, in order,
without canaries. The run begins with the first event delivered in the generation that first committed a
position of the topic. It contains every event dated at or after the start. Once everything is delivered
and committed, it ends where the log ends.

The model assumes that a topic without a committed position is requested from the start time on again;
nothing is promised of events dated before the start, even if one of them was delivered before a cut or
crash. It also assumes that the empty batch that opens the first connection is committed before any
other; that no crash comes between the files of a topic's first events and the checkpoint that covers
them (otherwise only the order of events dated before the start is lost); and that the start is not in
the upstream's future if there are canaries.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pleiades.core.admission import Admission
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.columns import count_published
from pleiades.core.event import CANARY, Batch, Event, unpublished
from pleiades.core.fingerprint import fingerprint
from pleiades.core.readback import Readback, remembered_as
from pleiades.core.resume_cursor import ResumeCursor
from pleiades.core.sse_id import Assignment, TopicPartition, parse_id
from pleiades.core.window import Window

START = 1_000_000
"""Start of the model, ms; so early that misdating by years is a large part of it."""
NOT_FULL = 10**6
OUTPUT = ("topic", 0)


@dataclass(frozen=True)
class Entry:
    timestamp_ms: int
    identity: str
    canary: bool = False


class ModelUpstream:
    """Growing logs; `now_ms` is the upstream's own clock."""

    def __init__(self, rng: random.Random, topics: int, canaries: bool) -> None:
        self.rng = rng
        self.now_ms = START
        self.canaries = canaries
        self.logs: dict[TopicPartition, list[Entry]] = {
            (f"dc{number}.stream", 0): [] for number in range(topics)
        }
        self._created = 0

    def append(self, source: TopicPartition) -> None:
        rng, log = self.rng, self.logs[source]
        self.now_ms += rng.choice((0, 0, 1, 1, 2, 7, 40))
        kind = rng.randrange(24)
        if self.canaries and kind == 0:
            entry = Entry(self.now_ms, f"canary-{len(log)}", canary=True)
            log.append(entry)
            return
        timestamp_ms = self.now_ms
        if kind in (1, 2, 3, 4):
            timestamp_ms -= rng.randrange(1, 60)
        elif kind in (5, 6):
            timestamp_ms = rng.randrange(1, START)
        elif kind == 7:
            timestamp_ms += 3_000
        self._created += 1
        log.append(Entry(timestamp_ms, f"event-{self._created}"))

    def resolve(self, source: TopicPartition, asked_ms: int) -> int:
        """The earliest offset with a timestamp at or after the requested one; past the end: latest."""
        log = self.logs[source]
        for offset, entry in enumerate(log):
            if entry.timestamp_ms >= asked_ms:
                return offset
        return len(log)


class ModelConnection:
    def __init__(self, upstream: ModelUpstream, asked: Mapping[TopicPartition, int]) -> None:
        self.upstream = upstream
        self.offsets = {source: upstream.resolve(source, ms) for source, ms in asked.items()}
        self.reached: dict[TopicPartition, int | None] = dict.fromkeys(asked)

    def next(self) -> tuple[TopicPartition, int, tuple[Assignment, ...]] | None:
        """The next event of any topic, as (source, offset, id); None if all topics are at their ends."""
        logs = self.upstream.logs
        waiting = [source for source, at in self.offsets.items() if at < len(logs[source])]
        if not waiting:
            return None
        source = self.upstream.rng.choice(waiting)
        offset = self.offsets[source]
        self.offsets[source] += 1
        self.reached[source] = logs[source][offset].timestamp_ms + 1
        return source, offset, tuple(Assignment(*entry) for entry in self.reached.items())


@dataclass
class Relay:
    """Reader, queue and publisher around the core, and the destination."""

    rng: random.Random
    upstream: ModelUpstream
    overlap_ms: int
    window_ms: int
    files: bool
    started_ms: int
    stored: Checkpoint | None = None
    stored_readback: Readback | None = None
    published: list[tuple[TopicPartition, Entry]] = field(default_factory=list)
    begins: dict[TopicPartition, int] = field(default_factory=dict)
    """The offset in a topic's log at which the promise begins."""
    seen: Counter[str] = field(default_factory=Counter)
    wall_ms: int = START

    def __post_init__(self) -> None:
        self.start_generation()

    def make_course(self, checkpoint: Checkpoint) -> ResumeCursor:
        return ResumeCursor(checkpoint.started_ms, self.overlap_ms, dict(checkpoint.position))

    def make_window(self) -> Window:
        return Window(self.window_ms, NOT_FULL)

    def start_generation(self) -> None:
        checkpoint = self.stored or Checkpoint({}, self.started_ms, 0)
        self.checkpoint = checkpoint
        self.clock_ms = checkpoint.clock_ms
        self.course = self.make_course(checkpoint)
        self.window = self.make_window()
        self.in_flight: list[tuple[TopicPartition, Entry]] = []
        self.queue: deque[Batch] = deque()
        self.connection: ModelConnection | None = None
        self.connections = 0
        self.first_offsets: dict[TopicPartition, int] = {}
        self.on_disk: set[str] = set()
        if self.files:
            self.on_disk = {entry.identity for _, entry in self.published}
        else:
            self.readback = self.stored_readback or Readback(self.ends(), 0)
            self.window.restore(checkpoint.position, self.read_back())
            self.window.advance(checkpoint.position, checkpoint.clock_ms)
        self.admission = Admission(self.window)
        if self.stored is None:
            self.connect()
            self.take()
            self.commit()

    def ends(self) -> dict[tuple[str, int], int]:
        return {OUTPUT: len(self.published)}

    def read_back(self) -> Iterator[tuple[TopicPartition, int, bytes]]:
        """The records that a restart reads back."""
        self.seen["not read back"] += len(self.published)
        for part in self.readback.parts(self.ends()):
            self.seen["not read back"] -= part.end[OUTPUT] - part.begin[OUTPUT]
            for at in range(part.begin[OUTPUT], part.end[OUTPUT]):
                source, entry = self.published[at]
                name = remembered_as(source, part.reached, letter=False)
                if name in part.reached:
                    yield name, part.reached[name], fingerprint(entry.identity)

    # The reader.

    def read_clock(self) -> int:
        self.clock_ms = max(self.clock_ms, self.wall_ms)
        return self.clock_ms

    def connect(self) -> None:
        self.connections += 1
        self.seen["connections"] += 1
        asked = self.course.last_event_id(self.read_clock())
        if asked is None:
            wanted = dict.fromkeys(self.upstream.logs, self.course.started_ms)
        else:
            wanted = {source: ms or 0 for source, ms in parse_id(asked.encode())}
        self.connection = ModelConnection(self.upstream, wanted)
        self.send([])

    def read(self, most: int) -> int:
        """Read up to `most` events in one chunk; returns their number."""
        assert self.connection is not None
        received: list[tuple[TopicPartition, int, tuple[Assignment, ...]]] = []
        while len(received) < most and (delivered := self.connection.next()) is not None:
            received.append(delivered)
            source, offset, assignments = delivered
            self.course.observe({source: ms or 0 for source, ms in assignments})
            self.first_offsets.setdefault(source, offset)
        if received:
            self.send(received)
        return len(received)

    def send(self, received: Iterable[tuple[TopicPartition, int, tuple[Assignment, ...]]]) -> None:
        events: list[Event] = []
        batch = Batch(0, self.connections, [], {}, self.course.started_ms, self.read_clock())
        for source, offset, assignments in received:
            for named, timestamp_ms in assignments:
                if (timestamp_ms or 0) > batch.timestamps_ms.get(named, -1):
                    batch.timestamps_ms[named] = timestamp_ms or 0
            entry = self.upstream.logs[source][offset]
            if entry.canary:
                events.append(unpublished(source, entry.timestamp_ms + 1, CANARY))
            else:
                events.append(
                    Event(entry.identity, source, entry.timestamp_ms + 1, "", b"", b"%d" % offset)
                )
        self.queue.append(batch._replace(events=events))

    # The publisher.

    def knows(self, candidate: Event) -> bool:
        return candidate.identity in self.on_disk

    def take(self) -> None:
        batch = self.queue.popleft()
        admitted = self.admission.admit(batch, self.checkpoint, self.knows)
        assert count_published(batch.events) == (
            len(admitted.events) + admitted.repeated + admitted.before_start
        )
        self.seen["repeated"] += admitted.repeated
        self.seen["before start"] += admitted.before_start
        self.checkpoint = self.checkpoint.advanced(
            admitted.timestamps_ms, batch.started_ms, batch.clock_ms
        )
        written = [
            (event.source, self.upstream.logs[event.source][int(event.data)])
            for event in admitted.events
        ]
        if self.files:
            self.published += written
            self.on_disk.update(entry.identity for _, entry in written)
            if any(source not in self.begins for source, _ in written):
                self.commit()
        else:
            self.in_flight += written

    def commit(self) -> None:
        self.published += self.in_flight
        self.checkpoint = self.checkpoint.remembering(self.window_ms)
        self.stored = self.checkpoint
        if not self.files:
            sources = {source for source, _ in self.in_flight}
            self.readback = self.readback.committed(self.checkpoint, sources, (), "letters")
            self.stored_readback = self.readback
            if self.readback.is_mark_due(self.checkpoint):
                self.readback = self.readback.marked(self.ends(), 0)
        self.in_flight = []
        self.window.advance(self.checkpoint.position, self.checkpoint.clock_ms)
        for source, reached in self.checkpoint.position.items():
            if reached:
                self.begins.setdefault(source, self.first_offsets.get(source, -1))

    # The law.

    def check(self, complete: bool) -> None:
        """Check the law on the durable state; `complete`: everything was delivered and committed."""
        for source, log in self.upstream.logs.items():
            published = [entry for topic, entry in self.published if topic == source]
            offsets = [log.index(entry) for entry in published]
            assert offsets == sorted(set(offsets)), "out of order or more than once"
            begin = self.begins.get(source)
            if begin is None:
                assert not complete or not any(e.timestamp_ms >= self.started_ms for e in log)
                continue
            after_start = self.upstream.resolve(source, self.started_ms)
            assert begin <= after_start, "begins after the start"
            promised = [entry for entry in log[begin:] if not entry.canary]
            assert published == promised[: len(published)], "events are missing or foreign"
            assert not complete or published == promised, "the end is missing"


def run_scenario(
    rng: random.Random, relay_type: type[Relay] = Relay, steps: int = 60
) -> Counter[str]:
    """Run one random scenario; returns what happened in it."""
    canaries = rng.random() < 0.3
    upstream = ModelUpstream(rng, rng.randrange(1, 4), canaries)
    sources = list(upstream.logs)
    # Some topics are idle at first.
    awake = [source for source in sources if rng.random() < 0.7]
    for _ in range(rng.randrange(20) if awake else 0):
        upstream.append(rng.choice(awake))
    overlap_ms = rng.choice((1, 1, 2, 10, 60, 400))
    start_error = 0 if canaries else rng.choice((0, 0, 0, 30, 300))
    relay = relay_type(
        rng,
        upstream,
        overlap_ms,
        overlap_ms + rng.choice((0, 0, 1, 50)),
        rng.random() < 0.5,
        upstream.now_ms - rng.choice((0, overlap_ms, 200)) + start_error,
    )
    for _ in range(steps):
        _step(rng, upstream, relay, sources)
    if relay.connection is None:
        relay.connect()
    while relay.read(rng.randrange(1, 5)):
        pass
    while relay.queue:
        relay.take()
    relay.commit()
    relay.check(complete=True)
    relay.seen["events"] += len(relay.published)
    return relay.seen


def _step(
    rng: random.Random,
    upstream: ModelUpstream,
    relay: Relay,
    sources: list[TopicPartition],
) -> None:
    relay.wall_ms += rng.choice((0, 0, 1, 10, 50))
    action = rng.randrange(20)
    if action < 6:
        for _ in range(rng.randrange(1, 5)):
            upstream.append(rng.choice(sources))
    elif action < 12:
        if relay.connection is None:
            relay.connect()
        relay.read(rng.randrange(1, 8))
    elif action < 15:
        if relay.queue:
            relay.take()
    elif action < 16:
        relay.commit()
        relay.check(complete=False)
    elif action < 18:
        relay.connection = None
    elif action < 19:
        relay.wall_ms = upstream.now_ms + rng.choice((0, 0, 0, 5, 2_000, -50, -900_000))
    else:
        relay.start_generation()
        relay.check(complete=False)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_every_event_once_and_in_order(rng: random.Random) -> None:
    run_scenario(rng)


def test_random_lives_reach_every_corner() -> None:
    seen: Counter[str] = Counter()
    for seed in range(250):
        seen += run_scenario(random.Random(seed))
    assert seen["before start"] > 15
    assert seen["repeated"] > 175
    assert seen["connections"] > 875
    for seed in range(20):
        seen += run_scenario(random.Random(seed), steps=600)
    assert seen["not read back"] > 80


class FixedCountWindow(Window):
    """Remembers only the last five identities."""

    def advance(self, position: Mapping[TopicPartition, int], clock_ms: int) -> None:
        for queue in (*self._queues.values(), *(queue for _, queue in self._restored)):
            self._known.difference_update(queue.take_oldest(max(len(self) - 5, 0)))


class LastIdCourse(ResumeCursor):
    """Resumes with the last id, as usual clients do."""

    def observe(self, delivered: Mapping[TopicPartition, int]) -> None:
        self.position.update(delivered)

    def asked_from(self, source: TopicPartition, clock_ms: int) -> int:
        return self.position[source] or 10 * START


class ForgetfulRelay(Relay):
    def make_window(self) -> Window:
        return FixedCountWindow(self.window_ms, NOT_FULL)


class NaiveRelay(Relay):
    def make_course(self, checkpoint: Checkpoint) -> ResumeCursor:
        return LastIdCourse(checkpoint.started_ms, self.overlap_ms, dict(checkpoint.position))


@pytest.mark.parametrize("relay_type", [ForgetfulRelay, NaiveRelay])
def test_the_law_tells_a_wrong_relay(relay_type: type[Relay]) -> None:
    wrong = 0
    for seed in range(200):
        try:
            run_scenario(random.Random(seed), relay_type)
        except AssertionError:
            wrong += 1
    assert wrong > 10
