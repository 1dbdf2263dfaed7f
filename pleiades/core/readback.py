"""The parts of an output topic that a restart must read to recognise repeats.

The topic is divided into segments, from one mark to the next. A mark is the end offsets of all output
partitions, taken between two transactions of ours.

Laws:
- Everything published before a mark lies below its offsets, everything published later at or above
  them. Neither record timestamps nor clocks matter.
- For each upstream topic-partition with records in it, a segment keeps the position of that
  topic-partition when the last of them was published (at least their `Remembered.reached_ms`). Once
  `Checkpoint.known_from` is greater, the records are not needed any more. A segment without needed
  records is dropped.
- Segments are short: an active topic-partition makes a mark each time it has moved on by a part of its
  window. One that stands still keeps the few segments with its last window, however long it stands still
  and whatever else is published. All of this is stored, so that restarts add nothing.
- Merging two segments is always safe: what lies between them is read, too, and all of it counts as
  published as late as the last.
- Records of an earlier start came at positions of that start. They keep their segments until this start
  has moved beyond those.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from pleiades.core.checkpoint import Checkpoint
from pleiades.core.position import Position, join
from pleiades.core.sse_id import UNKNOWN_SOURCE, TopicPartition

MAX_SEGMENTS = 16
"""Closed ones. An active topic-partition needs five; the others are for those that stand still."""
MARKS_PER_WINDOW = 4
"""A restart reads up to one of these parts more than the window of an active topic-partition."""
UNKNOWN_LETTERS: TopicPartition = ("", -2)
"""Stands for the unknown source of dead letters. They are kept for as long as any topic-partition stands
still, but only the dead letters' own topic is read for them."""

OutputPartition = tuple[str, int]
Offsets = Mapping[OutputPartition, int]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of each output partition that is needed, from one mark to another."""

    begin: Offsets
    end: Offsets
    reached: Position
    """For each upstream topic-partition with needed records: its position when the last of them was
    published, or a greater one."""
    since_ms: int
    """This machine's clock at the beginning; only shown."""


@dataclass(frozen=True, slots=True)
class Readback:
    """The parts that a restart must read: the closed segments, and the open one, which is written to."""

    begin: Offsets
    """The beginning of the open segment. A partition that is missing here was added later: all of it
    belongs to the segment."""
    since_ms: int
    """`Segment.since_ms` of the open segment."""
    first: Position = field(default_factory=dict)
    """For each upstream topic-partition with records in the open segment: its position when the first of
    them was published."""
    reached: Position = field(default_factory=dict)
    """As `first`, for the last of them."""
    closed: tuple[Segment, ...] = ()

    def committed(
        self,
        checkpoint: Checkpoint,
        events: Iterable[TopicPartition],
        letters: Iterable[TopicPartition],
        letters_topic: str,
    ) -> Readback:
        """The readback to commit with a checkpoint.

        Args:
            events, letters: sources of the events and dead letters that are committed with it.
            letters_topic: where dead letters go.
        """
        named = {remembered_as(source, checkpoint.position, False) for source in events}
        named |= {remembered_as(source, checkpoint.position, True) for source in letters}
        if UNKNOWN_SOURCE in named:
            # An event may be too large and become a dead letter.
            named.add(UNKNOWN_LETTERS)
        first, reached = dict(self.first), dict(self.reached)
        for source in named:
            reached_ms = checkpoint.reached(source)
            first[source] = min(first.get(source, reached_ms), reached_ms)
            reached[source] = max(reached.get(source, 0), reached_ms)
        pruned = [_pruned(segment, checkpoint, letters_topic) for segment in self.closed]
        closed = tuple(segment for segment in pruned if segment.reached)
        return replace(self, first=first, reached=reached, closed=closed)

    def is_mark_due(self, checkpoint: Checkpoint) -> bool:
        """True if the open segment should end here."""
        for source, first_ms in self.first.items():
            known_ms = _known_from(checkpoint, source)
            reached_ms = checkpoint.reached(source)
            now_ms = min(reached_ms, checkpoint.clock_ms)
            if known_ms and (now_ms - first_ms) * MARKS_PER_WINDOW > now_ms - known_ms:
                return True
            if self.reached[source] > reached_ms:
                # Records of an earlier start lie in it.
                return True
        return False

    def marked(self, ends: Offsets, now_ms: int) -> Readback:
        """With a mark at the current end of the output. Everything written must be committed."""
        closed = self.closed
        if self.reached:
            closed = (*closed, Segment(_begin(self.begin, ends), ends, self.reached, self.since_ms))
        return Readback(ends, now_ms, closed=closed).merged(MAX_SEGMENTS)

    def merged(self, most: int) -> Readback:
        """With at most so many closed segments, merged such that little is read in addition."""
        segments = list(self.closed)
        while len(segments) > max(most, 1):
            joined = [_join(*pair) for pair in pairwise(segments)]
            # The last two belong to active topic-partitions and are soon dropped. Merged with those that
            # follow they would grow without end.
            candidates = range(max(len(joined) - 2, 1))
            at = min(
                candidates,
                key=lambda at: _size(joined[at]) - _size(segments[at]) - _size(segments[at + 1]),
            )
            segments[at : at + 2] = [joined[at]]
        return replace(self, closed=tuple(segments))

    def parts(self, ends: Offsets) -> Iterator[Segment]:
        """The parts to read, in the order of publishing, if the output ends at `ends`."""
        for segment in self.closed:
            end = {at: min(offset, ends.get(at, 0)) for at, offset in segment.end.items()}
            yield replace(segment, end=end)
        if self.reached:
            yield Segment(_begin(self.begin, ends), ends, self.reached, self.since_ms)

    @property
    def oldest_ms(self) -> int:
        """This machine's clock where reading begins."""
        return min((segment.since_ms for segment in self.closed), default=self.since_ms)


