"""Transactions, each with events, dead letters and the position.

Laws:
- Everything written since the last commit is kept until it is committed. A transaction that must be
  aborted begins again with the same records in the same order.
- Usually nobody asks for delivery reports. If a transaction fails, its records are produced again with
  reports, which tell the cause.
- An event is too large only if the broker refused a batch that held nothing else. It then becomes a dead
  letter in the same transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from pleiades.core.wire import TOO_LARGE, Event
from pleiades.runtime import faultpoints
from pleiades.sinks.kafka.admin import Limits
from pleiades.sinks.kafka.clients import BATCH_OVERHEAD_BYTES
from pleiades.sinks.kafka.errors import Kind, clock_advice, kind_of
from pleiades.sinks.kafka.records import RecordForm
from pleiades.sinks.kafka.retry import BACKOFF, SLICE_SECONDS, Retry

MAX_INVALID = 5
"""How often a transaction may be refused because a record is invalid, without a known reason."""


class Reports:
    """Delivery reports of one try."""

    def __init__(self) -> None:
        self.expected = 0
        self.delivered = 0
        self.failed: list[tuple[Event, KafkaError]] = []

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to wait for; after a failure the rest is not sent."""
        return bool(self.failed) or self.delivered == self.expected

    def on(self, event: Event) -> Callable[[KafkaError | None, Message], None]:
        """The delivery callback of one message."""
        self.expected += 1

        def note(error: KafkaError | None, _message: Message) -> None:
            if error is None:
                self.delivered += 1
            else:
                self.failed.append((event, error))

        return note


