"""Reads parts of a topic and of its dead letters back, one record after the other.

Laws:
- What is read goes up to where the topic ended when reading began, so behind every record that an
  earlier producer of ours committed. A consumer of committed records stops at the first open
  transaction; ours are all ended by then, and somebody else's (a replay into the same topic) is waited
  for.
- Memory does not grow with what is read.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from pleiades.core.fingerprint import fingerprint
from pleiades.core.position import Position
from pleiades.core.readback import (
    UNKNOWN_LETTERS,
    Offsets,
    OutputPartition,
    Part,
    remembered_as,
    runs,
)
from pleiades.core.wire import UNKNOWN_SOURCE
from pleiades.sinks.base import Remembered
from pleiades.sinks.kafka.patience import Patience
from pleiades.sinks.kafka.records import Published, read_dead_letter, read_event, read_named_event
from pleiades.sinks.kafka.topics import REQUEST_SECONDS, Topics
from pleiades.sinks.kafka.trouble import Kind, kind_of

log = logging.getLogger(__name__)

MESSAGES_AT_ONCE = 1_000
POLL_SECONDS = 0.05
"""So long a read waits for as many; the last one of a topic waits in vain, at each start."""
WAITING_SECONDS = 10.0
"""After which it is said that reading takes its time, and why."""
READING = "read the topic"

Wanted: TypeAlias = Callable[[Published], bool]
Read: TypeAlias = Callable[[Message], Published | None]


class Found(NamedTuple):
    """A record, and where it lies."""

    at: OutputPartition
    offset: int
    record: Published


class History:
    """A topic and its dead letters, to be read back.

    Args:
        alive: called at least every half second.
    """

    def __init__(
        self, consumer: Consumer, topics: Topics, patience: Patience, alive: Callable[[], None]
    ) -> None:
        self._consumer = consumer
        self._topics = topics
        self._patience = patience
        self._alive = alive

    def window(
        self, parts: Iterable[Part], wanted: Wanted, by_id: bool = False
    ) -> Iterator[Remembered]:
        """What is remembered of the wanted records of these parts.

        Args:
            by_id: to judge which are wanted, their ids are needed.
        """
        for run in runs(parts):
            unknown = any(UNKNOWN_SOURCE in part.reached for part in run)
            read = read_event if by_id or unknown else read_named_event
            yield from self._run(run, wanted, read)

    def _run(self, run: list[Part], wanted: Wanted, read: Read) -> Iterator[Remembered]:
        begins: dict[OutputPartition, int] = {}
        ends: dict[OutputPartition, int] = {}
        for part in run:
            for at, end in part.end.items():
                begins.setdefault(at, part.begin.get(at, 0))
                ends[at] = end
        bounds = {at: [part.end.get(at, 0) for part in run] for at in ends}
        # Output partitions come in no order between them. That one of a later part comes first must not
        # look like the begin of something else (`Window.restore`); more only keeps it longer.
        highest: Position = {}
        for at, offset, record in self.read(begins, ends, read):
            if not wanted(record):
                continue
            part = run[bisect_right(bounds[at], offset)] if len(run) > 1 else run[0]
            letter = at[0] == self._topics.dead_letters
            name = remembered_as(record.source, part.reached, letter)
            reached_ms = part.reached.get(name)
            if reached_ms is None and record.source == UNKNOWN_SOURCE:
                # It was known when it was published; now it may be of any.
                reached_ms = max(part.reached.values())
            if reached_ms is None:
                continue
            if reached_ms < highest.get(name, 0):
                reached_ms = highest[name]
            highest[name] = reached_ms
            yield Remembered(
                UNKNOWN_SOURCE if name == UNKNOWN_LETTERS else name,
                reached_ms,
                fingerprint(record.identity),
            )

    def read(self, begins: Offsets, ends: Offsets, read: Read = read_event) -> Iterator[Found]:
        """All records of ours and of others from some offsets up to others.

        Raises:
            Fatal, GenerationLost: they can't be read, and to wait would not help.
        """
        starts = self._patience.until_done(READING, lambda: self._topics.starts(ends))
        unread = {
            at: max(begins.get(at, 0), starts[at])
            for at, end in ends.items()
            if max(begins.get(at, 0), starts[at]) < end
        }
        if not unread:
            return
        self._assign(unread)
        try:
            yield from self._consume(unread, ends, read)
        except KafkaException as error:
            self._patience.give_up(READING, error.args[0])
        finally:
            self._consumer.unassign()

    def _assign(self, begins: Offsets) -> None:
        consumer = self._consumer
        # Who leads them; of itself librdkafka asks only a second after the assignment.
        for topic in {topic for topic, _ in begins}:
            self._patience.until_done(
                READING,
                lambda topic=topic: consumer.list_topics(topic, REQUEST_SECONDS),  # type: ignore[misc]
            )
        partitions = [TopicPartition(*at, begin) for at, begin in begins.items()]
        consumer.assign(partitions)
        # A partition that was paused stays so in the next assignment.
        consumer.resume(partitions)

    def _consume(
        self, unread: dict[OutputPartition, int], ends: Offsets, read: Read
    ) -> Iterator[Found]:
        started, told, count = time.monotonic(), False, 0
        while unread:
            self._alive()
            done = set()
            for message in self._consumer.consume(MESSAGES_AT_ONCE, POLL_SECONDS):
                at = (message.topic() or "", message.partition() or 0)
                offset = message.offset() or 0
                error = message.error()
                if error is None:
                    count += 1
                    if offset < ends[at] and (record := self._record(message, read)) is not None:
                        yield Found(at, offset, record)
                    if offset + 1 >= ends[at]:
                        done.add(at)
                elif error.code() == KafkaError._PARTITION_EOF:
                    if offset >= ends[at]:
                        done.add(at)
                elif kind_of(error) is Kind.TRANSIENT:
                    log.debug("reading %s: %s", at, error)
                else:
                    raise KafkaException(error)
            for at in done & unread.keys():
                # Else what lies behind would be fetched, too.
                del unread[at]
                self._consumer.pause([TopicPartition(*at)])
            if not told and time.monotonic() - started > WAITING_SECONDS:
                told = True
                log.info(
                    "reading %s back: %d records so far; if it does not grow, another transaction is "
                    "open on the topic and is waited for",
                    self._topics.events,
                    count,
                )

    def _record(self, message: Message, read: Read) -> Published | None:
        if message.topic() == self._topics.dead_letters:
            return read_dead_letter(message)
        return read(message)
