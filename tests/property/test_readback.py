"""Whatever is published, idle or restarted, a restart reads back every record that can be repeated, and
little else."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pleiades.core.checkpoint import Checkpoint
from pleiades.core.readback import (
    MAX_SEGMENTS,
    OutputPartition,
    Readback,
    remembered_as,
    runs,
)
from pleiades.core.sse_id import UNKNOWN_SOURCE, TopicPartition
from pleiades.sinks.kafka.offset_metadata import encode, read_stored

WINDOW_MS = 100
START_MS = 1_000_000
LETTERS = "out-dead-letters"
POSITION_AT = ("out", 0)
SOURCES: list[TopicPartition] = [("eqiad.x", 0), ("codfw.x", 0), ("eqiad.y", 1)]


@dataclass
class Record:
    """A record in the output, with the facts about it."""

    source: TopicPartition
    reached_ms: int
    """The position of its source, in the start that published it."""
    forgotten: bool = False
    """True if a checkpoint has released it: no later start may need it."""


@dataclass
class Topic:
    """Output partitions; other writers' records are None."""

    partitions: dict[OutputPartition, list[Record | None]] = field(
        default_factory=lambda: {("out", 0): [], (LETTERS, 0): []}
    )

    def ends(self) -> dict[OutputPartition, int]:
        return {at: len(records) for at, records in self.partitions.items()}