class Transactions:
    """Produces events and commits them.

    Args:
        limits: those of the topic. It takes an event below them, however it compresses.
    """

    def __init__(
        self, producer: Producer, form: RecordForm, limits: Limits, group: object, retry: Retry
    ) -> None:
        self._producer = producer
        self._form = form
        self._limits = limits
        self._group = group
        self._retry = retry
        self._written: list[Event] = []
        self._begun = False
        self._spoilt: KafkaError | None = None
        """Why the open transaction can't be committed."""
        self._suspects: set[str] = set()
        """Identities of events that may be too large: their batches were refused."""

    def write(self, events: list[Event]) -> None:
        """Produce events and dead letters in the open transaction or a new one."""
        self._written += events
        if self._spoilt is not None:
            return
        try:
            self._begin()
            for event in events:
                self._produce(event)
            self._producer.poll(0)
        except KafkaException as error:
            # The commit meets the error, too, and handles it.
            self._spoilt = error.args[0]

    def poll(self) -> None:
        """Take librdkafka's reports while nothing is written."""
        try:
            self._producer.poll(0)
        except KafkaException as error:
            # As in `write`.
            self._spoilt = error.args[0]

    def commit(self, offsets: list[TopicPartition]) -> list[Event]:
        """Commit everything that was written, and offsets with metadata; waits as long as that takes.

        Returns the dead letters, including events that the broker refused for their size.

        Raises:
            KafkaException: fenced, lost or fatal.
            GenerationLost: a new process is needed.
        """
        failures = invalid = 0
        while not self._try_to_commit(offsets):
            if _is_invalid(self._spoilt):
                self._find_cause(offsets)
                invalid += _is_invalid(self._spoilt)
                if self._spoilt is not None and invalid > MAX_INVALID:
                    raise KafkaException(self._spoilt)
            # Events that are too large are found one after the other, without waiting.
            failures = 0 if _is_size(self._spoilt) else failures + 1
            if failures > 1:
                self._retry.life.pause(BACKOFF.pause_seconds(failures - 1, jitter=1.0))
        letters = [event for event in self._written if event.reason]
        self._written, self._suspects = [], set()
        return letters

    def _try_to_commit(self, offsets: list[TopicPartition]) -> bool:
        """Commit; False if the transaction must begin again."""
        if self._spoilt is not None and not self._produce_again():
            return False
        try:
            self._begin()
            faultpoints.passing(faultpoints.PRODUCED)
            self._send_offsets(offsets)
            faultpoints.passing(faultpoints.POSITION_SENT)
            # A commit that timed out goes on; calling again waits for its end.
            self._step(lambda: self._producer.commit_transaction(SLICE_SECONDS))
        except KafkaException as error:
            if kind_of(error.args[0]) is not Kind.ABORT:
                raise
            self._spoil(error.args[0])
            return False
        self._begun = False
        return True

    def _begin(self) -> None:
        if not self._begun:
            self._producer.begin_transaction()
            self._begun = True

    def _send_offsets(self, offsets: list[TopicPartition]) -> None:
        producer, group = self._producer, self._group
        self._step(lambda: producer.send_offsets_to_transaction(offsets, group, SLICE_SECONDS))

    def _step(self, call: Callable[[], None]) -> None:
        self._retry.commit_step(self._producer, call, self._report)

    def _find_cause(self, offsets: list[TopicPartition]) -> None:
        """Ask why a record is invalid: the error of the transaction says it, the report does not."""
        try:
            # Whatever the answer, the transaction is aborted.
            self._send_offsets(offsets)
        except KafkaException as error:
            self._spoil(error.args[0])

    def _spoil(self, error: KafkaError) -> None:
        self._spoilt = error
        if not _is_size(error):
            self._report("commit a transaction, which begins again", error)

    def _report(self, operation: str, error: KafkaError) -> None:
        if error.code() != KafkaError.INVALID_TIMESTAMP:
            self._retry.report(operation, error)
            return
        newest_ms = self._written[-1].timestamp_ms if self._written else 0
        ahead_ms, behind_ms = self._limits.ahead_ms, self._limits.behind_ms
        now_ms = time.time_ns() // 1_000_000
        self._retry.report_clock(clock_advice(now_ms, newest_ms, ahead_ms, behind_ms))

    # ---- producing ----

    def _produce(self, event: Event, reports: Reports | None = None) -> None:
        topic, value, key, headers = self._form.record(event)
        on_delivery = None if reports is None else reports.on(event)
        while True:
            try:
                self._producer.produce(topic, value, key, headers=headers, on_delivery=on_delivery)
            except BufferError:
                self._retry.life.beat()
                self._producer.poll(SLICE_SECONDS)
            else:
                return

    def _produce_again(self) -> bool:
        """Abort, and produce everything once more with reports; whether all of it was delivered.

        Raises:
            KafkaException: the transaction can't be aborted, or a message can never be delivered.
        """
        if self._begun:
            self._step(lambda: self._producer.abort_transaction(SLICE_SECONDS))
            self._begun = False
        reports = Reports()
        try:
            self._begin()
            for event in self._written:
                alone = self._is_suspect(event)
                if alone:
                    self._await(reports)
                self._produce(event, reports)
                self._producer.poll(0)
                if alone:
                    self._await(reports)
                if reports.failed:
                    break
        except KafkaException as error:
            # The transaction failed in the background. If a message was the cause, the reports name it.
            self._spoilt = error.args[0]
            self._producer.poll(SLICE_SECONDS)
            if not reports.failed:
                self._spoil(error.args[0])
                return False
        self._await(reports)
        if reports.failed:
            self._learn(reports.failed)
            return False
        self._spoilt = None
        return True

    def _is_suspect(self, event: Event) -> bool:
        size_bytes = len(event.key) + len(event.data)
        surely_taken_bytes = self._limits.max_batch_bytes - BATCH_OVERHEAD_BYTES
        return size_bytes > surely_taken_bytes or event.identity in self._suspects

    def _await(self, reports: Reports) -> None:
        while not reports.complete:
            self._retry.life.beat()
            self._producer.flush(SLICE_SECONDS)

    def _learn(self, failed: list[tuple[Event, KafkaError]]) -> None:
        too_large = [event for event, error in failed if _is_size(error)]
        if not too_large:
            self._spoilt = failed[0][1]
            if any(_is_invalid(error) for _, error in failed):
                # The others may have failed because of these.
                self._spoilt = KafkaError(KafkaError.INVALID_RECORD)
                return
            for _, error in failed:
                if kind_of(error) is not Kind.TRANSIENT:
                    raise KafkaException(error)
            self._report("deliver events", failed[0][1])
            return
        # All others failed with them.
        self._spoilt = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
        for event in too_large:
            if event.reason:
                self._form.max_dead_letter_bytes = max(self._form.max_dead_letter_bytes // 2, 1)
            elif self._is_suspect(event):
                place = self._written.index(event)
                self._written[place] = event._replace(reason=TOO_LARGE)
            else:
                self._suspects.add(event.identity)


def _is_invalid(error: KafkaError | None) -> bool:
    return error is not None and error.code() == KafkaError.INVALID_RECORD


def _is_size(error: KafkaError | None) -> bool:
    return error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE
