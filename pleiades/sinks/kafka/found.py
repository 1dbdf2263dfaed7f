"""Where to go on in a topic beside which no position is stored, by the ids of its events.

Laws:
- The position is the join of the ids. It never skips what an upstream topic had still to deliver: one
  of which the ids that were read show no timestamp is looked for further back, up to the whole topic. If
  it never delivered anything, it is asked for from the oldest event on, less the window.
- Where something can't be known, more is asked for. What is published already is dropped, as far as it
  was read.
- Only an ingest's events count: a replay may be far behind it, or ahead of where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pleiades.core.fingerprint import fingerprint
from pleiades.core.position import Checkpoint, Position, join
from pleiades.core.readback import UNKNOWN_LETTERS, OutputPartition, Readback
from pleiades.core.wire import UNKNOWN_SOURCE
from pleiades.sinks.base import Remembered
from pleiades.sinks.kafka.history import Found, History
from pleiades.sinks.kafka.records import NO_STREAM, Published

log = logging.getLogger(__name__)

FIRST_RECORDS = 50_000
"""How much of the topic's end is read first; then each time `GROWTH` times as much."""
GROWTH = 4
MAX_WINDOW_RECORDS = 1_000_000
"""So far is read for what may be repeated, if the position is known: half a minute."""
HEAD_RECORDS = 100
"""By so many of an output partition it is judged how far the upstream was when they were published: one
alone may be dated years back."""


@dataclass(slots=True)
class Look:
    """What records tell, read from the end of a topic backwards, in stretches."""

    streams: tuple[str, ...]
    overlap_ms: int
    window_ms: int
    several: Position = field(default_factory=dict)
    """The join of the ids that name several topic-partitions."""
    single: Position = field(default_factory=dict)
    """That of the others. They may be an old replay's, if there are some with several."""
    heads: dict[OutputPartition, list[Published]] = field(default_factory=dict)
    """The first events of the last stretch."""
    seen: set[str] = field(default_factory=set)
    """Streams that events are of: those that are asked for, and others."""
    records: int = 0
    replays: int = 0
    events: int = 0
    earliest_ms: int = 2**53
    """When the first of the records was published."""

    def read(self, found: Iterator[Found]) -> None:
        """Take up a stretch that lies before those that were read."""
        self.heads = {}
        for at, _, record in found:
            self.records += 1
            self.earliest_ms = min(self.earliest_ms, record.published_ms)
            if record.replay:
                self.replays += 1
                continue
            if record.stream == NO_STREAM:
                continue
            self.events += 1
            matching = [name for name in self.streams if is_of(record.stream, name)]
            self.seen.update(matching or {record.stream})
            if not matching:
                continue
            head = self.heads.setdefault(at, [])
            if len(head) < HEAD_RECORDS:
                head.append(record)
            position = self.several if len(record.assignments) > 1 else self.single
            for source, timestamp_ms in record.assignments:
                if (timestamp_ms or 0) > position.get(source, -1):
                    position[source] = timestamp_ms or 0

    @property
    def reached(self) -> Position:
        """The position."""
        return self.several or self.single

    @property
    def missing(self) -> set[str]:
        """Streams of which there is no event in what was read."""
        return set(self.streams) - self.seen

    @property
    def told(self) -> bool:
        """Whether the position is known."""
        return not self.missing and bool(self.reached) and all(self.reached.values())

    @property
    def covers(self) -> bool:
        """Whether what was read reaches back behind all that can be repeated.

        Judged by where each of its output partitions begins.
        """
        reached = self.reached
        begun: list[Position] = []
        for head in self.heads.values():
            join_of_ids: Position = {}
            for record in head:
                join_of_ids = join(
                    join_of_ids,
                    {each.source: each.timestamp_ms or 0 for each in record.assignments},
                )
            begun.append(join_of_ids)
        return bool(begun) and all(
            0 < position.get(source, 0) < reached_ms - self.window_ms
            for position in begun
            for source, reached_ms in reached.items()
        )

    def checkpoint(self) -> Checkpoint | None:
        """Where to go on; None: the topic does not tell."""
        reached = self.reached
        times = [timestamp_ms for timestamp_ms in reached.values() if timestamp_ms]
        if not times:
            return None
        begin_ms = min(times) - self.overlap_ms
        silent = sorted({topic for (topic, _), timestamp_ms in reached.items() if not timestamp_ms})
        if silent:
            begin_ms = min(begin_ms, self._oldest_ms(begin_ms) - self.window_ms)
        begin_ms = max(begin_ms, 0)
        if self.missing:
            log.warning(
                "the topic has events of %s, but none of %s: it does not tell where to go on. Starting "
                "where --since says; to leave no gap, start again with --resume=false --since=%d",
                ", ".join(sorted(self.seen)),
                ", ".join(sorted(self.missing)),
                begin_ms,
            )
            return None
        if silent:
            log.warning(
                "no event of the topic tells how far %s was: it is asked for from the oldest event of "
                "the topic on, less --dedup.window (%d ms). No event is skipped; if it had delivered "
                "some that the topic no longer has, these are published again",
                ", ".join(silent),
                begin_ms,
            )
        # Before every position: else a topic would count as one that has delivered nothing from after
        # the start, and what a reconnect repeats of it be taken for older than the start.
        # With a clock: something had come, so --since does not count any more.
        return Checkpoint(reached if len(reached) > 1 else {}, begin_ms, begin_ms)

    def _oldest_ms(self, default_ms: int) -> int:
        times = [
            each.timestamp_ms
            for head in self.heads.values()
            for record in head
            for each in record.assignments
            if each.timestamp_ms
        ]
        return min(times, default=default_ms)


