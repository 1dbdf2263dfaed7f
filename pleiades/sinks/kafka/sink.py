"""Publishes into a Kafka topic, every event exactly once for consumers of committed records.

Laws:
- Events, dead letters and the position are one transaction (KIP-98): all of it is there, or nothing.
- The position is the metadata of an offset of the group `pleiades-<topic>-<stream>`. The offset itself
  means nothing: nobody consumes with that group.
- The topic is the window. The position says which parts of it a restart must read, as offsets of its
  partitions (`core.readback`). They are read after everything that an earlier producer of ours left open
  has ended (`init_transactions`).
- The transactional id is the group's name, so a new instance fences the old one. A fenced instance
  looks who committed last. If another did, it ends with a status of its own; otherwise the broker had
  ended its transaction, and the pipeline restarts.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NoReturn

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from pleiades.core.checkpoint import Checkpoint, UnreadableCheckpoint
from pleiades.core.columns import sources_of
from pleiades.core.event import Event
from pleiades.core.readback import Offsets, OutputPartition, Readback
from pleiades.core.sse_id import TopicPartition as Source
from pleiades.runtime.errors import DestinationHeld, GenerationLost
from pleiades.runtime.findings import now_ms
from pleiades.sinks.base import Committed, Opened, SinkContext
from pleiades.sinks.kafka.admin import Admin
from pleiades.sinks.kafka.clients import Clients
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.metrics import KafkaMetrics
from pleiades.sinks.kafka.offset_metadata import Stored, encode
from pleiades.sinks.kafka.records import Published, RecordForm
from pleiades.sinks.kafka.recovery import Evidence, recover
from pleiades.sinks.kafka.retry import REACH_SECONDS, SLICE_SECONDS, Fenced, Retry
from pleiades.sinks.kafka.skip_existing import Existing
from pleiades.sinks.kafka.topic_reader import TopicReader
from pleiades.sinks.kafka.transaction import Transactions

log = logging.getLogger(__name__)

BEGIN_SECONDS = 30.0
"""The time that a producer may take to begin transactions while the cluster is reachable. One that
asked for its coordinator while that hung was seen to wait for it minutes after it ran again."""
MARK_SECONDS = 0.2
"""The least time between two marks: one takes half as long as a commit."""
MARK_TIMEOUT_SECONDS = 0.5
MARK_RETRY_SECONDS = 5.0
REFRESH_SECONDS = 3600.0
"""Unchanged offsets are committed again so often: Kafka forgets those that were not for a week."""
CLAIM_SECONDS = 5.0
"""The longest wait of a fenced instance for the first commit of a new one, which commits at once."""


class KafkaSink:
    """See `Sink`."""

    def __init__(self, settings: KafkaDestination, context: SinkContext) -> None:
        self._settings = settings
        self._relay = context.settings
        self._replay = context.settings.replay
        self._replay_name = b"" if self._replay is None else settings.position_name.encode()
        self._metrics = KafkaMetrics(context.metrics)
        self._clients = Clients(settings)
        self._admin = Admin(self._clients.admin(), settings)
        self._retry = Retry(self._clients, context)
        self._writer = secrets.token_hex(8)
        """Names this process in the stored position."""
        self._producer: Producer | None = None
        self._consumer: Consumer | None = None
        self._existing: Existing | None = None
        self._transactions: Transactions
        self._readback = Readback({}, 0)
        # The sources of the events and of the dead letters that are written and not committed.
        self._events_of: set[Source] = set()
        self._letters_of: set[Source] = set()
        self._metadata: dict[OutputPartition, str] = {}
        """The texts stored with the offsets."""
        # Monotonic times: when all offsets are committed again, and the earliest one of the next mark.
        self._refresh_at = self._mark_at = 0.0

    def open(self, resume: bool) -> Opened:
        """See `Sink.open`."""
        ask = self._retry.until_done
        self._create_topics()
        self._consumer = self._clients.consumer()
        self._begin_transactions(self._consumer)
        reader = TopicReader(self._consumer, self._admin, self._retry)
        ends = ask("ask where the topic ends", self._admin.ends)
        stored = ask("read the stored position", partial(self._stored, self._consumer, ends))
        self._readback = Readback(ends, now_ms())
        if stored is not None:
            self._readback = stored.readback
            if self._readback.is_mark_due(stored.checkpoint):
                self._readback = self._readback.marked(ends, now_ms())
            # The old instance, once it is fenced, looks for who did it.
            self._commit(stored.checkpoint, self._readback)
        if self._replay is not None and self._replay.skip_existing:
            self._existing = reader.existing(self._replay.range)
        window_complete = self._existing is None
        if self._replay is not None and (stored is None or not resume):
            # It begins, or begins again: events of others are none of its business.
            self._readback = Readback(ends, now_ms())
            return Opened(None, window_complete=window_complete)
        if stored is None:
            checkpoint, is_own = self._recovered(reader, ends, resume)
        else:
            checkpoint, is_own = stored.checkpoint, self._is_own
        window = reader.window(self._readback.parts(ends), is_own)
        return Opened(checkpoint, window, window_complete=window_complete)

    def is_published(self, event: Event) -> bool:
        """See `Sink.is_published`: events from before a replay; all others are in the window."""
        return self._existing is not None and event.identity in self._existing

    def write(self, events: Sequence[Event]) -> None:
        """See `Sink.write`."""
        with self._metrics.writing():
            self._transactions.write(events)
        published, letters = sources_of(events)
        self._events_of |= published
        self._letters_of |= letters

    def commit(self, checkpoint: Checkpoint) -> Committed:
        """See `Sink.commit`."""
        readback = self._readback.committed(
            checkpoint, self._events_of, self._letters_of, self._settings.dead_letters
        )
        with self._metrics.committing():
            letters = self._commit(checkpoint, readback)
            self._retry.well()
        self._readback = readback
        self._events_of, self._letters_of = set(), set()
        self._mark_if_due(checkpoint)
        return Committed(letters)

    def _mark_if_due(self, checkpoint: Checkpoint) -> None:
        """Note where the topic ends between two transactions of ours.

        If the broker does not answer at once, a later mark will do.
        """
        now = time.monotonic()
        if now < self._mark_at or not self._readback.is_mark_due(checkpoint):
            return
        self._mark_at = now + MARK_SECONDS
        try:
            ends = self._admin.ends(MARK_TIMEOUT_SECONDS)
            self._readback = self._readback.marked(ends, now_ms())
        except KafkaException as error:
            log.debug("no mark: %s", error)
            self._mark_at = now + MARK_RETRY_SECONDS

    def poll(self) -> None:
        """See `Sink.poll`."""
        # librdkafka makes statistics for an idle stream, too, and keeps them until they are polled: 7 MB
        # an hour.
        self._transactions.write([])

    def finish(self) -> None:
        """See `Sink.finish`: nothing is left to do."""

    def close(self) -> None:
        """See `Sink.close`."""
        # Events in flight are neither flushed nor aborted: the next start ends the transaction, and
        # closing must not wait for a broker that is away.
        if self._producer is not None:
            self._producer.purge()
        for opened in (self._consumer, self._existing):
            if opened is not None:
                opened.close()
        self._producer = self._consumer = self._existing = None

    # ---- opening ----

    def _create_topics(self) -> None:
        admin, ask = self._admin, self._retry.until_done
        operation = f"reach Kafka at {self._settings.brokers}"
        missing = ask(operation, lambda: admin.missing(REACH_SECONDS))
        self._retry.deadline = None
        while missing:
            names = " and ".join(topic.topic for topic in missing)
            ask(f"create the topic {names}", partial(admin.create, missing))
            missing = ask("see the topic", admin.missing)

    def _begin_transactions(self, consumer: Consumer) -> None:
        settings, ask = self._settings, self._retry.until_done
        max_bytes, max_dead_bytes = (
            ask("ask what the topic accepts", partial(self._admin.max_batch_bytes, topic))
            for topic in (settings.topic, settings.dead_letters)
        )
        producer = self._clients.producer(max_bytes, self._metrics.statistics)

        def begin() -> None:
            # While no broker is connected, librdkafka looks for its coordinator only twice a second.
            producer.list_topics(settings.topic, SLICE_SECONDS)
            # Ends what an earlier producer left open, and fences it.
            producer.init_transactions(SLICE_SECONDS)

        ask("begin transactions", begin, BEGIN_SECONDS)
        form = RecordForm(settings, self._replay_name, max_dead_bytes // 2)
        # The consumer never joins the group, so this does not change. It takes half as long as a commit.
        group = consumer.consumer_group_metadata()
        self._producer = producer
        self._transactions = Transactions(producer, form, max_bytes, group, self._retry)

    def _stored(self, consumer: Consumer, partitions: Iterable[OutputPartition]) -> Stored | None:
        try:
            return self._admin.stored_stable(consumer, partitions)
        except UnreadableCheckpoint as error:
            log.warning(
                "the position stored as the group %s is unusable (%s): looking for it in the topic",
                self._settings.group,
                error,
            )
            return None

    def _recovered(
        self, reader: TopicReader, ends: Offsets, resume: bool
    ) -> tuple[Checkpoint | None, Callable[[Published], bool]]:
        upstream, window_seconds = self._relay.upstream, self._relay.window_seconds
        overlap_ms, window_ms = (int(s * 1000) for s in (upstream.overlap_seconds, window_seconds))
        found = Evidence(upstream.streams, overlap_ms, max(window_ms, overlap_ms))
        asked = partial(self._admin.starts, ends)
        starts = self._retry.until_done("ask where the topic begins", asked)
        self._readback = recover(reader, starts, ends, found)
        checkpoint = found.checkpoint()
        if checkpoint is not None and resume:
            log.warning(
                "no position is stored as the group %s, but the topic is not empty: going on after its "
                "last events, as far as their ids tell. Nothing is skipped that the upstream still has. "
                "A group's offset expires when no relay has run for a week "
                "(offsets.retention.minutes). If the position was lost while a start with "
                "--resume=false --since=TIME was catching up, the older events that it had still to "
                "publish are missing: add them with pleiades replay --skipExisting",
                self._settings.group,
            )
        elif resume and not found.records and any(ends.values()):
            log.warning(
                "no position is stored as the group %s, and the records of the topic have been deleted: "
                "nothing tells where to go on. A group's offset expires when no relay has run for a "
                "week (offsets.retention.minutes). The relay starts at --since, and the events before "
                "it are missing. If a relay ran before, start once with --resume=false --since=TIME, "
                "the time at which it stopped",
                self._settings.group,
            )
        return checkpoint, found.can_be_repeated

    def _is_own(self, record: Published) -> bool:
        """Distinguishes our own records from those of others, who may publish into the topic, too.

        An ingest must not be delayed by the records of a fast replay, nor take them for its own.
        """
        return record.replay == self._replay_name

    # ---- committing ----

    def _commit(self, checkpoint: Checkpoint, readback: Readback) -> list[Event]:
        metadata = encode(checkpoint, readback, self._writer, self._admin.position_at)
        now = time.monotonic()
        refreshing = now >= self._refresh_at
        offsets = [
            TopicPartition(*at, readback.begin.get(at, 0), text)
            for at, text in metadata.items()
            if refreshing or text != self._metadata.get(at)
        ]
        try:
            letters = self._transactions.commit(offsets)
        except KafkaException as error:
            try:
                self._retry.give_up("commit", error.args[0])
            except Fenced:
                self._explain_fence()
        self._metadata = metadata
        if refreshing:
            self._refresh_at = now + REFRESH_SECONDS
        return letters

    def _explain_fence(self) -> NoReturn:
        deadline = time.monotonic() + CLAIM_SECONDS
        while self._consumer is not None and time.monotonic() < deadline:
            asked = partial(self._stored, self._consumer, ())
            stored = self._retry.until_done("read the stored position", asked)
            if stored is not None and stored.writer != self._writer:
                raise DestinationHeld(
                    f"another instance has taken over the topic {self._settings.topic} (transactional "
                    f"id {self._settings.group}). It goes on where this one stopped, and nothing is "
                    "lost. Two instances at once are of no use: find out who starts the other one"
                )
            self._retry.child.pause(SLICE_SECONDS)
        raise GenerationLost(
            "the broker has ended our transaction, because it took longer than transaction.timeout.ms"
        )
