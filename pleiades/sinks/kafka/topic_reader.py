"""Reads parts of a topic and of its dead letters back.

Laws:
- A read ends where the topic ended when it began, so behind every record that an earlier producer of
  ours committed. A consumer of committed records stops at the first open transaction. Ours have all
  ended by then; a read waits for those of others, such as a replay into the same topic.
- Memory does not grow with the number of records.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from pleiades.core.fingerprint import fingerprint
from pleiades.core.position import Position
from pleiades.core.range import Range
from pleiades.core.readback import (
    UNKNOWN_LETTERS,
    Offsets,
    OutputPartition,
    Segment,
    remembered_as,
    runs,
)
from pleiades.core.sse_id import UNKNOWN_SOURCE
from pleiades.sinks.base import Remembered
from pleiades.sinks.kafka.admin import REQUEST_SECONDS, Admin
from pleiades.sinks.kafka.errors import Kind, kind_of
from pleiades.sinks.kafka.records import Published, read_dead_letter, read_event
from pleiades.sinks.kafka.retry import Retry
from pleiades.sinks.kafka.skip_existing import Existing, since_ms

log = logging.getLogger(__name__)

MESSAGES_AT_ONCE = 1_000
POLL_SECONDS = 0.05
"""The time that a poll waits for so many records. The last poll of a read always does."""
WAITING_SECONDS = 10.0
"""A longer read is logged."""
READING = "read the topic"


class TopicReader:
    """Reads the records of relays back."""

    def __init__(self, consumer: Consumer, admin: Admin, retry: Retry) -> None:
        self._consumer = consumer
        self._admin = admin
        self._retry = retry

    def window(
        self, parts: Iterable[Segment], is_own: Callable[[Published], bool]
    ) -> Iterator[Remembered]:
        """The events of these parts to recognise repeats by, of those records that are our own."""
        started, count = time.monotonic(), 0
        for run in runs(parts):
            for remembered in self._run(run, is_own):
                count += 1
                yield remembered
        if count:
            seconds = time.monotonic() - started
            log.info(
                "read %d events of the topic back in %.1f s to recognise repeats", count, seconds
            )

    def existing(self, span: Range) -> Existing:
        """The events of a range that the topic has already."""
        started, ask = time.monotonic(), self._retry.until_done
        ends = ask("ask where the topic ends", self._admin.ends)
        asked = partial(self._admin.begins, ends, since_ms(span))
        records = self.read({**ends, **ask("ask where to read", asked)}, ends)
        existing = Existing()
        existing.add(record.identity for record in records if record.may_be_of(span))
        log.info(
            "the topic has %d events of the range already, read in %.1f s: adding the missing ones",
            len(existing),
            time.monotonic() - started,
        )
        return existing

    def _run(self, run: list[Segment], is_own: Callable[[Published], bool]) -> Iterator[Remembered]:
        begins: dict[OutputPartition, int] = {}
        ends: dict[OutputPartition, int] = {}
        for part in run:
            for at, end in part.end.items():
                begins.setdefault(at, part.begin.get(at, 0))
                ends[at] = end
        bounds = {at: [part.end.get(at, 0) for part in run] for at in ends}
        # Output partitions arrive in any order. A later part's that comes first must not look like the
        # begin of something else (`Window.restore`). A higher value only keeps the event longer.
        highest: Position = {}
        for record in self.read(begins, ends):
            if not is_own(record):
                continue
            part = run[bisect_right(bounds[record.at], record.offset)] if len(run) > 1 else run[0]
            letter = record.at[0] == self._admin.settings.dead_letters
            name = remembered_as(record.source, part.reached, letter)
            reached_ms = part.reached.get(name)
            if reached_ms is None and record.source == UNKNOWN_SOURCE:
                # Its source was known when it was published; now it may be any.
                reached_ms = max(part.reached.values())
            if reached_ms is None:
                continue
            highest[name] = reached_ms = max(reached_ms, highest.get(name, 0))
            source = UNKNOWN_SOURCE if name == UNKNOWN_LETTERS else name
            yield Remembered(source, reached_ms, fingerprint(record.identity))

    def read(self, begins: Offsets, ends: Offsets) -> Iterator[Published]:
        """All records of relays between offsets.

        Raises:
            Fatal, GenerationLost, Fenced: they can't be read, and waiting would not help.
        """
        consumer, ask = self._consumer, self._retry.until_done
        starts = ask(READING, lambda: self._admin.starts(ends))
        unread = {
            at: begin
            for at, end in ends.items()
            if (begin := max(begins.get(at, 0), starts[at])) < end
        }
        if not unread:
            return
        # Ask for the leaders now; librdkafka would do it a second after the assignment.
        for topic in {topic for topic, _ in unread}:
            ask(READING, partial(consumer.list_topics, topic, REQUEST_SECONDS))
        partitions = [TopicPartition(*at, begin) for at, begin in unread.items()]
        consumer.assign(partitions)
        # A partition that was paused stays paused in the next assignment.
        consumer.resume(partitions)
        try:
            yield from self._consume(set(unread), ends)
        except KafkaException as error:
            self._retry.give_up(READING, error.args[0])
        finally:
            consumer.unassign()

    def _consume(self, unread: set[OutputPartition], ends: Offsets) -> Iterator[Published]:
        dead_letters = self._admin.settings.dead_letters
        started, logged, count = time.monotonic(), False, 0
        while unread:
            self._retry.child.beat()
            done = set()
            for message in self._consumer.consume(MESSAGES_AT_ONCE, POLL_SECONDS):
                at = (message.topic() or "", message.partition() or 0)
                offset = message.offset() or 0
                error = message.error()
                if error is None:
                    count += 1
                    read = read_dead_letter if at[0] == dead_letters else read_event
                    if offset < ends[at] and (record := read(message)) is not None:
                        yield record
                    if offset + 1 >= ends[at]:
                        done.add(at)
                elif error.code() == KafkaError._PARTITION_EOF:
                    if offset >= ends[at]:
                        done.add(at)
                elif kind_of(error) is Kind.TRANSIENT:
                    log.debug("reading %s: %s", at, error)
                else:
                    raise KafkaException(error)
            # Otherwise the records behind them would be fetched, too.
            self._consumer.pause([TopicPartition(*at) for at in done & unread])
            unread -= done
            if not logged and time.monotonic() - started > WAITING_SECONDS:
                logged = True
                log.info(
                    "reading %s back: %d records so far. If the number does not grow, another "
                    "transaction is open on the topic, and the relay waits for its end",
                    self._admin.settings.topic,
                    count,
                )
