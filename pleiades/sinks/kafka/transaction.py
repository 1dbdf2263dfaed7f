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

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import TypeAlias

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from pleiades.core.columns import Columns, letters_in
from pleiades.core.event import TOO_LARGE, Event
from pleiades.runtime import faultpoints
from pleiades.runtime.errors import Fatal
from pleiades.sinks.kafka.clients import BATCH_OVERHEAD_BYTES
from pleiades.sinks.kafka.errors import Kind, clock_advice, kind_of
from pleiades.sinks.kafka.records import RecordForm
from pleiades.sinks.kafka.retry import BACKOFF, SLICE_SECONDS, Retry

MAX_INVALID = 5
"""The number of times that a transaction may be refused for an invalid record without a known reason."""
INVALID, TOO_LARGE_CODE = KafkaError.INVALID_RECORD, KafkaError.MSG_SIZE_TOO_LARGE

Failed: TypeAlias = list[tuple[Event, KafkaError]]


class Transactions:
    """Produces events and commits them.

    Args:
        max_bytes: the longest batch of the topic. It takes a shorter event, however it compresses.
    """

    def __init__(
        self, producer: Producer, form: RecordForm, max_bytes: int, group: object, retry: Retry
    ) -> None:
        self._producer = producer
        self._form = form
        self._surely_taken_bytes = max_bytes - BATCH_OVERHEAD_BYTES
        self._group = group
        self._retry = retry
        self._written: list[Sequence[Event]] = []
        """The events of the next commit, as they were written."""
        self._begun = False
        self._spoilt: KafkaError | None = None
        """Why the open transaction can't be committed."""
        self._suspects: set[str] = set()
        """Identities of events that may be too large: their batches were refused."""

    def write(self, events: Sequence[Event]) -> None:
        """Produce events and dead letters in the open transaction or a new one.

        Also without any, librdkafka's reports are taken.
        """
        if events:
            self._written.append(events)
        try:
            if events and self._spoilt is None:
                self._begin()
                if isinstance(events, Columns) and not self._form.has_headers:
                    self._produce_batch(events)
                else:
                    for event in events:
                        self._produce(event)
            self._producer.poll(0)
        except KafkaException as error:
            # The commit meets the error, too, and handles it.
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
            if self._is_spoilt_by(INVALID):
                # The error of the transaction says why a record is invalid, and the report does not.
                # Whatever the answer is, the transaction is aborted.
                try:
                    self._send_offsets(offsets)
                except KafkaException as error:
                    self._spoil(error.args[0])
                invalid += self._is_spoilt_by(INVALID)
                if self._spoilt is not None and invalid > MAX_INVALID:
                    raise KafkaException(self._spoilt)
            # Events that are too large are found one after the other, without waiting.
            failures = 0 if self._is_spoilt_by(TOO_LARGE_CODE) else failures + 1
            if failures > 1:
                self._retry.child.pause(BACKOFF.pause_seconds(failures - 1, jitter=1.0))
        letters = [event for events in self._written for event in letters_in(events)]
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
            self._step(self._producer.commit_transaction, SLICE_SECONDS)
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
        call = self._producer.send_offsets_to_transaction
        self._step(call, offsets, self._group, SLICE_SECONDS)

    def _step(self, call: Callable[..., None], *arguments: object) -> None:
        self._retry.commit_step(self._producer, partial(call, *arguments), self._report)

    def _is_spoilt_by(self, code: int) -> bool:
        return self._spoilt is not None and self._spoilt.code() == code

    def _spoil(self, error: KafkaError) -> None:
        self._spoilt = error
        if error.code() != TOO_LARGE_CODE:
            self._report("commit a transaction, which begins again", error)

    def _report(self, operation: str, error: KafkaError) -> None:
        advice = ""
        if error.code() == KafkaError.INVALID_TIMESTAMP and self._written:
            operation, advice = "publish", clock_advice(self._written[-1][-1].timestamp_ms)
        self._retry.report(operation, error, advice)

    # ---- producing ----

    def _produce(self, event: Event, failed: Failed | None = None) -> None:
        """Produce one event, which goes into `failed` if it can't be delivered."""
        topic, value, key, headers = self._form.record(event)
        on_delivery = None if failed is None else partial(_note, event, failed)
        self._producer.produce(topic, value, key, headers=headers, on_delivery=on_delivery)

    def _produce_batch(self, events: Columns) -> None:
        # It takes no headers, and a third less time: 1.4 µs for an event.
        pairs = zip(*events.keys_and_data(), strict=True)
        messages = [{"key": key, "value": data} for key, data in pairs]
        if self._producer.produce_batch(self._form.topic, messages) < len(messages):
            raise KafkaException(next(each["_error"] for each in messages if "_error" in each))

    def _produce_again(self) -> bool:
        """Abort, and produce everything once more with reports; True if all of it was delivered.

        Raises:
            KafkaException: the transaction can't be aborted, or a message can never be delivered.
        """
        if self._begun:
            self._step(self._producer.abort_transaction, SLICE_SECONDS)
            self._begun = False
        failed: Failed = []
        # An event that is too large is replaced in this list.
        written = list(chain.from_iterable(self._written))
        self._written = [written]
        try:
            self._begin()
            for event in written:
                alone = self._is_suspect(event)
                if alone:
                    self._deliver(failed)
                self._produce(event, failed)
                self._producer.poll(0)
                if alone:
                    self._deliver(failed)
                if failed:
                    break
        except KafkaException as error:
            # The transaction failed in the background. If a message was the cause, a report names it.
            self._producer.poll(SLICE_SECONDS)
            if not failed:
                self._spoil(error.args[0])
                return False
        self._deliver(failed)
        if failed:
            self._learn(failed)
        else:
            self._spoilt = None
        return not failed

    def _deliver(self, failed: Failed) -> None:
        """Wait until all messages are delivered; after a failure the others are not sent."""
        while not failed and self._producer.flush(SLICE_SECONDS):
            self._retry.child.beat()

    def _is_suspect(self, event: Event) -> bool:
        size_bytes = len(event.key) + len(event.data)
        return size_bytes > self._surely_taken_bytes or event.identity in self._suspects

    def _learn(self, failed: Failed) -> None:
        errors = {error.code(): error for _, error in reversed(failed)}
        # All others failed with one that is too large, and may have failed because of an invalid one.
        cause = errors.get(TOO_LARGE_CODE) or errors.get(INVALID) or failed[0][1]
        self._spoilt = cause
        if cause.code() == TOO_LARGE_CODE:
            for event, error in failed:
                if error.code() == TOO_LARGE_CODE:
                    self._set_apart(event)
        elif cause.code() != INVALID:
            for _, error in failed:
                if kind_of(error) is not Kind.TRANSIENT:
                    raise KafkaException(error)
            self._report("deliver events", cause)

    def _set_apart(self, event: Event) -> None:
        """An event whose batch was too large: is it that alone?"""
        if event.reason:
            if self._form.max_dead_letter_bytes <= 1:
                raise Fatal(
                    f"the topic {self._form.dead_letters_topic} refuses even dead letters that are cut "
                    "to their ids. Nothing is lost: the position stays before these events. Raise "
                    "max.message.bytes of it and of the topic of the events; Kafka's default is 1048588"
                )
            self._form.max_dead_letter_bytes = max(self._form.max_dead_letter_bytes // 2, 1)
        elif self._is_suspect(event):
            (written,) = self._written
            self._written = [
                [event._replace(reason=TOO_LARGE) if each is event else each for each in written]
            ]
        else:
            self._suspects.add(event.identity)


def _note(event: Event, failed: Failed, error: KafkaError | None, _message: Message) -> None:
    if error is not None:
        failed.append((event, error))