class Life:
    """One random life of a relay."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.topic = Topic()
        self.awake = list(SOURCES)
        self.clock_ms = START_MS
        self.window_ms = WINDOW_MS
        self.checkpoint = Checkpoint({}, START_MS, 0)
        self.readback = Readback(self.topic.ends(), self.clock_ms)
        self.most_read = 0
        self.seen: Counter[str] = Counter()

    def publish(self) -> None:
        rng = self.rng
        self.clock_ms += rng.choice((0, 1, 5, 20, 60))
        timestamps = {}
        # Idle topics stay in the position.
        for source in self.awake:
            ahead_ms = 500 if rng.random() < 0.02 else 0
            timestamps[source] = self.clock_ms - rng.choice((0, 3, 900_000)) + ahead_ms
        checkpoint = self.checkpoint.advanced(timestamps, START_MS, self.clock_ms)
        checkpoint = checkpoint.remembering(self.window_ms)
        sources = [rng.choice(self.awake) for _ in range(rng.randrange(6))] if self.awake else []
        if rng.random() < 0.05:
            sources.append(rng.choice((UNKNOWN_SOURCE, ("left.out", 0))))
        events: set[TopicPartition] = set()
        letters: set[TopicPartition] = set()
        for source in sources:
            letter = rng.random() < 0.05
            (letters if letter else events).add(source)
            at = (LETTERS, 0) if letter else rng.choice(self.outputs())
            self.topic.partitions[at].append(Record(source, checkpoint.reached(source)))
        self.readback = self.readback.committed(checkpoint, events, letters, LETTERS)
        self.checkpoint = checkpoint
        self.mark_if_due()

    def outputs(self) -> list[OutputPartition]:
        return [at for at in self.topic.partitions if at[0] == "out"]

    def mark_if_due(self) -> None:
        # The broker does not always answer.
        if self.readback.is_mark_due(self.checkpoint) and self.rng.random() < 0.8:
            self.readback = self.readback.marked(self.topic.ends(), self.clock_ms)
            self.seen["marks"] += 1

    def restart(self) -> None:
        """Keep only the stored state."""
        texts = encode(self.checkpoint, self.readback, "ab", POSITION_AT)
        found = read_stored(texts, POSITION_AT)
        assert found.checkpoint == self.checkpoint
        assert found.readback is not None
        assert found.readback == self.readback
        self.readback = found.readback

    def step(self) -> None:
        rng = self.rng
        action = rng.randrange(40)
        if action < 30:
            self.publish()
        elif action < 32:
            self.restart()
        elif action == 32:
            self.awake = [source for source in SOURCES if rng.random() < 0.6]
        elif action == 33:
            self.topic.partitions[rng.choice(self.outputs())] += [None] * rng.randrange(50)
        elif action == 34 and rng.random() < 0.3:
            self.topic.partitions["out", len(self.outputs())] = []
        elif action == 35:
            self.readback = self.readback.merged(rng.randrange(1, MAX_SEGMENTS))
        elif action == 36 and rng.random() < 0.3:
            # A new start from far back, into the same topic.
            self.checkpoint = self.checkpoint.restarted(START_MS - 5_000)
            self.seen["new starts"] += 1
        elif action == 37:
            self.window_ms = rng.choice((10, WINDOW_MS, 300))
        self.check()

    def check(self) -> None:
        known: dict[tuple[OutputPartition, int], int] = {}
        ends = self.topic.ends()
        for run in runs(self.readback.parts(ends)):
            for part in run:
                for at, end in part.end.items():
                    for offset in range(part.begin.get(at, 0), end):
                        record = self.topic.partitions[at][offset]
                        assert (at, offset) not in known, "read twice"
                        known[at, offset] = -1
                        if record is None:
                            continue
                        name = remembered_as(record.source, part.reached, at[0] == LETTERS)
                        if name in part.reached:
                            known[at, offset] = part.reached[name]
        for at, records in self.topic.partitions.items():
            for offset, record in enumerate(records):
                if record is None:
                    continue
                source = record.source if record.source in SOURCES else UNKNOWN_SOURCE
                known_ms = self.checkpoint.known_from.get(source, 0)
                record.forgotten = record.forgotten or record.reached_ms < known_ms
                if not record.forgotten:
                    assert known.get((at, offset), -1) >= record.reached_ms, "forgotten"
        assert len(self.readback.closed) <= MAX_SEGMENTS
        self.seen["not read"] += sum(ends.values()) - len(known)
        self.seen["read"] += len(known)


@given(st.integers(0, 2**32))
def test_all_that_can_be_repeated_is_read(seed: int) -> None:
    life = Life(random.Random(seed))
    for _ in range(60):
        life.step()


def test_random_lives_reach_every_corner() -> None:
    seen: Counter[str] = Counter()
    for seed in range(40):
        life = Life(random.Random(seed))
        for _ in range(250):
            life.step()
        seen += life.seen
    assert seen["marks"] > 500
    assert seen["new starts"] > 12
    assert seen["not read"] > seen["read"]


@settings(max_examples=8)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_what_stands_still_costs_at_most_two_of_its_windows(seed: int, idle: int) -> None:
    """However long the topic is idle, and however often the relay restarts in the meantime."""
    rng = random.Random(seed)
    sources = [(f"t{number}.x", 0) for number in range(idle + 1)]
    busy = sources[0]
    readback = Readback({("out", 0): 0}, 0)
    position, published = {}, 0
    awake = list(sources)
    checkpoint = Checkpoint({}, 0, 0)
    for clock_ms in range(START_MS, START_MS + 4_000):
        # One topic after another leaves for good.
        if clock_ms % 500 == 0 and len(awake) > 1:
            awake.remove(rng.choice(awake[1:]))
        position.update(dict.fromkeys(awake, clock_ms))
        checkpoint = replace(checkpoint, position=dict(position), clock_ms=clock_ms)
        checkpoint = checkpoint.remembering(WINDOW_MS)
        published += len(awake)
        readback = readback.committed(checkpoint, awake, [], LETTERS)
        if readback.is_mark_due(checkpoint):
            readback = readback.marked({("out", 0): published}, clock_ms)
        if rng.random() < 0.1:
            texts = encode(checkpoint, readback, "ab", POSITION_AT)
            found = read_stored(texts, POSITION_AT)
            assert found.readback is not None
            readback = found.readback
    assert awake == [busy]
    per_window = WINDOW_MS * len(sources)
    read = sum(
        part.end["out", 0] - part.begin["out", 0]
        for part in readback.parts({("out", 0): published})
    )
    assert read <= 2 * per_window * len(sources)
