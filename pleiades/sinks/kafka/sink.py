"""Publishes into a Kafka topic, every event exactly once for whoever reads committed records.

Laws:
- Events, dead letters and the position are one transaction (KIP-98): all of it is there, or nothing.
- The position is the metadata of an offset of the group `pleiades-<topic>-<stream>`. The offset itself
  says nothing: nobody consumes with that group.
- The topic is the window. What a restart must know of it begins at the publish time that stands beside
  the position (`core.span`), and is read back up to the topic's end, after everything that an earlier
  producer of ours left open has been ended (`init_transactions`).
- The transactional id is the group's name, so a new instance fences the old one. A fenced one asks who
  committed last: somebody else, then it ends with the status of its own; nobody else, then the broker
  had ended its transaction, and it starts again.
"""

from __future__ import annotations

import logging
import time
from typing import NamedTuple, NoReturn

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from pleiades.core.fingerprint import fingerprint
from pleiades.core.position import Checkpoint, UnreadableCheckpoint
from pleiades.core.range import Range
from pleiades.core.span import Span
from pleiades.core.wire import DeadLetter, Event
from pleiades.runtime.errors import DestinationHeld, GenerationLost
from pleiades.runtime.settings import KafkaSettings, ReplaySettings
from pleiades.sinks.base import Committed, Opened, Remembered
from pleiades.sinks.kafka.clients import BATCH_OVERHEAD_BYTES, Clients, new_writer
from pleiades.sinks.kafka.existing import Existing, is_of, since_ms
from pleiades.sinks.kafka.history import (
    MAX_TAIL_RECORDS,
    TAIL_GROWTH,
    TAIL_RECORDS,
    Ends,
    History,
    Wanted,
    covers,
    found_in,
    own_of,
)
from pleiades.sinks.kafka.insisting import SLICE_SECONDS, Around
from pleiades.sinks.kafka.patience import Fenced, Patience
from pleiades.sinks.kafka.records import Published, is_of_replay, key_by_field
from pleiades.sinks.kafka.reporting import Reporting
from pleiades.sinks.kafka.stored import Stored, read_metadata
from pleiades.sinks.kafka.topics import Limits, Topics
from pleiades.sinks.kafka.transaction import Transactions
from pleiades.sinks.kafka.trouble import group_of

log = logging.getLogger(__name__)

REACH_SECONDS = 2.0
REQUEST_SECONDS = 5.0
BEGIN_SECONDS = 30.0
"""So long a producer may take to begin transactions, while the cluster can be reached. One that asked
for its coordinator just when that hung was seen to wait for it minutes after it ran again."""
CREATE_TIME_SLACK_MS = 1000
"""A record gets its time a moment after we looked at the clock, and a clock may be corrected."""
APPEND_TIME_SLACK_MS = 60_000
"""How far the broker's clock may be behind ours, where records carry the broker's time."""
CLAIM_SECONDS = 5.0
"""A new instance that has fenced the old one commits in its name at once; so long the old one waits."""


class Session(NamedTuple):
    """What is there from opening to closing."""

    consumer: Consumer
    producer: Producer
    transactions: Transactions
    group: object
    """Which group the position is sent to. The consumer never joins it, so this does not change; to ask
    for it takes as long as half a commit."""


class KafkaSink:
    """Publishes into a topic.

    Args:
        streams: those that are relayed, by the names they are asked for.
        overlap_ms, window_ms: see `Course` and `Window`.
        reached: the cluster was reached before, by this program.
        replay: what is replayed; None: this is an ingest.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        streams: tuple[str, ...],
        overlap_ms: int,
        window_ms: int,
        reached: bool,
        reporting: Reporting,
        replay: ReplaySettings | None = None,
    ) -> None:
        self._settings = settings
        self._streams = streams
        self._overlap_ms = overlap_ms
        self._window_ms = window_ms
        self._reporting = reporting
        self._clients = Clients(settings)
        self._group = group_of(settings)
        self._writer = new_writer()
        self._span = Span(0)
        self._patience = Patience(settings, self._clients, reporting, reached)
        self._session: Session | None = None
        self._replay = replay
        self._existing: Existing | None = None

    def open(self, resume: bool) -> Opened:
        """See `Sink.open`."""
        topics = self._reach_topics()
        limits = self._patience.until_done(
            "ask what the topic takes", lambda: topics.limits(topics.events)
        )
        dead_limits = self._patience.until_done(
            "ask what the topic takes", lambda: topics.limits(topics.dead_letters)
        )
        self._session = self._begin_session(topics, limits, dead_limits)
        stored = self._patience.until_done("read the stored position", self._stored)
        history = History(self._session.consumer, topics, self._reporting.alive)
        ends = self._patience.until_done(
            "ask where the topic ends", lambda: topics.ends(topics.partitions())
        )
        if stored is not None:
            # As soon as it is fenced, the old instance looks for who did it.
            self._claim(stored)
        if self._replay is not None and self._replay.skip_existing:
            self._existing = self._look_for_existing(history, ends, self._replay.range)
        if self._replay is not None and (stored is None or not resume):
            # It begins, or begins again: what others published is none of its business.
            self._span = Span(_now_ms())
            return Opened(None, all_told=self._existing is None)
        if stored is None:
            checkpoint, window = self._found(history, ends)
            if checkpoint is not None and resume:
                log.warning(
                    "no position is stored as the group %s, but the topic is not empty: going on after "
                    "its last events, as far as their keys tell",
                    self._group,
                )
        else:
            checkpoint, window = stored.checkpoint, self._read_back(history, ends, stored, limits)
        return Opened(checkpoint, window, all_told=self._existing is None)

    def is_published(self, event: Event | DeadLetter) -> bool:
        """See `Sink.is_published`: what was there before a replay; all else is in the window."""
        return self._existing is not None and event.identity in self._existing

    def write(self, events: list[Event], dead_letters: list[DeadLetter]) -> None:
        """See `Sink.write`."""
        # The clock is read before and after, for librdkafka reads it in between.
        self._span = self._span.publishing(_now_ms())
        with self._reporting.writing():
            self._opened().transactions.write(events, dead_letters)
        self._span = self._span.publishing(_now_ms())

    def commit(self, checkpoint: Checkpoint) -> Committed:
        """See `Sink.commit`."""
        span = self._span.committed(checkpoint, self._window_ms)
        with self._reporting.committing():
            letters = self._commit(Stored(checkpoint, span, self._writer))
            self._patience.well()
        self._span = span
        return Committed(letters)

    def tend(self) -> None:
        """See `Sink.tend`."""
        # Of an idle stream, too, librdkafka makes statistics, and keeps them until they are taken:
        # 7 MB an hour.
        self._opened().transactions.tend()

    def close(self) -> None:
        """See `Sink.close`."""
        # What is in flight is neither flushed nor aborted: the next start ends the transaction, and
        # closing must not wait for a broker that is away.
        if self._session is not None:
            self._session.producer.purge()
            self._session.consumer.close()
            self._session = None
        if self._existing is not None:
            self._existing.close()
            self._existing = None

    # ---- opening ----

    def _reach_topics(self) -> Topics:
        topics = Topics(self._clients.admin(), self._settings)
        missing = self._patience.until_done(
            f"reach Kafka at {self._settings.brokers}", lambda: topics.missing(REACH_SECONDS)
        )
        self._patience.reached()
        while missing:
            self._patience.until_done("make the topic", lambda made=missing: topics.make(made))  # type: ignore[misc]
            missing = self._patience.until_done(
                "see the topic", lambda: topics.missing(REQUEST_SECONDS)
            )
        return topics

    def _begin_session(self, topics: Topics, limits: Limits, dead_limits: Limits) -> Session:
        producer = self._clients.producer(limits.max_batch_bytes, self._reporting.statistics)
        # Ends what an earlier producer left open, and fences it.
        self._patience.until_done(
            "begin transactions",
            lambda: producer.init_transactions(SLICE_SECONDS),
            most_seconds=BEGIN_SECONDS,
        )
        transactions = Transactions(
            producer,
            topics.events,
            topics.dead_letters,
            key_by_field(self._settings.key_field) if self._settings.key_field else None,
            limits.max_batch_bytes - BATCH_OVERHEAD_BYTES,
            dead_limits.max_batch_bytes // 2,
            Around(self._reporting.alive, self._reporting.pause, self._patience.tell),
        )
        consumer = self._clients.consumer()
        return Session(consumer, producer, transactions, consumer.consumer_group_metadata())

    def _opened(self) -> Session:
        if self._session is None:
            raise AssertionError("the sink is not open")
        return self._session

    def _stored(self) -> Stored | None:
        (found,) = self._opened().consumer.committed([self._position_partition()], REQUEST_SECONDS)
        if found.error is not None:
            raise KafkaException(found.error)
        if found.offset < 0 or not found.metadata:
            return None
        try:
            return read_metadata(found.metadata)
        except UnreadableCheckpoint as error:
            log.warning(
                "the position stored as the group %s is unusable (%s): looking at the topic's end",
                self._group,
                error,
            )
            return None

    def _claim(self, stored: Stored) -> None:
        self._span = stored.span
        self._commit(stored._replace(writer=self._writer))

    def _read_back(
        self, history: History, ends: Ends, stored: Stored, limits: Limits
    ) -> list[Remembered]:
        slack_ms = APPEND_TIME_SLACK_MS if limits.append_time else CREATE_TIME_SLACK_MS
        since_ms = stored.span.since_ms - slack_ms
        started = time.monotonic()
        wanted = self._own(stored)
        records = self._patience.until_done(
            "read the topic", lambda: history.since(ends, since_ms, wanted)
        )
        log.info(
            "read %d events of the topic back in %.1f s to recognise repeats",
            len(records),
            time.monotonic() - started,
        )
        position = stored.checkpoint.position
        return [
            Remembered(
                record.source,
                # Within the slack a record may be from after the mark, whatever its time says.
                stored.span.reached(record.source, record.published_ms + slack_ms, position),
                fingerprint(record.identity),
            )
            for record in records
        ]

    def _own(self, stored: Stored) -> Wanted:
        """Which records are ours: others may publish into the same topic at the same time.

        An ingest must neither be held up by what a fast replay left, nor take it for its own.
        """
        replay = self._replay
        if len(stored.checkpoint.position) <= 1:
            # Of a stream with one topic-partition the ids of both look alike.
            return lambda record: replay is None or is_of(replay.range, record)
        if replay is None:
            return lambda record: not is_of_replay(record)
        # Of one whose id can't be read nobody knows whose it is: it may be ours.
        return lambda record: len(record.assignments) <= 1 and is_of(replay.range, record)

    def _look_for_existing(self, history: History, ends: Ends, span: Range) -> Existing:
        started = time.monotonic()

        def look() -> Existing:
            existing = Existing()
            try:
                existing.add(
                    record.identity
                    for record in history.each_since(ends, since_ms(span))
                    if is_of(span, record)
                )
            except BaseException:
                existing.close()
                raise
            return existing

        existing = self._patience.until_done("read the topic", look)
        log.info(
            "the topic has %d events of the range already, read in %.1f s: adding what is missing",
            len(existing),
            time.monotonic() - started,
        )
        return existing

    def _found(self, history: History, ends: Ends) -> tuple[Checkpoint | None, list[Remembered]]:
        """The position and the window by the topic's last records."""
        wanted = TAIL_RECORDS
        while True:
            records, complete = self._patience.until_done(
                "read the topic",
                lambda most=wanted: history.tail(ends, most),  # type: ignore[misc]
            )
            own = own_of(records)
            checkpoint, reached = found_in(own, self._streams, self._overlap_ms)
            told = checkpoint is None or covers(own, reached, self._window_ms)
            if complete or (own and told):
                break
            if wanted >= MAX_TAIL_RECORDS:
                log.warning(
                    "the last %d events of the topic do not reach back --dedup.window behind the "
                    "position: what the upstream repeats from before them may be published twice",
                    len(records),
                )
                break
            wanted = min(wanted * TAIL_GROWTH, MAX_TAIL_RECORDS)
        self._span = Span(min((record.published_ms for record in records), default=_now_ms()))
        if records and not own:
            log.warning(
                "the last %d events of the topic are those of replays: they do not tell where to go on. "
                "Starting where --since says",
                len(records),
            )
        return checkpoint, [_remembered(record, reached) for record in own]

    # ---- what every step meets ----

    def _commit(self, stored: Stored) -> list[DeadLetter]:
        session = self._opened()
        position = self._position_partition(stored.metadata())
        try:
            return session.transactions.commit(position, session.group)
        except KafkaException as error:
            try:
                self._patience.give_up("commit", error.args[0])
            except Fenced:
                self._explain_fence()

    def _position_partition(self, metadata: str | None = None) -> TopicPartition:
        topic = self._settings.topic
        if metadata is None:
            return TopicPartition(topic, 0)
        return TopicPartition(topic, 0, 0, metadata)

    def _explain_fence(self) -> NoReturn:
        deadline = time.monotonic() + CLAIM_SECONDS
        while time.monotonic() < deadline:
            stored = self._patience.until_done("read the stored position", self._stored)
            if stored is not None and stored.writer != self._writer:
                raise DestinationHeld(
                    f"another instance has taken over the topic {self._settings.topic} (transactional "
                    f"id {self._group}). It goes on where this one stopped, nothing is lost. Two at "
                    "once are of no use: find out who starts the other"
                )
            self._reporting.pause(SLICE_SECONDS)
        raise GenerationLost(
            "the broker has ended our transaction, because it took longer than transaction.timeout.ms"
        )


def _remembered(record: Published, position: dict[tuple[str, int], int]) -> Remembered:
    reached = position.get(record.source, max(position.values(), default=0))
    return Remembered(record.source, reached, fingerprint(record.identity))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
