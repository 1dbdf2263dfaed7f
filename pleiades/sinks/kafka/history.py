"""Reads a topic back: the part that a restart must know, or the tail where no position is stored.

Law: what is read goes up to where the topic ended when reading began, so behind every record that an
earlier producer of ours committed. A consumer of committed records stops at the first open transaction;
ours are all ended by then, and somebody else's (a replay into the same topic) is waited for.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from pleiades.core.position import Checkpoint, Position, join
from pleiades.sinks.kafka.records import (
    NO_STREAM,
    Published,
    is_of_replay,
    read_dead_letter,
    read_event,
)
from pleiades.sinks.kafka.topics import REQUEST_SECONDS, Topics
from pleiades.sinks.kafka.trouble import Kind, kind_of

log = logging.getLogger(__name__)

MESSAGES_AT_ONCE = 10_000
POLL_SECONDS = 0.05
"""So long a read waits for as many; the last one of a topic waits in vain, at each start."""
TAIL_RECORDS = 50_000
"""How much of a topic without a stored position is looked at first."""
TAIL_GROWTH = 4
MAX_TAIL_RECORDS = 200_000
"""The most of the tail: with their ids, these weigh about 150 MB."""
MAX_RECORDS = 500_000
"""The most that is kept of what is read; the oldest are let go. As many identities as are remembered
by default (`--dedup.maxEntries`): about 100 MB."""
WAITING_SECONDS = 10.0
"""After which it is said that reading takes its time, and why."""

Ends = Mapping[tuple[str, int], int]
Wanted: TypeAlias = Callable[[Published], bool]


class History:
    """A topic and its dead letters, to be read back.

    Args:
        alive: called at least every half second.
    """

    def __init__(self, consumer: Consumer, topics: Topics, alive: Callable[[], None]) -> None:
        self._consumer = consumer
        self._topics = topics
        self._alive = alive

    def since(self, ends: Ends, since_ms: int, wanted: Wanted) -> list[Published]:
        """What is wanted from the first record on that is dated at or after `since_ms`.

        Raises:
            KafkaException: it can't be read now.
        """
        # Their ids are not needed any more, and are most of what they weigh.
        return self._kept(
            record._replace(assignments=())
            for record in self.each_since(ends, since_ms)
            if wanted(record)
        )

    def each_since(self, ends: Ends, since_ms: int) -> Iterator[Published]:
        """The same one by one, partition by partition.

        Raises:
            KafkaException: it can't be read now.
        """
        return self._read(self._topics.begins(ends, since_ms), ends)

    def tail(self, ends: Ends, records: int) -> tuple[list[Published], bool]:
        """The last records, about that many over all partitions; and whether that is all there is.

        Raises:
            KafkaException: it can't be read now.
        """
        events = [at for at in ends if at[0] == self._topics.events]
        each = -(-records // max(len(events), 1))
        begins = {}
        complete = True
        for at in ends:
            low, _ = self._consumer.get_watermark_offsets(TopicPartition(*at), REQUEST_SECONDS)
            begins[at] = max(low, ends[at] - each)
            complete = complete and begins[at] == low
        return self._kept(self._read(begins, ends)), complete

    def _kept(self, records: Iterator[Published]) -> list[Published]:
        kept: deque[Published] = deque(maxlen=MAX_RECORDS)
        let_go = 0
        for record in records:
            let_go += len(kept) == MAX_RECORDS
            kept.append(record)
        if let_go:
            log.warning(
                "more was published within the window than a start can know: of %d events the oldest %d "
                "are forgotten, and if the upstream repeats them they are published twice",
                len(kept) + let_go,
                let_go,
            )
        # Partitions come in no order between them.
        return sorted(kept, key=attrgetter("published_ms"))

    def _read(self, begins: Mapping[tuple[str, int], int], ends: Ends) -> Iterator[Published]:
        unread = {at for at, begin in begins.items() if begin < ends[at]}
        if not unread:
            return
        consumer = self._consumer
        # Who leads them; of itself librdkafka asks only a second after the assignment.
        for topic in {topic for topic, _ in unread}:
            consumer.list_topics(topic, REQUEST_SECONDS)
        consumer.assign([TopicPartition(*at, begins[at]) for at in unread])
        started, told, count = time.monotonic(), False, 0
        try:
            while unread:
                self._alive()
                for message in consumer.consume(MESSAGES_AT_ONCE, POLL_SECONDS):
                    at = (message.topic() or "", message.partition() or 0)
                    offset = message.offset() or 0
                    error = message.error()
                    if error is None:
                        count += 1
                        published = self._published(message)
                        if published is not None:
                            yield published
                        if offset + 1 >= ends[at]:
                            unread.discard(at)
                    elif error.code() != KafkaError._PARTITION_EOF:
                        if kind_of(error) is not Kind.TRANSIENT:
                            raise KafkaException(error)
                        log.debug("reading %s: %s", at, error)
                    elif offset >= ends[at]:
                        unread.discard(at)
                if not told and time.monotonic() - started > WAITING_SECONDS:
                    told = True
                    log.info(
                        "reading %s back: %d records so far; if it does not grow, another "
                        "transaction is open on the topic and is waited for",
                        self._topics.events,
                        count,
                    )
        finally:
            consumer.unassign()

    def _published(self, message: Message) -> Published | None:
        if message.topic() == self._topics.dead_letters:
            return read_dead_letter(message)
        return read_event(message)


def own_of(records: list[Published]) -> list[Published]:
    """Those of an ingest: a replay may be far behind it, or ahead of where it stopped.

    A replay's ids name one topic-partition. Where all name the same one, the stream may have no other.
    """
    own = [record for record in records if not is_of_replay(record)]
    sources = {assignment.source for record in records for assignment in record.assignments}
    return records if len(sources) <= 1 else own


def covers(records: list[Published], reached: Position, window_ms: int) -> bool:
    """Whether records that begin somewhere in a topic reach back behind all that can be repeated.

    Judged by the oldest of them: its id says how far each upstream topic was when it came.
    """
    oldest = next((record for record in records if record.stream != NO_STREAM), None)
    return oldest is not None and all(
        (timestamp_ms or 0) < reached.get(source, 0) - window_ms
        for source, timestamp_ms in oldest.assignments
    )


class Tail(NamedTuple):
    """What the last records of a topic tell."""

    checkpoint: Checkpoint | None
    """Where to go on; None: they say nothing of these streams."""
    reached: Position
    """The join of their ids."""


def found_in(records: list[Published], streams: tuple[str, ...], overlap_ms: int) -> Tail:
    """The position by the ids of an ingest's records alone: their join.

    Records of other streams do not count: upstream refuses an id that names a topic of another stream,
    and a stream that the position leaves out would not be sent at all.

    Where the ids name one topic-partition only, the stream may have others, of which a replay was not
    asked. The position is a time then, which is asked of all of them.
    """
    reached: Position = {}
    seen = set()
    for record in records:
        matching = [name for name in streams if _is_of(record.stream, name)]
        if not matching:
            continue
        seen.update(matching)
        reached = join(reached, {source: time or 0 for source, time in record.assignments})
    times = [timestamp_ms for timestamp_ms in reached.values() if timestamp_ms]
    if not times:
        return Tail(None, {})
    begin_ms = max(min(times) - overlap_ms, 0)
    if len(seen) < len(streams):
        log.warning(
            "the topic has events of %s, but none of %s: it does not tell where to go on. Starting "
            "where --since says; to leave no gap, start again with --resume=false --since=%d",
            ", ".join(sorted(seen)),
            ", ".join(sorted(set(streams) - seen)),
            begin_ms,
        )
        return Tail(None, {})
    # Before every position: else a topic would count as one that has delivered nothing from after the
    # start, and what a reconnect repeats of it be taken for older than the start.
    # With a clock: something had come, so --since does not count any more.
    return Tail(Checkpoint(reached if len(reached) > 1 else {}, begin_ms, begin_ms), reached)


def _is_of(meta_stream: str, name: str) -> bool:
    """`mediawiki.recentchange` is of the stream `recentchange`; old events do not say theirs."""
    return not meta_stream or meta_stream == name or meta_stream.endswith("." + name)
