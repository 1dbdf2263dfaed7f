"""How long a commit is waited for, with a producer that answers as librdkafka was seen to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count, cycle
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from pleiades.runtime.errors import GenerationLost
from pleiades.sinks.kafka import insisting
from pleiades.sinks.kafka.insisting import Around
from pleiades.sinks.kafka.records import RecordForm
from pleiades.sinks.kafka.transaction import Transactions

STUCK_SECONDS = 0.05
OUT_OF_TIME = KafkaError(KafkaError._TIMED_OUT, "retry call to resume", retriable=True)


class SlowProducer:
    """Its commits run out of time for a while; meanwhile its messages are delivered, or not."""

    def __init__(self, waiting: Iterator[int], until: Callable[[], bool]) -> None:
        self._waiting = waiting
        self._until = until
        self.commits = 0

    def __len__(self) -> int:
        return next(self._waiting)

    def begin_transaction(self) -> None:
        """As `Producer`."""

    def poll(self, _seconds: float) -> None:
        """As `Producer`."""

    def send_offsets_to_transaction(self, *_: object) -> None:
        """As `Producer`."""

    def commit_transaction(self, _seconds: float) -> None:
        """As `Producer`."""
        self.commits += 1
        if not self._until():
            raise KafkaException(OUT_OF_TIME)


@pytest.fixture
def commit(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    monkeypatch.setattr(insisting, "STUCK_SECONDS", STUCK_SECONDS)
    nothing = Around(lambda: None, lambda _: None, lambda _what, _why: None)

    def commit_by(producer: Any) -> None:
        transactions = Transactions(producer, "x", "x-dead-letters", RecordForm(), 1, 1, nothing)
        assert transactions.commit([TopicPartition("x", 0)], None) == []

    return commit_by


def test_one_that_gets_no_further_is_given_up(commit: Callable[[Any], None]) -> None:
    producer = SlowProducer(iter(lambda: 7, None), lambda: False)
    with pytest.raises(GenerationLost, match="no further"):
        commit(producer)
    assert producer.commits > 1


def test_statistics_that_come_and_go_are_no_progress(commit: Callable[[Any], None]) -> None:
    producer = SlowProducer(cycle([7, 8]), lambda: False)
    with pytest.raises(GenerationLost, match="no further"):
        commit(producer)


def test_one_that_delivers_is_waited_for(commit: Callable[[Any], None]) -> None:
    begun = time.monotonic()
    producer = SlowProducer(
        count(1_000_000, -1), lambda: time.monotonic() - begun > 3 * STUCK_SECONDS
    )
    commit(producer)
    assert producer.commits > 1
