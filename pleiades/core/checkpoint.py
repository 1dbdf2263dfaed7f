"""The checkpoint: what must be durable together with the events to continue after them, and its codec.

Laws:
- A checkpoint covers no event that is not published.
- Damaged bytes are recognised: reading them raises `UnreadableCheckpoint`, and nothing else.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import orjson

from pleiades.core.coverage import Coverage, Interval, covered_by
from pleiades.core.event import Batch
from pleiades.core.position import MAX_SOURCES, Position, join
from pleiades.core.sse_id import MAX_TIMESTAMP_MS, UNKNOWN_SOURCE, TopicPartition, is_source

FORMAT_VERSION = 1
"""Version of the stored form of a checkpoint. No other version can be read."""


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """The progress of a replay, beside its position."""

    published: Mapping[TopicPartition, int] = field(default_factory=dict)
    """Published events by the topic-partition whose connection delivered them."""
    finished: frozenset[TopicPartition] = frozenset()
    """These are complete and not asked for again."""
    incomplete: bool = False
    """The upstream no longer had all of the range."""

    def after(self, batch: Batch, published: int) -> ReplayProgress:
        """The progress after a batch of which so many events are published."""
        source = batch.source
        if source is None:
            return self
        return ReplayProgress(
            {**self.published, source: self.published.get(source, 0) + published},
            self.finished | {source} if batch.finished else self.finished,
            self.incomplete or batch.gap,
        )

    @property
    def total(self) -> int:
        """Published events of all topic-partitions."""
        return sum(self.published.values())

    def less(self, source: TopicPartition) -> ReplayProgress:
        """The progress after the destination refused an event of this topic-partition."""
        if source not in self.published:
            return self
        counts = {**self.published, source: self.published[source] - 1}
        return ReplayProgress(counts, self.finished, self.incomplete)

    def listed(self, position: Iterable[TopicPartition]) -> list[Any]:
        """The stored form, beside a position of these topic-partitions in this order."""
        return [
            self.incomplete,
            [[self.published.get(source, 0), source in self.finished] for source in position],
        ]


def read_done(listed: Any, position: Iterable[TopicPartition]) -> ReplayProgress | None:
    """Read the result of `ReplayProgress.listed`, within `unreadable_if_damaged`; None: not a replay."""
    if listed is None:
        return None
    incomplete, pairs = listed
    by_source = dict(zip(position, pairs, strict=True))
    published = {source: count for source, (count, _) in by_source.items()}
    finished = {source: is_finished for source, (_, is_finished) in by_source.items()}
    flags = [incomplete, *finished.values()]
    if not all(type(count) is int and count >= 0 for count in published.values()) or not all(
        type(flag) is bool for flag in flags
    ):
        raise UnreadableCheckpoint("it holds values that are no progress of a replay")
    return ReplayProgress(
        published, frozenset(source for source in finished if finished[source]), incomplete
    )


class UnreadableCheckpoint(ValueError):
    """The bytes are not a checkpoint, or one of an unknown format."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A position, and everything else that is needed to continue after it."""

    position: Position
    started_ms: int
    """The time at which relaying into this destination began, ms since 1970. Nothing older is asked
    for, and topics that have delivered nothing are asked for from here on."""
    clock_ms: int
    """The latest wall clock that the relay has used, ms since 1970. It never asks the upstream relative
    to an earlier one, so a clock that is set back can't cause repeats from before the window. In a
    replay it is constant: the time at which its range was resolved."""
    done: ReplayProgress | None = None
    """None: not a replay."""
    known_from: Position = field(default_factory=dict)
    """Topic-partition → timestamp in ms. The destination knows everything that was published since this
    start from the offset on to which the upstream resolves that timestamp; without an entry,
    everything. For `UNKNOWN_SOURCE` the least of all.

    This is the only reason for which a destination may forget an event: the position was less than this
    when the event was published (`Remembered.reached_ms`). It holds for events of earlier starts, too
    (`restarted`): their positions were greater, so they stay known until this start has passed them."""
    coverage: Coverage = field(default_factory=dict)
    """Intervals that earlier starts published and that are no longer in the window; see
    `core.coverage`."""

    def reached(self, source: TopicPartition) -> int:
        """The greatest timestamp that a topic-partition has delivered; for an unknown source that of
        any.
        """
        return self.position.get(source, max(self.position.values(), default=0))

    def remembering(self, window_ms: int) -> Checkpoint:
        """With `known_from` moved as far as a window of this length allows. It never moves back."""
        known_from = dict(self.known_from)
        finished = frozenset() if self.done is None else self.done.finished
        for source, reached in self.position.items():
            horizon_ms = min(reached, self.clock_ms) - window_ms
            if source in finished:
                # A finished source is not asked for again.
                horizon_ms = reached + 1
            if reached and horizon_ms > known_from.get(source, 0):
                known_from[source] = horizon_ms
        delivered = [source for source, reached in self.position.items() if reached]
        if delivered:
            known_from[UNKNOWN_SOURCE] = min(known_from.get(source, 0) for source in delivered)
        return replace(self, known_from=known_from)

    def restarted(self, started_ms: int) -> Checkpoint:
        """The checkpoint of a new start into the same destination, which repeats nothing that is
        there.
        """
        coverage = covered_by(self.coverage, self.started_ms, self.position, self.clock_ms)
        return Checkpoint({}, started_ms, 0, coverage=coverage)

    def advanced(
        self, timestamps_ms: Mapping[TopicPartition, int], started_ms: int, clock_ms: int
    ) -> Checkpoint:
        """This checkpoint after events with these timestamps.

        Existing entries stay; new ones are added up to `MAX_SOURCES`.
        """
        position = join(self.position, timestamps_ms)
        if len(position) > MAX_SOURCES:
            room = max(MAX_SOURCES, len(self.position))
            # In order of arrival, as in `ResumeCursor.observe`.
            position = dict(islice(position.items(), room))
        return replace(
            self,
            position=position,
            started_ms=min(self.started_ms, started_ms),
            clock_ms=max(self.clock_ms, clock_ms),
        )

    def encoded(self) -> bytes:
        """One JSON object, readable by `decode_checkpoint`."""
        own = {"position": listed(self.position), "known_from": listed(self.known_from)}
        return orjson.dumps(self.common_fields() | own)

    def common_fields(self) -> dict[str, Any]:
        """The fields that all stored forms share: all but `position` and `known_from`."""
        fields: dict[str, Any] = {
            "version": FORMAT_VERSION,
            "started_ms": self.started_ms,
            "clock_ms": self.clock_ms,
        }
        if self.coverage:
            fields["coverage"] = listed_coverage(self.coverage)
        if self.done is not None:
            fields["done"] = self.done.listed(sorted(self.position))
        return fields


@contextlib.contextmanager
def unreadable_if_damaged() -> Iterator[None]:
    """Turn the errors that damaged bytes can cause into one.

    Raises:
        UnreadableCheckpoint: the bytes are damaged.
    """
    try:
        yield
    except UnreadableCheckpoint:
        raise
    except (ValueError, LookupError, TypeError, zlib.error) as error:
        raise UnreadableCheckpoint(f"it can't be read ({type(error).__name__})") from None


def decode_checkpoint(encoded: bytes) -> Checkpoint:
    """Read the result of `Checkpoint.encoded`.

    Raises:
        UnreadableCheckpoint: cut short, damaged, or of another version.
    """
    with unreadable_if_damaged():
        stored: Any = orjson.loads(encoded)
        check_version(stored)
        checkpoint = read_common_fields(stored, read_listed(stored["position"]))
        return replace(checkpoint, known_from=read_listed(stored["known_from"]))


def check_version(fields: Any) -> None:
    """Refuse the fields of another version before anything else of them is read."""
    version = fields["version"]
    if type(version) is not int or version != FORMAT_VERSION:
        raise UnreadableCheckpoint(f"its format version is {str(version)[:20]}")


def read_common_fields(fields: Any, position: Position) -> Checkpoint:
    """Read the result of `Checkpoint.common_fields`, within `unreadable_if_damaged`."""
    started_ms, clock_ms = fields["started_ms"], fields["clock_ms"]
    if UNKNOWN_SOURCE in position or not (is_time(started_ms) and is_time(clock_ms)):
        raise UnreadableCheckpoint("it holds values that are no position")
    done = read_done(fields.get("done"), position)
    coverage = read_coverage(fields.get("coverage", []))
    return Checkpoint(position, started_ms, clock_ms, done, coverage=coverage)


def listed(position: Mapping[TopicPartition, int]) -> list[tuple[str, int, int]]:
    """A position as rows of topic, partition and timestamp."""
    return [(*source, timestamp_ms) for source, timestamp_ms in sorted(position.items())]


def read_listed(rows: Any) -> Position:
    """Read the result of `listed`, within `unreadable_if_damaged`."""
    position = {(topic, partition): timestamp_ms for topic, partition, timestamp_ms in rows}
    if len(position) < len(rows) or not all(
        (is_source(source) or source == UNKNOWN_SOURCE) and is_time(timestamp_ms)
        for source, timestamp_ms in position.items()
    ):
        raise UnreadableCheckpoint("it holds values that are no position")
    return position


def listed_coverage(coverage: Coverage) -> list[list[Any]]:
    """A coverage as rows of topic, partition and intervals."""
    return [[*source, list(map(list, intervals))] for source, intervals in sorted(coverage.items())]


def read_coverage(rows: Any) -> Coverage:
    """Read the result of `listed_coverage`, within `unreadable_if_damaged`."""
    coverage = {
        (topic, partition): tuple(Interval(*pair) for pair in pairs)
        for topic, partition, pairs in rows
    }
    times = [time for intervals in coverage.values() for pair in intervals for time in pair]
    if not all(map(is_source, coverage)) or not all(map(is_time, times)):
        raise UnreadableCheckpoint("it holds values that are no coverage")
    return coverage


def is_time(number: object) -> bool:
    """True if a stored value can be a timestamp in ms since 1970."""
    return type(number) is int and 0 <= number <= MAX_TIMESTAMP_MS
