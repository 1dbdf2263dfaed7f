"""Recovers position and window from the records of a topic beside which no position is stored.

Laws:
- The position is the join of the ids. It skips nothing that an upstream topic had still to deliver: a
  topic without a timestamp in the ids that were read is looked for further back, up to the whole topic.
  If it never delivered anything, it is asked for from the oldest event on, less the window.
- Where something stays unknown, the relay asks the upstream for more, and drops repeats of what it read.
- Only events of an ingest count: a replay may be far behind it, or ahead.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce

from pleiades.core.checkpoint import Checkpoint
from pleiades.core.position import Position, join
from pleiades.core.readback import UNKNOWN_LETTERS, Offsets, OutputPartition, Readback
from pleiades.core.sse_id import UNKNOWN_SOURCE
from pleiades.runtime.findings import now_ms
from pleiades.sinks.kafka.records import NO_STREAM, Published
from pleiades.sinks.kafka.topic_reader import TopicReader

log = logging.getLogger(__name__)

FIRST_RECORDS = 50_000
"""The first stretch that is read at the end of the topic; each further one is `GROWTH` times as long."""
GROWTH = 4
MAX_WINDOW_RECORDS = 1_000_000
"""The number of records to read for the window if the position is known: half a minute."""
HEAD_RECORDS = 100
"""The first records of an output partition that tell how far the upstream was then. One alone may be
dated years back."""


@dataclass(slots=True)
class Evidence:
    """The evidence of the records read so far, in stretches from the end of the topic backwards."""

    streams: tuple[str, ...]
    overlap_ms: int
    window_ms: int
    clock_ms: int = field(default_factory=now_ms)
    """The upstream is not asked relative to a later time, even where the position is dated ahead."""
    reached: Position = field(default_factory=dict)
    """The position: the join of the ids."""
    heads: dict[OutputPartition, list[Position]] = field(default_factory=dict)
    """The timestamps in the ids of the first events of the last stretch."""
    seen: set[str] = field(default_factory=set)
    """The streams of the events, also those that are not relayed."""
    records: int = 0
    events: int = 0
    earliest_ms: int = 2**53
    """When the first of the records was published."""
    passed: dict[OutputPartition, Position] = field(default_factory=dict)
    """How far the records had got that `can_be_repeated` has seen."""

    def read(self, stretch: Iterable[Published]) -> None:
        """Take a stretch that lies before those that were read."""
        self.heads = {}
        for record in stretch:
            self.records += 1
            self.earliest_ms = min(self.earliest_ms, record.published_ms)
            if record.replay or record.stream == NO_STREAM:
                continue
            self.events += 1
            # Old events do not name their stream.
            name = record.stream
            matching = [s for s in self.streams if not name or f".{name}".endswith(f".{s}")]
            self.seen.update(matching or {name})
            if not matching:
                continue
            head = self.heads.setdefault(record.at, [])
            if len(head) < HEAD_RECORDS:
                head.append(_timestamps(record))
            for source, timestamp_ms in record.assignments:
                self.reached[source] = max(timestamp_ms or 0, self.reached.get(source, 0))

    @property
    def complete(self) -> bool:
        """True if the position is known."""
        return (
            self.seen.issuperset(self.streams) and bool(self.reached) and all(self.reached.values())
        )

    @property
    def covers_window(self) -> bool:
        """True if the records reach back behind everything that the upstream can repeat.

        The beginning of each output partition tells.
        """
        begun = [reduce(join, head) for head in self.heads.values()]
        return bool(begun) and all(
            0 < position.get(source, 0) < self._horizon_ms(reached_ms)
            for position in begun
            for source, reached_ms in self.reached.items()
        )

    def can_be_repeated(self, record: Published) -> bool:
        """True for an event of an ingest that the upstream can repeat; asked of all records in order."""
        if record.replay:
            return False
        own, reached = _timestamps(record), self.reached
        before = self.passed[record.at] = join(self.passed.get(record.at, {}), own)
        source = record.source
        if source not in own or source not in reached:
            # Its id does not tell when it came.
            return True
        return before[source] >= self._horizon_ms(reached[source])

    def _horizon_ms(self, reached_ms: int) -> int:
        return min(reached_ms, self.clock_ms) - self.window_ms

    def checkpoint(self) -> Checkpoint | None:
        """The position to resume from; None: the topic does not show it."""
        reached = self.reached
        times = [timestamp_ms for timestamp_ms in reached.values() if timestamp_ms]
        if not times:
            return None
        begin_ms = min(times) - self.overlap_ms
        silent = sorted({topic for (topic, _), timestamp_ms in reached.items() if not timestamp_ms})
        if silent:
            heads = [each for head in self.heads.values() for each in head]
            known = [ms for timestamps in heads for ms in timestamps.values()]
            begin_ms = min(begin_ms, min(known, default=begin_ms) - self.window_ms)
        begin_ms = max(begin_ms, 0)
        missing = sorted({*self.streams} - self.seen)
        if missing:
            log.warning(
                "the topic has events of %s, but none of %s: it does not tell where to go on. The relay "
                "starts at --since; to leave no gap, start it again with --resume=false --since=%d",
                ", ".join(sorted(self.seen)),
                ", ".join(missing),
                begin_ms,
            )
            return None
        if silent:
            log.warning(
                "no event of the topic tells how far %s was: the relay asks for it from the oldest "
                "event of the topic on, less --dedup.window (%d ms). It skips no event; events of it "
                "that the topic no longer has are published again",
                ", ".join(silent),
                begin_ms,
            )
        # It starts before every position: otherwise a topic would count as one that has delivered
        # nothing since the start, and its repeats would be dropped as older than the start. It has a
        # clock, because something had come: so --since does not count.
        return Checkpoint(reached if len(reached) > 1 else {}, begin_ms, begin_ms)


def recover(reader: TopicReader, starts: Offsets, ends: Offsets, found: Evidence) -> Readback:
    """Read as much of the end of a topic and its dead letters as is needed; `found` takes what they say.

    Raises:
        Fatal, GenerationLost, Fenced: see `TopicReader.read`.
    """
    # One more is that of the dead letters.
    partitions = max(len(ends) - 1, 1)
    wanted, until = FIRST_RECORDS, ends
    while True:
        each = math.ceil(wanted / partitions)
        begins = {at: max(starts[at], end - each) for at, end in ends.items()}
        found.read(reader.read(begins, until))
        if begins == starts or (found.complete and found.covers_window):
            break
        if found.complete and wanted >= MAX_WINDOW_RECORDS:
            log.warning(
                "the last %d records of the topic do not reach back --dedup.window behind the position: "
                "events from before them that the upstream repeats are published twice",
                found.records,
            )
            break
        if wanted > FIRST_RECORDS:
            log.info(
                "the last %d records of the topic do not tell where to go on: reading further back",
                found.records,
            )
        until, wanted = begins, wanted * GROWTH
    if found.records and not found.events:
        log.warning(
            "all %d records of the topic are those of replays: they do not tell where to go on. The "
            "relay starts at --since",
            found.records,
        )
    reached = found.reached
    if not reached:
        return Readback(ends, now_ms())
    held = {**reached, **dict.fromkeys((UNKNOWN_SOURCE, UNKNOWN_LETTERS), max(reached.values()))}
    return Readback(begins, min(found.earliest_ms, now_ms()), held, held)


def _timestamps(record: Published) -> Position:
    return {source: timestamp_ms for source, timestamp_ms in record.assignments if timestamp_ms}