class Outcome(NamedTuple):
    """What was found."""

    checkpoint: Checkpoint | None
    window: Iterator[Remembered]
    readback: Readback


def look(
    history: History,
    topic: str,
    starts: Mapping[OutputPartition, int],
    ends: Mapping[OutputPartition, int],
    look: Look,
    now_ms: int,
) -> Outcome:
    """Read as much of the end of a topic and its dead letters as is needed.

    Raises:
        Fatal, GenerationLost: see `History.read`.
    """
    partitions = sum(at[0] == topic for at in ends)
    wanted, until = FIRST_RECORDS, dict(ends)
    while True:
        each = -(-wanted // max(partitions, 1))
        begins = {at: max(starts[at], ends[at] - each) for at in ends}
        look.read(history.read(begins, until))
        complete = begins == dict(starts)
        if complete or (look.told and look.covers):
            break
        if look.told and wanted >= MAX_WINDOW_RECORDS:
            log.warning(
                "the last %d records of the topic do not reach back --dedup.window behind the position: "
                "what the upstream repeats from before them is published twice",
                look.records,
            )
            break
        if wanted > FIRST_RECORDS:
            log.info(
                "the last %d records of the topic do not tell where to go on: reading further back",
                look.records,
            )
        until, wanted = begins, wanted * GROWTH
    checkpoint = look.checkpoint()
    if look.records and not look.events:
        log.warning(
            "all %d records of the topic are those of replays: they do not tell where to go on. "
            "Starting where --since says",
            look.records,
        )
    reached = look.reached
    if not reached:
        return Outcome(checkpoint, iter(()), Readback(dict(ends), now_ms))
    greatest = max(reached.values())
    held = {**reached, UNKNOWN_SOURCE: greatest, UNKNOWN_LETTERS: greatest}
    since_ms = min(look.earliest_ms, now_ms)
    window = _window(history.read(begins, ends), reached, look.window_ms)
    return Outcome(checkpoint, window, Readback(begins, since_ms, dict(held), held))


def _window(found: Iterator[Found], reached: Position, window_ms: int) -> Iterator[Remembered]:
    """Without what was published before all that the position lets be repeated."""
    greatest = max(reached.values())
    passed: dict[OutputPartition, Position] = {}
    for at, _, record in found:
        if record.replay:
            continue
        before = passed.setdefault(at, {})
        for source, timestamp_ms in record.assignments:
            if (timestamp_ms or 0) > before.get(source, 0):
                before[source] = timestamp_ms or 0
        source = record.source if record.source in reached else UNKNOWN_SOURCE
        reached_ms = reached.get(source, greatest)
        if before.get(source, reached_ms) >= reached_ms - window_ms:
            yield Remembered(source, reached_ms, fingerprint(record.identity))


def is_of(meta_stream: str, name: str) -> bool:
    """`mediawiki.recentchange` is of the stream `recentchange`; old events do not say theirs."""
    return not meta_stream or meta_stream == name or meta_stream.endswith("." + name)