def remembered_as(
    source: TopicPartition, known: Container[TopicPartition], letter: bool
) -> TopicPartition:
    """The name under which records of a source are remembered: one that stands for all unknown ones."""
    if source in known and source != UNKNOWN_SOURCE:
        return source
    return UNKNOWN_LETTERS if letter else UNKNOWN_SOURCE


def runs(parts: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Groups of parts that follow each other without a gap, and can be read as one."""
    run: list[Segment] = []
    for part in parts:
        if run and not _follows(run[-1], part):
            yield run
            run = []
        run.append(part)
    if run:
        yield run


def _follows(part: Segment, following: Segment) -> bool:
    return all(following.begin.get(at, 0) == end for at, end in part.end.items()) and all(
        reached_ms >= part.reached.get(source, 0)
        for source, reached_ms in following.reached.items()
    )


def _begin(begin: Offsets, ends: Offsets) -> Offsets:
    """The beginnings of all partitions: 0 for one that ends before, because it was created anew."""
    return {at: begin[at] if begin.get(at, end + 1) <= end else 0 for at, end in ends.items()}


def _known_from(checkpoint: Checkpoint, source: TopicPartition) -> int:
    if source == UNKNOWN_LETTERS:
        source = UNKNOWN_SOURCE
    return checkpoint.known_from.get(source, 0)


def _pruned(segment: Segment, checkpoint: Checkpoint, letters_topic: str) -> Segment:
    needed = {
        source: reached_ms
        for source, reached_ms in segment.reached.items()
        if reached_ms >= _known_from(checkpoint, source)
    }
    if len(needed) == len(segment.reached):
        return segment
    begin, end = segment.begin, segment.end
    if needed.keys() == {UNKNOWN_LETTERS}:
        end = {at: offset for at, offset in end.items() if at[0] == letters_topic}
        begin = {at: begin[at] for at in end}
    return Segment(begin, end, needed, segment.since_ms)


def _join(first: Segment, second: Segment) -> Segment:
    return Segment(
        {**second.begin, **first.begin},
        {**first.end, **second.end},
        join(first.reached, second.reached),
        min(first.since_ms, second.since_ms),
    )


def _size(segment: Segment) -> int:
    """The number of records that are read for it."""
    return sum(max(end - segment.begin[at], 0) for at, end in segment.end.items())
