"""What only a topic can do to its sink: others' transactions in it, records without a readable id."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import Producer

from pleiades.core.fingerprint import fingerprints
from pleiades.core.range import Bound, Range
from pleiades.runtime.child import Life
from pleiades.runtime.metrics import Metrics
from pleiades.runtime.settings import ReplaySettings
from pleiades.sinks.kafka import history
from tests.contract.test_sinks import SOURCE, START_MS, Place, checkpoint, event, kafka_place
from tests.harness.waiting import until

ANSWER_SECONDS = 10


@pytest.fixture
def place(kafka: str, topic: str, life: Life, metrics: Metrics) -> Place:
    return kafka_place(kafka, topic, life, metrics)


def test_a_transaction_that_is_open_before_our_records_hides_none_of_them(
    place: Place,
    kafka: str,
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As of a replay that was killed: the broker ends it only after minutes."""
    monkeypatch.setattr(history, "WAITING_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    first = place.sink()
    first.open(resume=True)
    first.commit(checkpoint(0))
    other = Producer({"bootstrap.servers": kafka, "transactional.id": f"other-{topic}"})
    other.init_transactions(ANSWER_SECONDS)
    other.begin_transaction()
    other.produce(topic, b"[]", b"x")
    other.flush(ANSWER_SECONDS)
    first.write([event(1), event(2)], [])
    first.commit(checkpoint(2))
    first.close()
    second = place.sink()
    with ThreadPoolExecutor() as pool:
        opening = pool.submit(lambda: list(second.open(resume=True).window))
        until(
            lambda: opening.done() or "another transaction is open" in caplog.text,
            "that it waits for the other one",
        )
        other.abort_transaction(ANSWER_SECONDS)
        window = opening.result(ANSWER_SECONDS)
    assert [remembered.fingerprint for remembered in window] == fingerprints(
        [event(1).identity, event(2).identity]
    )
    second.close()


def test_a_replay_knows_what_it_published_without_a_readable_id(
    kafka: str, topic: str, life: Life, metrics: Metrics
) -> None:
    """It does not say whose it is: it may be an ingest's, and may be the replay's own."""
    span = Range(Bound(START_MS), Bound(START_MS + 1_000))
    sources = {SOURCE: START_MS, ("codfw.x", 0): START_MS}
    settings = ReplaySettings(
        span, START_MS, sources, 2, 0.0, None, False, False, False, dry_run=False
    )
    place = kafka_place(kafka, topic, life, metrics, settings)
    first = place.sink()
    first.open(resume=True)
    first.commit(checkpoint(0))
    first.write([event(1)._replace(key=b"unreadable")], [])
    first.commit(checkpoint(1))
    first.close()
    second = place.sink()
    window = list(second.open(resume=True).window)
    second.close()
    assert [remembered.fingerprint for remembered in window] == fingerprints([event(1).identity])
