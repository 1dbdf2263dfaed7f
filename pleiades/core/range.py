"""The range of events of a replay, and when it is complete.

Laws:
- An event belongs to a range if its Kafka timestamp is at or after the topic-partition's begin and
before
  its end. An id holds that timestamp + 1 ms, so the events after an id, and those up to and including
  it, are separated at the same number.
- The n slices of a range cover it without gap or overlap, in each topic-partition.
- One event past the end proves nothing: timestamps run backwards by seconds, and a single one may lie an
  hour ahead. A topic-partition is complete after `PAST_EVENTS` events that lie past the end by more than
  timestamps may run backwards, with no event from before the end between them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from pleiades.core.columns import all_published, sources_of, timestamps_of
from pleiades.core.event import OUTSIDE_RANGE, UNPUBLISHED, Batch, Event, unpublished
from pleiades.core.sse_id import UNKNOWN_SOURCE, Assignment, TopicPartition

PAST_EVENTS = 5
"""This many events past the end of a range complete it."""
MAX_SLICES = 10_000


class EmptyRange(ValueError):
    """The range ends where it begins, or before; or it is too short to be cut."""


class Slice(NamedTuple):
    """Part `number`, counted from 0, of `parts` equal parts of a range."""

    number: int
    parts: int


@dataclass(frozen=True, slots=True)
class Bound:
    """One side of a range: Kafka timestamps in ms since 1970."""

    default_ms: int
    """For topic-partitions without a bound of their own."""
    own_ms: Mapping[TopicPartition, int] = field(default_factory=dict)

    def of(self, source: TopicPartition) -> int:
        """The bound of one topic-partition."""
        return self.own_ms.get(source, self.default_ms)


def bound_of(assignments: Iterable[Assignment], first: bool) -> Bound:
    """The bound that an SSE id stands for.

    Args:
        first: it is the begin of a range.

    Raises:
        ValueError: an entry has no time, because its topic-partition had delivered nothing on that
            connection. An offset is valid in one of the upstream's two clusters only, and -1 in none.
    """
    own_ms: dict[TopicPartition, int] = {}
    for (topic, partition), time in assignments:
        if not time:
            raise ValueError(
                f"does not tell how far {topic}/{partition} had got: it had delivered nothing yet. Give "
                "a time, such as the meta.dt of that event, or an id with a timestamp for each topic"
            )
        own_ms[topic, partition] = time
    if not own_ms:
        raise ValueError("names no topic")
    return Bound(min(own_ms.values()) if first else max(own_ms.values()), own_ms)


@dataclass(frozen=True, slots=True)
class Range:
    """The begin and the end, in each topic-partition."""

    begin: Bound
    end: Bound

    def __post_init__(self) -> None:
        sources = self.sources
        pairs = [(self.begin.of(source), self.end.of(source)) for source in sources]
        pairs.append((self.begin.default_ms, self.end.default_ms))
        if any(begin > end for begin, end in pairs) or all(begin == end for begin, end in pairs):
            raise EmptyRange("it ends where it begins, or before")

    @property
    def sources(self) -> set[TopicPartition]:
        """The topic-partitions with a bound of their own."""
        return {*self.begin.own_ms, *self.end.own_ms}

    def holds(self, source: TopicPartition, timestamp_ms: int) -> bool:
        """True if an event belongs to the range.

        Args:
            source: of the event.
            timestamp_ms: the one in its id: that of the event + 1.
        """
        return self.begin.of(source) < timestamp_ms <= self.end.of(source)

    def is_empty(self, source: TopicPartition) -> bool:
        """True if the range has nothing of one topic-partition."""
        return self.begin.of(source) >= self.end.of(source)

    def cut(self, part: Slice) -> Range:
        """One slice of the range.

        Raises:
            EmptyRange: it has fewer milliseconds than slices.
        """
        return Range(self._at(part.number, part.parts), self._at(part.number + 1, part.parts))

    def _at(self, number: int, count: int) -> Bound:
        def place(begin_ms: int, end_ms: int) -> int:
            return begin_ms + (end_ms - begin_ms) * number // count

        return Bound(
            place(self.begin.default_ms, self.end.default_ms),
            {
                source: place(self.begin.of(source), self.end.of(source))
                for source in sorted(self.sources)
            },
        )


class Part(NamedTuple):
    """The part of the upstream's history that is published."""

    range: Range
    more_topics: bool
    """See `decode`: each connection asks for one of several topic-partitions."""


