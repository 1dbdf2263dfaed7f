"""The wait for a commit, with a producer that answers as librdkafka was observed to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import count, cycle
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from pleiades.core.event import Event
from pleiades.runtime.errors import GenerationLost
from pleiades.sinks.kafka import retry as retries
from pleiades.sinks.kafka.records import RecordForm
from pleiades.sinks.kafka.retry import Retry
from pleiades.sinks.kafka.transaction import Transactions
from tests.unit.sinks.kafka.conftest import kafka_destination

COMMIT_SECONDS = 0.5
OUT_OF_TIME = KafkaError(KafkaError._TIMED_OUT, "retry call to resume", retriable=True)


class SlowProducer:
    """Its commits time out for a while; in the meantime its messages are delivered, or not."""

    def __init__(self, waiting: Iterator[int], most_commits: int) -> None:
        self._waiting = waiting
        self._most_commits = most_commits
        self.commits = 0

    def seconds(self) -> float:
        """A clock that only its commits advance."""
        return self.commits * COMMIT_SECONDS

    def __len__(self) -> int:
        return next(self._waiting)

    def begin_transaction(self) -> None:
        """See `Producer`."""

    def poll(self, _seconds: float) -> None:
        """See `Producer`."""

    def send_offsets_to_transaction(self, *_: object) -> None:
        """See `Producer`."""

    def commit_transaction(self, _seconds: float) -> None:
        """See `Producer`."""
        self.commits += 1
        if self.commits < self._most_commits:
            raise KafkaException(OUT_OF_TIME)


@pytest.fixture
def transactions_of(retry: Retry) -> Callable[[Any], Transactions]:
    form = RecordForm(replace(kafka_destination(), topic="x"), b"", 10)

    def transactions(producer: Any) -> Transactions:
        return Transactions(producer, form, 10_000, None, retry)

    return transactions


@pytest.fixture
def commit(
    monkeypatch: pytest.MonkeyPatch, transactions_of: Callable[[Any], Transactions]
) -> Callable[[Any], None]:
    def commit_by(producer: Any) -> None:
        monkeypatch.setattr(retries, "time", Mock(monotonic=producer.seconds))
        assert transactions_of(producer).commit([TopicPartition("x", 0)]) == []

    return commit_by


STUCK_COMMITS = int(retries.STUCK_SECONDS / COMMIT_SECONDS)


def test_one_that_gets_no_further_is_given_up(commit: Callable[[Any], None]) -> None:
    producer = SlowProducer(iter(lambda: 7, None), 2 * STUCK_COMMITS)
    with pytest.raises(GenerationLost, match="no progress"):
        commit(producer)
    assert producer.commits == STUCK_COMMITS


def test_statistics_that_come_and_go_are_no_progress(commit: Callable[[Any], None]) -> None:
    with pytest.raises(GenerationLost, match="no progress"):
        commit(SlowProducer(cycle([7, 8]), 2 * STUCK_COMMITS))


def test_one_that_delivers_is_waited_for(commit: Callable[[Any], None]) -> None:
    producer = SlowProducer(count(1_000_000, -1), 3 * STUCK_COMMITS)
    commit(producer)
    assert producer.commits == 3 * STUCK_COMMITS


# ---- aborted and begun again ----


class Broker:
    """A producer and its broker: refuses as prepared, and keeps committed records."""

    def __init__(
        self,
        *refusals: KafkaError | None,
        max_bytes: int = 10_000,
        reports: Mapping[bytes, tuple[int, ...]] | None = None,
    ) -> None:
        self.refusals = list(refusals)
        """For successive commits; None: accepted."""
        self.max_bytes = max_bytes
        self.reports = {value: list(codes) for value, codes in (reports or {}).items()}
        """The errors with which the deliveries of these values fail."""
        self.open: list[tuple[str, bytes]] = []
        self.committed: list[list[tuple[str, bytes]]] = []
        self.aborted = 0
        self._waiting: list[tuple[bytes, Callable[[KafkaError | None, Any], None]]] = []

    def __len__(self) -> int:
        return 0

    def begin_transaction(self) -> None:
        """See `Producer`."""
        self.open = []

    def produce(
        self, topic: str, value: bytes, key: bytes, headers: object, on_delivery: Any
    ) -> None:
        """See `Producer`."""
        self.open.append((topic, value))
        if on_delivery is not None:
            self._waiting.append((value, on_delivery))

    def produce_batch(self, topic: str, messages: list[dict[str, bytes]]) -> int:
        """See `Producer`."""
        self.open += [(topic, message["value"]) for message in messages]
        return len(messages)

    def poll(self, _seconds: float) -> None:
        """See `Producer`."""

    def flush(self, _seconds: float) -> int:
        """Like `Producer`; a batch is refused as a whole."""
        batch, self._waiting = self._waiting, []
        too_large = sum(len(value) for value, _ in batch) > self.max_bytes
        error = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE) if too_large else None
        for value, on_delivery in batch:
            codes = self.reports.get(value)
            on_delivery(KafkaError(codes.pop(0)) if codes else error, None)
        return 0

    def send_offsets_to_transaction(self, *_: object) -> None:
        """See `Producer`."""

    def commit_transaction(self, _seconds: float) -> None:
        """See `Producer`."""
        refusal = self.refusals.pop(0) if self.refusals else None
        if refusal is not None:
            raise KafkaException(refusal)
        self.committed.append(self.open)

    def abort_transaction(self, _seconds: float) -> None:
        """See `Producer`."""
        self.aborted += 1


ABORTED = KafkaError(KafkaError.INVALID_RECORD, txn_requires_abort=True)
MOVED = KafkaError(KafkaError.NOT_COORDINATOR, txn_requires_abort=True)
FENCED = KafkaError(KafkaError.PRODUCER_FENCED)


def event(number: int, size: int = 10) -> Event:
    return Event(f"id-{number}", ("t", 0), number, "", b"", b"%d" % number * size)


def test_an_aborted_transaction_begins_again_with_the_same_records_in_order(
    transactions_of: Callable[[Any], Transactions],
) -> None:
    broker = Broker(MOVED, MOVED)
    transactions = transactions_of(broker)
    transactions.write([event(1), event(2)])
    transactions.write([event(3)])
    assert transactions.commit([]) == []
    assert broker.aborted == 2
    assert broker.committed == [[("x", event(number).data) for number in (1, 2, 3)]]
    transactions.write([event(4)])
    transactions.commit([])
    assert broker.committed[1:] == [[("x", event(4).data)]]


def test_what_can_never_be_committed_is_the_sinks_to_judge(
    transactions_of: Callable[[Any], Transactions],
) -> None:
    with pytest.raises(KafkaException):
        transactions_of(Broker(FENCED)).commit([])


def test_a_record_that_stays_invalid_is_not_tried_for_ever(
    transactions_of: Callable[[Any], Transactions],
) -> None:
    broker = Broker(*[ABORTED] * 100)
    transactions = transactions_of(broker)
    transactions.write([event(1)])
    with pytest.raises(KafkaException):
        transactions.commit([])


def test_only_an_event_that_is_refused_alone_is_too_large(
    transactions_of: Callable[[Any], Transactions],
) -> None:
    """A refused batch is refused as a whole."""
    broker = Broker(
        KafkaError(KafkaError.MSG_SIZE_TOO_LARGE, txn_requires_abort=True), max_bytes=50
    )
    transactions = transactions_of(broker)
    transactions.write([event(1, 30), event(2, 30), event(3, 90)])
    (letter,) = transactions.commit([])
    assert (letter.identity, letter.reason) == ("id-3", "too_large")
    (committed,) = broker.committed
    assert committed == [
        ("x", event(1, 30).data),
        ("x", event(2, 30).data),
        ("x-dead-letters", event(3, 90).data[:10]),
    ]


# ---- failed deliveries ----

TOO_LARGE, INVALID, TRANSIENT, REFUSED = (
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError._PURGE_QUEUE,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
)


@pytest.mark.parametrize(
    ("codes", "letters"),
    [
        # An event that is too large is refused with the others, then alone.
        ([(REFUSED,), (INVALID,), (TOO_LARGE, TOO_LARGE)], ["id-2"]),
        ([(TOO_LARGE, TOO_LARGE), (INVALID,), (REFUSED,)], ["id-0"]),
        # The others may have failed because of the invalid one.
        ([(REFUSED,), (INVALID,), (TRANSIENT,)], []),
        ([(INVALID,), (REFUSED,), (TRANSIENT,)], []),
        ([(TRANSIENT,), (TRANSIENT,), (TRANSIENT,)], []),
    ],
)
def test_the_cause_among_several_failed_deliveries(
    transactions_of: Callable[[Any], Transactions],
    codes: list[tuple[int, ...]],
    letters: list[str],
) -> None:
    events = [event(number) for number in range(3)]
    values = [each.data for each in events]
    broker = Broker(MOVED, reports=dict(zip(values, codes, strict=True)))
    transactions = transactions_of(broker)
    transactions.write(events)
    assert [each.identity for each in transactions.commit([])] == letters
    (committed,) = broker.committed
    assert len(committed) == len(events)


@pytest.mark.parametrize("codes", [(REFUSED, TRANSIENT), (TRANSIENT, REFUSED)])
def test_a_delivery_that_can_never_succeed_ends_the_commit(
    transactions_of: Callable[[Any], Transactions], codes: tuple[int, ...]
) -> None:
    events = [event(number) for number in range(2)]
    values = [each.data for each in events]
    broker = Broker(
        MOVED, reports={value: (code,) for value, code in zip(values, codes, strict=True)}
    )
    transactions = transactions_of(broker)
    transactions.write(events)
    with pytest.raises(KafkaException) as raised:
        transactions.commit([])
    assert raised.value.args[0].code() == REFUSED
    assert not broker.committed
