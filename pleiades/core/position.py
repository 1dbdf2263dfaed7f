"""Where the relay is in the upstream, and from where a reconnect must ask.

Laws:
- A position maps each upstream topic-partition to the **greatest** id timestamp seen from it. `join`
  is the pointwise maximum: commutative, associative, idempotent, with the empty position as bottom.
- A reconnect asks each topic-partition for `min(position, clock) - overlap`. Some delivered event
  carries the position's timestamp, and upstream resolves a timestamp to the *earliest* offset at or
  after it; so what it resolves to never lies behind the first undelivered event.
- A topic-partition that has delivered nothing asks for where relaying began; never for "latest".
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
from pleiades.core.wire import (
    MAX_TIMESTAMP_MS,
    UNKNOWN_SOURCE,
    Batch,
    TopicPartition,
    compose_id,
    is_source,
)

FORMAT_VERSION = 1
"""Version of the stored form of a checkpoint. Fields that were added later may be missing, and the
version before reads over them: so going back one version works."""

LEGACY_WINDOW_MS = 600_000
"""What a checkpoint without `known_from` is taken to know: the default of `--dedup.window`."""

MAX_SOURCES = 1024
"""Topic-partitions one position may hold: bounds memory against an upstream that invents names."""

Position = dict[TopicPartition, int]
"""Topic-partition → greatest id timestamp seen (Kafka timestamp + 1 ms). 0: it belongs to the stream
and has delivered nothing. Such ones must be kept too, also durably: a topic-partition that is left
out of `Last-Event-ID` is not sent at all."""


def join(left: Mapping[TopicPartition, int], right: Mapping[TopicPartition, int]) -> Position:
    """The pointwise maximum of two positions."""
    joined = dict(left)
    for source, timestamp_ms in right.items():
        if timestamp_ms > joined.get(source, -1):
            joined[source] = timestamp_ms
    return joined


@dataclass(frozen=True, slots=True)
class Done:
    """What a replay has done, beside its position."""

    published: Mapping[TopicPartition, int] = field(default_factory=dict)
    """Events by the topic-partition whose connection brought them."""
    finished: frozenset[TopicPartition] = frozenset()
    """All of the range has come from these; they are not asked for again."""
    incomplete: bool = False
    """The upstream no longer had all of it."""

    def after(self, batch: Batch, published: int) -> Done:
        """After a batch of which so many events are published."""
        source = batch.source
        if source is None:
            return self
        return Done(
            {**self.published, source: self.published.get(source, 0) + published},
            self.finished | {source} if batch.finished else self.finished,
            self.incomplete or batch.gap,
        )

    @property
    def total(self) -> int:
        """Events published, of all topic-partitions."""
        return sum(self.published.values())

    def less(self, source: TopicPartition) -> Done:
        """After an event of this topic-partition could not be published as such after all."""
        if source not in self.published:
            return self
        counts = {**self.published, source: self.published[source] - 1}
        return Done(counts, self.finished, self.incomplete)

    def listed(self, position: Iterable[TopicPartition]) -> list[Any]:
        """To be stored beside a position of these topic-partitions, in this order."""
        return [
            self.incomplete,
            [[self.published.get(source, 0), source in self.finished] for source in position],
        ]


def read_done(listed: Any, position: Iterable[TopicPartition]) -> Done | None:
    """Read what `Done.listed` gave, within `unreadable_if_damaged`; None: this is no replay."""
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
    return Done(published, frozenset(source for source in finished if finished[source]), incomplete)


class UnreadableCheckpoint(ValueError):
    """Bytes that are no checkpoint, or one of a format that this version does not know."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What must be durable together with the events to go on after them."""

    position: Position
    started_ms: int
    """Where relaying into this destination began: nothing older is asked for, and topics that
    have delivered nothing are asked from here."""
    clock_ms: int
    """The latest wall clock the relay has acted on. Upstream is never asked relative to an
    earlier one, so a clock that is set back can't make it repeat more than the window holds.
    In a replay it stands still: at when its range was made out."""
    done: Done | None = None
    """None: this is no replay."""
    known_from: Position = field(default_factory=dict)
    """Topic-partition → timestamp in ms: the destination knows all that was published since this start
    from the offset on to which the upstream resolves it; without an entry, all of it. Of
    `UNKNOWN_SOURCE` the least of all.

    A destination may forget an event by this and by nothing else: if the position was less when the
    event was published (`Remembered.reached_ms`). That holds for events of earlier starts, too
    (`restarted`): their positions were further, so they stay known until this start has passed them."""
    coverage: Coverage = field(default_factory=dict)
    """What earlier starts published before what is known of them; see `core.coverage`."""

    def reached(self, source: TopicPartition) -> int:
        """The greatest timestamp that a topic-partition has delivered; of unknown source that of any."""
        return self.position.get(source, max(self.position.values(), default=0))

    def remembering(self, window_ms: int) -> Checkpoint:
        """With `known_from` where a window of this length allows it. It never goes back."""
        known_from = dict(self.known_from)
        finished = frozenset() if self.done is None else self.done.finished
        for source, reached in self.position.items():
            horizon_ms = min(reached, self.clock_ms) - window_ms
            if source in finished:
                # It is not asked for again.
                horizon_ms = reached + 1
            if reached and horizon_ms > known_from.get(source, 0):
                known_from[source] = horizon_ms
        delivered = [source for source, reached in self.position.items() if reached]
        if delivered:
            known_from[UNKNOWN_SOURCE] = min(known_from.get(source, 0) for source in delivered)
        return replace(self, known_from=known_from)

    def restarted(self, started_ms: int) -> Checkpoint:
        """For a new start into the same destination, which must not publish again what is there."""
        coverage = covered_by(self.coverage, self.started_ms, self.position, self.clock_ms)
        return Checkpoint({}, started_ms, 0, coverage=coverage)

    def advanced(
        self, timestamps_ms: Mapping[TopicPartition, int], started_ms: int, clock_ms: int
    ) -> Checkpoint:
        """This checkpoint after events with these timestamps.

        What is in it stays in it; beyond `MAX_SOURCES` nothing new is taken up.
        """
        position = join(self.position, timestamps_ms)
        if len(position) > MAX_SOURCES:
            room = max(MAX_SOURCES, len(self.position))
            # In the order in which they came, as `ResumeCursor.observe` takes them up.
            position = dict(islice(position.items(), room))
        return replace(
            self,
            position=position,
            started_ms=min(self.started_ms, started_ms),
            clock_ms=max(self.clock_ms, clock_ms),
        )

    def encoded(self) -> bytes:
        """One JSON object, readable by `decode_checkpoint`."""
        rows = [
            {"topic": topic, "partition": partition, "timestamp": timestamp_ms}
            for (topic, partition), timestamp_ms in sorted(self.position.items())
        ]
        own = {"position": rows, "known_from": listed(self.known_from)}
        return orjson.dumps(self.common_fields() | own)

    def common_fields(self) -> dict[str, Any]:
        """What all stored forms have in common, for JSON: all but `position` and `known_from`."""
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
    """Around reading foreign bytes: errors that damage can cause become one.

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
    """Read what `Checkpoint.encoded` wrote.

    Raises:
        UnreadableCheckpoint: cut short, damaged, or of another version.
    """
    with unreadable_if_damaged():
        stored: Any = orjson.loads(encoded)
        check_version(stored)
        position = {
            (entry["topic"], entry["partition"]): entry["timestamp"] for entry in stored["position"]
        }
        checkpoint = read_common_fields(stored, position)
        if "known_from" not in stored:
            return checkpoint.remembering(LEGACY_WINDOW_MS)
        return replace(checkpoint, known_from=read_listed(stored["known_from"]))


def check_version(fields: Any) -> None:
    """Refuse the fields of another version, before anything else is read of them."""
    version = fields["version"]
    if type(version) is not int or version != FORMAT_VERSION:
        raise UnreadableCheckpoint(f"its format version is {str(version)[:20]}")


def read_common_fields(fields: Any, position: Position) -> Checkpoint:
    """Read what `Checkpoint.common_fields` gave, within `unreadable_if_damaged`."""
    started_ms, clock_ms = fields["started_ms"], fields["clock_ms"]
    times = [started_ms, clock_ms, *position.values()]
    if not all(map(is_source, position)) or not all(map(is_time, times)):
        raise UnreadableCheckpoint("it holds values that are no position")
    done = read_done(fields.get("done"), position)
    coverage = read_coverage(fields.get("coverage", []))
    return Checkpoint(position, started_ms, clock_ms, done, coverage=coverage)


def listed(position: Mapping[TopicPartition, int]) -> list[tuple[str, int, int]]:
    """A position as rows of topic, partition and timestamp."""
    return [(*source, timestamp_ms) for source, timestamp_ms in sorted(position.items())]


def read_listed(rows: Any) -> Position:
    """Read what `listed` gave, within `unreadable_if_damaged`."""
    position = {(topic, partition): timestamp_ms for topic, partition, timestamp_ms in rows}
    if not all(
        (is_source(source) or source == UNKNOWN_SOURCE) and is_time(timestamp_ms)
        for source, timestamp_ms in position.items()
    ):
        raise UnreadableCheckpoint("it holds values that are no position")
    return position


def listed_coverage(coverage: Coverage) -> list[list[Any]]:
    """A coverage as rows of topic, partition and intervals."""
    return [[*source, list(map(list, intervals))] for source, intervals in sorted(coverage.items())]


def read_coverage(rows: Any) -> Coverage:
    """Read what `listed_coverage` gave, within `unreadable_if_damaged`."""
    coverage = {
        (topic, partition): tuple(Interval(*pair) for pair in pairs)
        for topic, partition, pairs in rows
    }
    times = [time for intervals in coverage.values() for pair in intervals for time in pair]
    if not all(map(is_source, coverage)) or not all(map(is_time, times)):
        raise UnreadableCheckpoint("it holds values that are no coverage")
    return coverage


def is_time(number: object) -> bool:
    """Whether a stored value can be a timestamp, in ms since 1970."""
    return type(number) is int and 0 <= number <= MAX_TIMESTAMP_MS


MAX_LAST_EVENT_ID_BYTES = 12 << 10
"""The longest `Last-Event-ID` that is sent. Node 20 takes 16 KiB for all headers together, HAProxy 15
KiB (`tune.bufsize` less `tune.maxrewrite`), ATS 128 KiB: so 3 KiB are left for the request line and the
other headers. 128 topic-partitions with names of 40 characters fit; that of recentchange has 28. nginx,
Varnish and Apache take 8 KiB for one header, i.e. 100 topic-partitions of recentchange: a longer one is
refused there, and the refusal says so. To send no more than that would leave out topics where all of
them can be served."""

_ENTRY_BYTES = len(compose_id({("", 0): MAX_TIMESTAMP_MS})) - len("[0]") + len(",")


def entry_bytes(source: TopicPartition) -> int:
    """How much room one topic-partition takes in a `Last-Event-ID`, at most."""
    topic, partition = source
    return _ENTRY_BYTES + len(topic) + len(str(partition))


def fitting(position: Mapping[TopicPartition, int]) -> Position:
    """The part of a position that one request has room for.

    Those that have delivered come first, of them the latest; then those that have not, in their order.
    """
    room = MAX_LAST_EVENT_ID_BYTES - len("[]")
    if sum(map(entry_bytes, position)) <= room:
        return dict(position)
    chosen = set()
    for source in sorted(position, key=lambda each: -position[each]):
        if entry_bytes(source) <= room:
            room -= entry_bytes(source)
            chosen.add(source)
    return {source: reached for source, reached in position.items() if source in chosen}


@dataclass(slots=True)
class ResumeCursor:
    """The reader's knowledge of where it is: what was delivered, and what to ask for next.

    Laws, beside those above:
    - What is asked for fits into `MAX_LAST_EVENT_ID_BYTES`, whatever names come. Those that have
      delivered come first; one of them that finds no room is in `crowded_out`, so that it can be told.
    - Of what has delivered nothing is asked from before its floor, nor from beyond its latest event.
    - A topic that is left out keeps its position.
    """

    started_ms: int
    overlap_ms: int
    """At least 1: a timestamp in an id is its event's + 1."""
    position: Position = field(default_factory=dict)
    floors: Mapping[TopicPartition, int] = field(default_factory=dict)
    """Topic-partition → from when on the destination remembers all that was published. What is asked
    from earlier might be published twice."""
    found: Mapping[TopicPartition, int] = field(default_factory=dict)
    """Topic-partition → timestamp of an event that the upstream is known to have; for those that have
    delivered nothing."""
    left_out: set[str] = field(default_factory=set)
    """Topics that the upstream does not have at present."""
    crowded_out: set[TopicPartition] = field(default_factory=set)
    """Those that have delivered and are not asked for: there is no room. At most `MAX_SOURCES`."""

    def resume(self, position: Mapping[TopicPartition, int]) -> None:
        """Begin with a stored position, or as much of it as fits; see `crowded_out`."""
        self.position = fitting(position)
        for source, reached in position.items():
            if reached and source not in self.position:
                self._crowd_out(source)

    def observe(self, delivered: Mapping[TopicPartition, int]) -> None:
        """Take note of a position that the ids of delivered events amount to."""
        position = self.position
        for source, timestamp_ms in delivered.items():
            reached = position.get(source)
            if reached is None and not self._make_room(source, timestamp_ms):
                continue
            if reached is None or timestamp_ms > reached:
                position[source] = timestamp_ms
                self.crowded_out.discard(source)

    def _make_room(self, source: TopicPartition, timestamp_ms: int) -> bool:
        """Whether there is room for a new one; those that have delivered nothing make it, last first."""
        room = MAX_LAST_EVENT_ID_BYTES - len("[]") - sum(map(entry_bytes, self.position))
        needed = entry_bytes(source)
        if needed <= room:
            return True
        if not timestamp_ms:
            return False
        idle = [each for each, reached in self.position.items() if not reached]
        if needed > room + sum(map(entry_bytes, idle)):
            self._crowd_out(source)
            return False
        while needed > room:
            room += entry_bytes(idle[-1])
            del self.position[idle.pop()]
        return True

    def _crowd_out(self, source: TopicPartition) -> None:
        # Bounded, whatever names come.
        if len(self.crowded_out) < MAX_SOURCES:
            self.crowded_out.add(source)

    def request(self, clock_ms: int) -> dict[TopicPartition, int]:
        """From which timestamp on to ask for each topic-partition, without those left out."""
        there = {
            source: reached
            for source, reached in self.position.items()
            if source[0] not in self.left_out
        }
        return {source: self.asked_from(source, clock_ms) for source in fitting(there)}

    def last_event_id(self, clock_ms: int) -> str | None:
        """What to send as `Last-Event-ID`; None while no topic is known: send `since` instead."""
        if not self.position:
            return None
        return compose_id(self.request(clock_ms))

    def asked_from(self, source: TopicPartition, clock_ms: int) -> int:
        """The timestamp from which a reconnect asks for a topic-partition, ms since 1970."""
        reached = self.position.get(source, 0)
        if not reached:
            return self.started_ms
        asked = max(min(reached, clock_ms) - self.overlap_ms, 0)
        asked = max(asked, min(self.floors.get(source, 0), reached - 1))
        # Not before the start, where that can't skip anything: if an event dated at or after it was
        # delivered (a timestamp in an id is its event's + 1). If all that came is dated before the
        # start, only `asked` is certain not to lie behind what is undelivered; what upstream then
        # repeats from before the start is for `admission` to drop.
        return max(asked, self.started_ms) if reached > self.started_ms else asked