def within(batch: Batch, span: Range, source: TopicPartition) -> tuple[Batch, int]:
    """Limit a batch of one topic-partition to a range; also return the number of events outside it.

    An event outside the range stays in its place as `OUTSIDE_RANGE`, because it moves the position all
    the same. Events of other sources are removed: an upstream that sends what it was not asked for may
    have omitted some.
    """
    own = {at: time for at, time in batch.timestamps_ms.items() if at == source}
    if _all_inside(batch, span, source):
        return batch._replace(timestamps_ms=own), 0
    events: list[Event] = []
    outside = greatest_ms = 0
    for event in batch.events:
        # An event of unknown source belongs to the only entry of its id. Without a readable id (0) it
        # may belong here, too: one too many is better than one too few.
        is_own = event.source in (source, UNKNOWN_SOURCE)
        if is_own and (not event.timestamp_ms or span.holds(source, event.timestamp_ms)):
            events.append(event)
        else:
            outside += event.reason not in UNPUBLISHED
            if is_own and event.timestamp_ms > greatest_ms:
                events.append(unpublished(source, event.timestamp_ms, OUTSIDE_RANGE))
        greatest_ms = max(greatest_ms, event.timestamp_ms)
    return batch._replace(events=events, timestamps_ms=own), outside


def _all_inside(batch: Batch, span: Range, source: TopicPartition) -> bool:
    """True if everything in a batch is certainly of this topic-partition and in the range."""
    if not batch.events or not all_published(batch.events):
        return False
    # A range has no holes: whatever lies between two of its times is in it.
    times = timestamps_of(batch.events)
    sources, _ = sources_of(batch.events)
    return sources == {source} and all(
        time > 0 and span.holds(source, time) for time in (min(times), max(times))
    )


def halves(batch: Batch, published: int) -> tuple[Batch, Batch]:
    """Cut a batch in two, after so many published events (at least one).

    The first half advances the position by everything before the cut, and no further. So if only the
    first is published, the upstream sends the second again. Events outside a range count, too: nothing
    before the event that a position stands for may be later than it (`core.landmark`).
    """
    counts = accumulate(not event.reason for event in batch.events)
    cut = next(number for number, count in enumerate(counts, 1) if count == published)
    came, to_come = batch.events[:cut], batch.events[cut:]
    timestamps_ms: dict[TopicPartition, int] = {}
    for event in came:
        source = event.source if batch.source is None else batch.source
        timestamps_ms[source] = max(timestamps_ms.get(source, 0), event.timestamp_ms)
    head = batch._replace(events=came, timestamps_ms=timestamps_ms, finished=False)
    return head, batch._replace(events=to_come)


class Ending:
    """Watches the ids of one topic-partition on one connection for the end of a range.

    Args:
        end_ms: the end of the range.
        settle_ms: how far timestamps may run backwards.
    """

    def __init__(self, end_ms: int, settle_ms: int) -> None:
        self._end_ms = end_ms
        self._past_ms = end_ms + settle_ms
        self._past = 0

    def observe(self, timestamp_ms: int) -> bool:
        """Note the timestamp of the next id; True once the range is complete."""
        if timestamp_ms <= self._end_ms:
            self._past = 0
        elif timestamp_ms > self._past_ms:
            self._past += 1
        return self._past >= PAST_EVENTS
