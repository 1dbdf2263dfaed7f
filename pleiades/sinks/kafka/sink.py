"""Publishes into a Kafka topic, every event exactly once for whoever reads committed records.

Laws:
- Events, dead letters and the position are one transaction (KIP-98): all of it is there, or nothing.
- The position is the metadata of an offset of the group `pleiades-<topic>-<stream>`. The offset itself
  says nothing: nobody consumes with that group.
- The topic is the window. Which parts of it a restart must read is stored with the position, as offsets
  of its partitions (`core.readback`). They are read after everything that an earlier producer of ours
  left open has been ended (`init_transactions`).
- The transactional id is the group's name, so a new instance fences the old one. A fenced one asks who
  committed last: somebody else, then it ends with the status of its own; nobody else, then the broker
  had ended its transaction, and it starts again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, NoReturn

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from pleiades.config.settings import ReplaySettings
from pleiades.core.position import Checkpoint, UnreadableCheckpoint
from pleiades.core.range import Range
from pleiades.core.readback import UNKNOWN_LETTERS, Offsets, OutputPartition, Readback
from pleiades.core.wire import UNKNOWN_SOURCE, Event
from pleiades.core.wire import TopicPartition as Source
from pleiades.runtime.errors import DestinationHeld, GenerationLost
from pleiades.sinks.base import Committed, Opened, Remembered
from pleiades.sinks.kafka import found
from pleiades.sinks.kafka.clients import BATCH_OVERHEAD_BYTES, Clients, new_writer
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.existing import Existing, is_of, since_ms
from pleiades.sinks.kafka.history import History, Wanted
from pleiades.sinks.kafka.insisting import SLICE_SECONDS, Around
from pleiades.sinks.kafka.patience import Fenced, Patience
from pleiades.sinks.kafka.records import RecordForm, key_by_field
from pleiades.sinks.kafka.reporting import Reporting, Trouble
from pleiades.sinks.kafka.stored import Stored, encode, read_stored
from pleiades.sinks.kafka.topics import Limits, Topics
from pleiades.sinks.kafka.transaction import Transactions
from pleiades.sinks.kafka.trouble import clock_advice, group_of

log = logging.getLogger(__name__)

REACH_SECONDS = 2.0
REQUEST_SECONDS = 5.0
BEGIN_SECONDS = 30.0
"""So long a producer may take to begin transactions, while the cluster can be reached. One that asked
for its coordinator just when that hung was seen to wait for it minutes after it ran again."""
OLD_SLACK_MS = 60_000
"""How far the broker's clock may be behind ours, where the version before stored a publish time."""
MARK_SECONDS = 0.2
"""After a mark none is made for so long: one costs as long as half a commit."""
MARK_TIMEOUT_SECONDS = 0.5
MARK_RETRY_SECONDS = 5.0
REFRESH_SECONDS = 3600.0
"""So often all offsets are committed again, also those that have not changed: Kafka forgets one that was
not for a week (`offsets.retention.minutes`)."""
CLAIM_SECONDS = 5.0
"""A new instance that has fenced the old one commits in its name at once; so long the old one waits."""


class Session(NamedTuple):
    """What is there from opening to closing."""

    consumer: Consumer
    producer: Producer
    transactions: Transactions
    topics: Topics
    group: object
    """Which group the position is sent to. The consumer never joins it, so this does not change; to ask
    for it takes as long as half a commit."""


