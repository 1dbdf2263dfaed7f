"""One transaction after the other, each with events, dead letters and the position.

Laws:
- Everything written since the last commit is kept until it is committed, and can be produced again: a
  transaction that has to be aborted is begun anew with the same records in the same order.
- Usually a batch is handed to librdkafka as a whole, and nobody asks for reports on its messages; only
  events that have headers are produced one by one. What went wrong in a transaction is found out by
  producing it again one by one, with reports.
- An event is refused for its size only if the broker said so of a batch that held nothing else. It
  then becomes a dead letter in the same transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from pleiades.core.identity import any_fallback, is_fallback
from pleiades.core.wire import TOO_LARGE, Event, all_published
from pleiades.runtime import faultpoints
from pleiades.sinks.kafka.insisting import RETRY_BACKOFF, SLICE_SECONDS, Around, Insisting
from pleiades.sinks.kafka.records import (
    MAX_ID_BYTES,
    REPLAY_HEADER,
    Headers,
    RecordForm,
    dead_letter_headers,
    event_headers,
)
from pleiades.sinks.kafka.trouble import Kind, kind_of

log = logging.getLogger(__name__)

MAX_INVALID = 5
"""So often a transaction may be refused because a record of it is not valid, nobody knows why."""


class Record(NamedTuple):
    """A message that is produced by itself."""

    topic: str
    key: bytes
    value: bytes
    headers: Headers


class Reports:
    """What became of the messages of one careful try."""

    def __init__(self) -> None:
        self.expected = 0
        self.delivered = 0
        self.failed: list[tuple[Event, KafkaError]] = []

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to wait for: after a failure the rest is not sent."""
        return bool(self.failed) or self.delivered == self.expected

    def on(self, written: Event) -> Callable[[KafkaError | None, Message], None]:
        """The delivery callback of one message."""
        self.expected += 1

        def note(error: KafkaError | None, _message: Message) -> None:
            if error is None:
                self.delivered += 1
            else:
                self.failed.append((written, error))

        return note


class Transactions:
    """Events in, transactions out.

    Args:
        topic: where events go; dead letters go to `dead_letters_topic`.
        form: what the records look like.
        surely_taken_bytes: the topic takes an event of this size, however it compresses.
        max_dead_letter_bytes: a longer one is cut.
    """

    def __init__(
        self,
        producer: Producer,
        topic: str,
        dead_letters_topic: str,
        form: RecordForm,
        surely_taken_bytes: int,
        max_dead_letter_bytes: int,
        around: Around,
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._dead_letters_topic = dead_letters_topic
        self._key_of = form.key_of
        self._all_have_headers = form.key_of is not None or bool(form.replay)
        self._replay: Headers = {REPLAY_HEADER: form.replay} if form.replay else {}
        self._surely_taken_bytes = surely_taken_bytes
        self._max_dead_letter_bytes = max_dead_letter_bytes
        self._around = around
        self._written: list[Event] = []
        self._calls = Insisting(producer, around)
        self._begun = False
        self._spoilt: KafkaError | None = None
        """Why what was produced can't be committed."""
        self._suspects: set[str] = set()
        """Identities of events that were refused in company."""

    def write(self, events: list[Event]) -> None:
        """Produce, in the open transaction or a new one."""
        self._written += events
        if self._spoilt is not None:
            return
        try:
            self._begin()
            if (
                self._all_have_headers
                or not all_published(events)
                or any_fallback([event.identity for event in events])
            ):
                self._produce_mixed(events)
            else:
                self._produce_batch(events)
            self._producer.poll(0)
        except KafkaException as error:
            # Whatever it is, the commit meets it too, and knows how to take it.
            self._spoilt = error.args[0]

    def tend(self) -> None:
        """Take what librdkafka reports while nothing is written."""
        try:
            self._producer.poll(0)
        except KafkaException as error:
            # As in `write`.
            self._spoilt = error.args[0]

    def commit(self, offsets: list[TopicPartition], group: object) -> list[Event]:
        """Commit all that was written, and offsets with metadata; waits for as long as it takes.

        Returns the dead letters among it, with the events that the broker refused for their size.

        Raises:
            KafkaException: the sink must judge: fenced, lost or fatal.
            GenerationLost: a new process is needed.
        """
        failures = invalid = 0
        while not self._try_to_commit(offsets, group):
            if _is_invalid(self._spoilt):
                self._learn_more(offsets, group)
                invalid += _is_invalid(self._spoilt)
                if self._spoilt is not None and invalid > MAX_INVALID:
                    raise KafkaException(self._spoilt)
            # What is too large is found one by one; there is nothing to wait for.
            failures = 0 if _is_size(self._spoilt) else failures + 1
            if failures > 1:
                self._around.pause(RETRY_BACKOFF.pause_seconds(failures - 1, jitter=1.0))
        letters = [event for event in self._written if event.reason]
        self._written, self._suspects = [], set()
        return letters

    def _try_to_commit(self, offsets: list[TopicPartition], group: object) -> bool:
        """Once; False if it has to be done again from the beginning."""
        if self._spoilt is not None and not self._produce_again():
            return False
        producer = self._producer
        try:
            self._begin()
            faultpoints.passing(faultpoints.PRODUCED)
            self._calls.insist(
                lambda: producer.send_offsets_to_transaction(offsets, group, SLICE_SECONDS)
            )
            faultpoints.passing(faultpoints.POSITION_SENT)
            # A commit that ran out of time goes on; to call it again is to wait for its end.
            self._calls.insist(lambda: producer.commit_transaction(SLICE_SECONDS))
        except KafkaException as error:
            if kind_of(error.args[0]) is not Kind.ABORT:
                raise
            self._spoil(error.args[0])
            return False
        self._begun = False
        return True

    def _learn_more(self, offsets: list[TopicPartition], group: object) -> None:
        """Why a record is not valid: its report does not say it, the error of the transaction does."""
        producer = self._producer
        try:
            # Whatever it answers, the transaction is aborted.
            self._calls.insist(
                lambda: producer.send_offsets_to_transaction(offsets, group, SLICE_SECONDS)
            )
        except KafkaException as error:
            self._spoil(error.args[0])

    def _spoil(self, error: KafkaError) -> None:
        self._spoilt = error
        if not _is_size(error):
            self._around.on_trouble("commit a transaction, which begins again", error)

    def _begin(self) -> None:
        if not self._begun:
            self._producer.begin_transaction()
            self._begun = True

    # ---- producing, the quick way and the careful one ----

    def _produce_mixed(self, events: list[Event]) -> None:
        """Each the way that it takes; the order stays."""
        for one_by_one, some in groupby(events, self._has_headers):
            if one_by_one:
                for event in some:
                    self._produce(event)
            else:
                self._produce_batch(list(some))

    def _has_headers(self, event: Event) -> bool:
        return self._all_have_headers or bool(event.reason) or is_fallback(event.identity)

    def _produce_batch(self, events: list[Event]) -> None:
        messages = [{"key": event.key, "value": event.data} for event in events]
        if messages and self._producer.produce_batch(self._topic, messages) < len(messages):
            failed = next(message["_error"] for message in messages if "_error" in message)
            raise KafkaException(failed)

    def _produce(self, written: Event, reports: Reports | None = None) -> None:
        record = self._record(written)
        on_delivery = None if reports is None else reports.on(written)
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    record.value,
                    record.key,
                    headers=record.headers,
                    on_delivery=on_delivery,
                )
            except BufferError:
                self._around.alive()
                self._producer.poll(SLICE_SECONDS)
            else:
                return

    def _record(self, written: Event) -> Record:
        if written.reason:
            most = self._max_dead_letter_bytes
            headers = dead_letter_headers(written, most)
            return Record(
                self._dead_letters_topic,
                written.key[:MAX_ID_BYTES],
                written.data[:most],
                headers | self._replay,
            )
        key = written.key if self._key_of is None else self._key_of(written)
        headers = event_headers(written, keyed_by_field=self._key_of is not None)
        return Record(self._topic, key, written.data, headers | self._replay)

    def _produce_again(self) -> bool:
        """Abort, and produce all of it once more, one by one; whether all of it was delivered.

        Raises:
            KafkaException: the transaction can't be aborted, or a message not be delivered ever.
        """
        if self._begun:
            self._calls.insist(lambda: self._producer.abort_transaction(SLICE_SECONDS))
            self._begun = False
        reports = Reports()
        try:
            self._begin()
            for written in self._written:
                alone = self._is_suspect(written)
                if alone:
                    self._await(reports)
                self._produce(written, reports)
                self._producer.poll(0)
                if alone:
                    self._await(reports)
                if reports.failed:
                    break
        except KafkaException as error:
            # The transaction failed behind our back; the reports say of what, if it was a message.
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

    def _is_suspect(self, written: Event) -> bool:
        size_bytes = len(written.key) + len(written.data)
        return size_bytes > self._surely_taken_bytes or written.identity in self._suspects

    def _await(self, reports: Reports) -> None:
        while not reports.complete:
            self._around.alive()
            self._producer.flush(SLICE_SECONDS)

    def _learn(self, failed: list[tuple[Event, KafkaError]]) -> None:
        too_large = [written for written, error in failed if _is_size(error)]
        if not too_large:
            self._spoilt = failed[0][1]
            if any(_is_invalid(error) for _, error in failed):
                # Some may have failed because of these.
                self._spoilt = KafkaError(KafkaError.INVALID_RECORD)
                return
            for _, error in failed:
                if kind_of(error) is not Kind.TRANSIENT:
                    raise KafkaException(error)
            self._around.on_trouble("deliver events", failed[0][1])
            return
        # All others have failed with them.
        self._spoilt = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
        for written in too_large:
            if written.reason:
                self._max_dead_letter_bytes = max(self._max_dead_letter_bytes // 2, 1)
            elif self._is_suspect(written):
                place = self._written.index(written)
                self._written[place] = written._replace(reason=TOO_LARGE)
            else:
                self._suspects.add(written.identity)


def _is_invalid(error: KafkaError | None) -> bool:
    return error is not None and error.code() == KafkaError.INVALID_RECORD


def _is_size(error: KafkaError | None) -> bool:
    return error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE
