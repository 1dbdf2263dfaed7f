"""The reader's position, and the timestamps from which it asks the upstream.

Laws:
- A reconnect asks each topic-partition for `min(position, clock) - overlap`. Some delivered event
  carries the position's timestamp, and the upstream resolves a timestamp to the *earliest* offset at or
  after it. So the resolved offset never lies behind the first undelivered event.
- A topic-partition that has delivered nothing is asked for from where relaying began; never "latest".
- A request fits into `MAX_LAST_EVENT_ID_BYTES`, whatever names the upstream sends. Topic-partitions that
  have delivered come first. One that does not fit is in `crowded_out`, so that it can be reported.
- Nothing is asked for from before its floor, nor from beyond its latest event.
- A topic that is left out keeps its position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pleiades.core.position import MAX_SOURCES, Position
from pleiades.core.sse_id import MAX_TIMESTAMP_MS, TopicPartition, compose_id

MAX_LAST_EVENT_ID_BYTES = 12 << 10
"""The longest `Last-Event-ID` that is sent. Node 20 accepts 16 KiB of headers, HAProxy 15 KiB
(`tune.bufsize` less `tune.maxrewrite`), ATS 128 KiB; this leaves 3 KiB for the request line and the
other headers. 128 topic-partitions with names of 40 characters fit; recentchange's have 28. nginx,
Varnish and Apache accept 8 KiB for one header, which is 100 topic-partitions of recentchange. They
refuse a longer one, and the refusal says so. A limit of 8 KiB would leave out topics where all of them
can be served."""

_ENTRY_BYTES = len(compose_id({("", 0): MAX_TIMESTAMP_MS})) - len("[0]") + len(",")


def entry_bytes(source: TopicPartition) -> int:
    """The most bytes that a topic-partition takes in a `Last-Event-ID`."""
    topic, partition = source
    return _ENTRY_BYTES + len(topic) + len(str(partition))


def fitting(position: Mapping[TopicPartition, int]) -> Position:
    """The part of a position that fits into one request.

    Topic-partitions that have delivered come first, the latest ones before others; then the rest, in
    order.
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
    """The reader's position, and the requests that follow from it."""

    started_ms: int
    overlap_ms: int
    """At least 1, because a timestamp in an id is that of its event + 1."""
    position: Position = field(default_factory=dict)
    floors: Mapping[TopicPartition, int] = field(default_factory=dict)
    """Topic-partition → the timestamp from which on the destination remembers everything published.
    Events from before it might be published twice."""
    found: Mapping[TopicPartition, int] = field(default_factory=dict)
    """Topic-partition → timestamp of an event that the upstream is known to have. Those that have
    delivered something before lose it: what lay between the position and that event may have expired."""
    left_out: set[str] = field(default_factory=set)
    """Topics that the upstream does not have at present."""
    crowded_out: set[TopicPartition] = field(default_factory=set)
    """Those that have delivered and do not fit into a request. At most `MAX_SOURCES`."""

    def __post_init__(self) -> None:
        """See `found`."""
        self.found = {at: time for at, time in self.found.items() if not self.position.get(at)}

    def resume(self, position: Mapping[TopicPartition, int]) -> None:
        """Begin with a stored position, or the part of it that fits; see `crowded_out`."""
        self.position = fitting(position)
        for source, reached in position.items():
            if reached and source not in self.position:
                self._crowd_out(source)

    def observe(self, delivered: Mapping[TopicPartition, int]) -> None:
        """Note the position of delivered events."""
        position = self.position
        for source, timestamp_ms in delivered.items():
            reached = position.get(source)
            if reached is None and not self._make_room(source, timestamp_ms):
                continue
            if reached is None or timestamp_ms > reached:
                position[source] = timestamp_ms
                self.crowded_out.discard(source)

    def _make_room(self, source: TopicPartition, timestamp_ms: int) -> bool:
        """Make room for a new one by removing those that have delivered nothing, the last ones first.

        Returns False if there is not enough room.
        """
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
        # Bounded against an upstream that invents names.
        if len(self.crowded_out) < MAX_SOURCES:
            self.crowded_out.add(source)

    def request(self, clock_ms: int) -> dict[TopicPartition, int]:
        """The timestamp to ask for, by topic-partition, without the topics that are left out."""
        there = {
            source: reached
            for source, reached in self.position.items()
            if source[0] not in self.left_out
        }
        return {source: self.asked_from(source, clock_ms) for source in fitting(there)}

    def last_event_id(self, clock_ms: int) -> str | None:
        """The `Last-Event-ID` to send; None while no topic is known: send `since` instead."""
        if not self.position:
            return None
        return compose_id(self.request(clock_ms))

    def asked_from(self, source: TopicPartition, clock_ms: int) -> int:
        """The timestamp from which to ask for a topic-partition, ms since 1970."""
        reached = self.position.get(source, 0)
        if not reached:
            return self.started_ms
        asked = max(min(reached, clock_ms) - self.overlap_ms, 0)
        asked = max(asked, min(self.floors.get(source, 0), reached - 1))
        # If an event dated at or after the start was delivered (a timestamp in an id is that of its
        # event + 1), not asking for anything before the start skips nothing. If all delivered events
        # are dated before the start, only `asked` is certain not to lie behind undelivered ones.
        # `admission` drops what the upstream then repeats from before the start.
        return max(asked, self.started_ms) if reached > self.started_ms else asked