class KafkaSink:
    """Publishes into a topic.

    Args:
        streams: those that are relayed, by the names they are asked for.
        overlap_ms, window_ms: see `ResumeCursor` and `Window`; used where no position is stored.
        reached: the cluster was reached before, by this program.
        replay: what is replayed; None: this is an ingest.
    """

    def __init__(
        self,
        settings: KafkaDestination,
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
        self._readback = Readback({}, 0)
        self._limits: Limits | None = None
        self._newest_ms = 0
        """The upstream's time of the last event that was written."""
        self._events_of: set[Source] = set()
        """Sources of the events that are written and not committed."""
        self._letters_of: set[Source] = set()
        """The same of dead letters."""
        self._texts: dict[OutputPartition, str] = {}
        """What is stored with the offsets."""
        self._refresh_at = 0.0
        """Monotonic time from which on all offsets are committed again."""
        self._mark_at = 0.0
        """The same for the next mark."""
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
        self._limits = limits
        self._session = self._begin_session(topics, limits, dead_limits)
        ends = self._patience.until_done("ask where the topic ends", topics.ends)
        stored = self._patience.until_done("read the stored position", lambda: self._stored(ends))
        history = History(self._session.consumer, topics, self._patience, self._reporting.alive)
        self._readback = Readback(ends, _now_ms())
        old = stored is not None and stored.readback is None
        if stored is not None:
            self._readback = stored.readback or self._converted(topics, stored, ends)
            if self._readback.is_mark_due(stored.checkpoint):
                self._readback = self._readback.marked(ends, _now_ms())
            # As soon as it is fenced, the old instance looks for who did it.
            self._commit(Stored(stored.checkpoint, self._readback, self._writer))
        if self._replay is not None and self._replay.skip_existing:
            self._existing = self._look_for_existing(topics, history, ends, self._replay.range)
        if self._replay is not None and (stored is None or not resume):
            # It begins, or begins again: what others published is none of its business.
            self._readback = Readback(ends, _now_ms())
            return Opened(None, all_told=self._existing is None)
        if stored is not None:
            window = self._window(history, ends, old)
            return Opened(stored.checkpoint, window, all_told=self._existing is None)
        checkpoint, window, self._readback = self._found(topics, history, ends)
        if checkpoint is not None and resume:
            log.warning(
                "no position is stored as the group %s, but the topic is not empty: going on after its "
                "last events, as far as their ids tell",
                self._group,
            )
        return Opened(checkpoint, window, all_told=self._existing is None)

    def is_published(self, event: Event) -> bool:
        """See `Sink.is_published`: what was there before a replay; all else is in the window."""
        return self._existing is not None and event.identity in self._existing

    def write(self, events: list[Event]) -> None:
        """See `Sink.write`."""
        if events:
            self._newest_ms = events[-1].timestamp_ms
        with self._reporting.writing():
            self._opened().transactions.write(events)
        self._events_of.update({event.source for event in events if not event.reason})
        self._letters_of.update({event.source for event in events if event.reason})

    def commit(self, checkpoint: Checkpoint) -> Committed:
        """See `Sink.commit`."""
        readback = self._readback.committed(
            checkpoint, self._events_of, self._letters_of, self._opened().topics.dead_letters
        )
        with self._reporting.committing():
            letters = self._commit(Stored(checkpoint, readback, self._writer))
            self._patience.well()
        self._readback = readback
        self._events_of, self._letters_of = set(), set()
        self._mark_if_due(checkpoint)
        return Committed(letters)

    def _mark_if_due(self, checkpoint: Checkpoint) -> None:
        """Where the topic ends between two transactions of ours.

        If there is no answer at once, a later mark will do as well.
        """
        now = time.monotonic()
        if now < self._mark_at or not self._readback.is_mark_due(checkpoint):
            return
        try:
            ends = self._opened().topics.ends(MARK_TIMEOUT_SECONDS)
        except KafkaException as error:
            log.debug("no mark: %s", error)
            self._mark_at = now + MARK_RETRY_SECONDS
        else:
            self._readback = self._readback.marked(ends, _now_ms())
            self._mark_at = now + MARK_SECONDS

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
            RecordForm(
                key_by_field(self._settings.key_field) if self._settings.key_field else None,
                self._replay_name,
            ),
            limits.max_batch_bytes - BATCH_OVERHEAD_BYTES,
            dead_limits.max_batch_bytes // 2,
            Around(self._reporting.alive, self._reporting.pause, self._tell),
        )
        consumer = self._clients.consumer()
        group = consumer.consumer_group_metadata()
        return Session(consumer, producer, transactions, topics, group)

    def _opened(self) -> Session:
        if self._session is None:
            raise AssertionError("the sink is not open")
        return self._session

    @property
    def _replay_name(self) -> bytes:
        """What its records say; empty: it is an ingest."""
        return b"" if self._replay is None else self._settings.position_name.encode()

    def _stored(self, partitions: Iterable[OutputPartition]) -> Stored | None:
        asked = [TopicPartition(*at) for at in partitions]
        texts = {}
        for answer in self._opened().consumer.committed(asked, REQUEST_SECONDS):
            if answer.error is not None:
                raise KafkaException(answer.error)
            if answer.offset >= 0 and answer.metadata:
                texts[answer.topic, answer.partition] = answer.metadata
        if self._position_at not in texts:
            return None
        try:
            return read_stored(texts, self._position_at)
        except UnreadableCheckpoint as error:
            log.warning(
                "the position stored as the group %s is unusable (%s): looking for it in the topic",
                self._group,
                error,
            )
            return None

    def _converted(self, topics: Topics, stored: Stored, ends: Offsets) -> Readback:
        """Of a position that the version before stored: by publish time, as that did."""
        begins = self._patience.until_done(
            "ask where to read", lambda: topics.begins(ends, stored.since_ms - OLD_SLACK_MS)
        )
        checkpoint = stored.checkpoint
        greatest = {
            source: checkpoint.reached(source) for source in (UNKNOWN_SOURCE, UNKNOWN_LETTERS)
        }
        # Any source may have records in it.
        reached = {**checkpoint.position, **greatest}
        return Readback({**ends, **begins}, stored.since_ms, reached, reached)

    def _window(self, history: History, ends: Offsets, old: bool) -> Iterator[Remembered]:
        started, count = time.monotonic(), 0
        parts = self._readback.parts(ends)
        for remembered in history.window(parts, self._own(old), by_id=old):
            count += 1
            yield remembered
        log.info(
            "read %d events of the topic back in %.1f s to recognise repeats",
            count,
            time.monotonic() - started,
        )

    def _own(self, old: bool) -> Wanted:
        """Which records are ours: others may publish into the same topic at the same time.

        An ingest must neither be held up by what a fast replay left, nor take it for its own.

        Args:
            old: the version before published some, and its replays' records do not say so.
        """
        name, replay = self._replay_name, self._replay
        if replay is None or not old:
            return lambda record: record.replay == name
        return lambda record: (
            record.replay == name
            or (
                # Of one whose id can't be read nobody knows whose it is: it may be ours.
                not record.replay and len(record.assignments) <= 1 and is_of(replay.range, record)
            )
        )

    def _look_for_existing(
        self, topics: Topics, history: History, ends: Offsets, span: Range
    ) -> Existing:
        started = time.monotonic()
        begins = self._patience.until_done(
            "ask where to read", lambda: topics.begins(ends, since_ms(span))
        )
        existing = Existing()
        try:
            existing.add(
                record.identity
                for _, _, record in history.read({**ends, **begins}, ends)
                if is_of(span, record)
            )
        except BaseException:
            existing.close()
            raise
        log.info(
            "the topic has %d events of the range already, read in %.1f s: adding what is missing",
            len(existing),
            time.monotonic() - started,
        )
        return existing

    def _found(self, topics: Topics, history: History, ends: Offsets) -> found.Outcome:
        """The position and the window by the topic's records."""
        starts = self._patience.until_done(
            "ask where the topic begins", lambda: topics.starts(ends)
        )
        look = found.Look(self._streams, self._overlap_ms, self._window_ms)
        return found.look(history, topics.events, starts, ends, look, _now_ms())

    # ---- what every step meets ----

    def _commit(self, stored: Stored) -> list[Event]:
        session = self._opened()
        texts = encode(stored, self._position_at)
        now = time.monotonic()
        refreshing = now >= self._refresh_at
        offsets = [
            TopicPartition(*at, stored.readback.begin.get(at, 0) if stored.readback else 0, text)
            for at, text in texts.items()
            if refreshing or text != self._texts.get(at)
        ]
        try:
            letters = session.transactions.commit(offsets, session.group)
        except KafkaException as error:
            try:
                self._patience.give_up("commit", error.args[0])
            except Fenced:
                self._explain_fence()
        self._texts = texts
        if refreshing:
            self._refresh_at = now + REFRESH_SECONDS
        return letters

    @property
    def _position_at(self) -> OutputPartition:
        return self._settings.topic, 0

    def _tell(self, operation: str, error: KafkaError) -> None:
        if error.code() != KafkaError.INVALID_TIMESTAMP or self._limits is None:
            self._patience.tell(operation, error)
            return
        ahead_ms, behind_ms = self._limits.ahead_ms, self._limits.behind_ms
        why = clock_advice(_now_ms(), self._newest_ms, ahead_ms, behind_ms)
        # It does not pass within seconds.
        self._reporting.trouble("publish", why, Trouble.BEGUN_AGAIN)

    def _explain_fence(self) -> NoReturn:
        deadline = time.monotonic() + CLAIM_SECONDS
        while time.monotonic() < deadline:
            stored = self._patience.until_done(
                "read the stored position", lambda: self._stored([self._position_at])
            )
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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
