"""Sink behaviour specific to a topic: foreign transactions, records without a readable id."""

from __future__ import annotations

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    AdminClient,
    NewPartitions,
)

from pleiades.config.settings import ReplaySettings
from pleiades.core.checkpoint import Checkpoint, ReplayProgress
from pleiades.core.event import Event
from pleiades.core.fingerprint import fingerprints
from pleiades.core.range import Bound, Range
from pleiades.core.sse_id import compose_id
from pleiades.runtime.child import ChildContext
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.base import Sink
from pleiades.sinks.kafka import records, recovery, topic_reader
from pleiades.sinks.kafka import sink as sinks
from pleiades.sinks.kafka.admin import Admin
from tests.contract.test_sinks import (
    SOURCE,
    START_MS,
    Place,
    checkpoint,
    event,
    kafka_place,
    letter,
)
from tests.harness.broker import topic_records
from tests.harness.waiting import until

ANSWER_SECONDS = 10
IDLE = ("codfw.x", 0)


@pytest.fixture
def place(kafka: str, topic: str, child: ChildContext, metrics: Metrics) -> Place:
    return kafka_place(kafka, topic, child, metrics)


def test_a_transaction_that_is_open_before_our_records_hides_none_of_them(
    place: Place,
    kafka: str,
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """For example that of a killed replay: the broker ends it only after minutes."""
    monkeypatch.setattr(topic_reader, "WAITING_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    first = place.sink()
    first.open(resume=True)
    first.commit(checkpoint(0))
    other = Producer({"bootstrap.servers": kafka, "transactional.id": f"other-{topic}"})
    other.init_transactions(ANSWER_SECONDS)
    other.begin_transaction()
    other.produce(topic, b"[]", b"x")
    other.flush(ANSWER_SECONDS)
    first.write([event(1), event(2)])
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
    kafka: str, topic: str, child: ChildContext, metrics: Metrics
) -> None:
    """Such a record does not tell its writer: it may be an ingest's, or the replay's own."""
    span = Range(Bound(START_MS), Bound(START_MS + 1_000))
    sources = {SOURCE: START_MS, ("codfw.x", 0): START_MS}
    settings = ReplaySettings(span, START_MS, sources, 2, 0.0, None, False, False, False)
    place = kafka_place(kafka, topic, child, metrics, settings)
    first = place.sink()
    first.open(resume=True)
    first.commit(checkpoint(0))
    first.write([event(1)._replace(key=b"unreadable")])
    first.commit(checkpoint(1))
    first.close()
    second = place.sink()
    window = list(second.open(resume=True).window)
    second.close()
    assert [remembered.fingerprint for remembered in window] == fingerprints([event(1).identity])


# ---- what is read back ----


def read_back(caplog: pytest.LogCaptureFixture) -> int:
    """The number of records that the last start read back."""
    said = [m for r in caplog.records if (m := re.match(r"read (\d+) events", r.getMessage()))]
    return int(said[-1][1])


def steady(sink: Sink, numbers: range, idle: int | None = None, window: int = 40) -> Checkpoint:
    """Commit events of one topic, 20 at a time; `idle`: the constant position of a second topic."""
    at = Checkpoint({}, 0, 0)
    for begin in numbers[::20]:
        sink.write([event(number) for number in range(begin, begin + 20)])
        position = {SOURCE: START_MS + begin + 20}
        if idle is not None:
            position[IDLE] = START_MS + idle
        at = Checkpoint(position, START_MS, START_MS + begin + 20, known_from=at.known_from)
        at = at.remembering(window)
        sink.commit(at)
    return at


def of_idle(number: int) -> Event:
    data = event(number).data.replace(SOURCE[0].encode(), IDLE[0].encode())
    key = compose_id({SOURCE: 1, IDLE: START_MS + number + 1}).encode()
    return event(number)._replace(source=IDLE, data=data, key=key)


def test_what_stands_still_does_not_make_the_read_back_grow(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like the other data centre between its canaries, or a topic that has left the stream."""
    monkeypatch.setattr(sinks, "MARK_SECONDS", 0.0)
    read = Mock(side_effect=records.read_event)
    monkeypatch.setattr(topic_reader, "read_event", read)
    sink = place.sink()
    sink.open(resume=True)
    sink.write([of_idle(number) for number in range(10_000, 10_030)])
    sink.commit(Checkpoint({SOURCE: START_MS, IDLE: START_MS + 30}, START_MS, START_MS))
    sizes = []
    for begin in range(0, 4_000, 500):
        steady(sink, range(begin, begin + 500), idle=30)
        sink.close()
        sink = place.sink()
        read.reset_mock()
        known = {each.fingerprint for each in sink.open(resume=True).window}
        assert known >= set(fingerprints([of_idle(at).identity for at in range(10_000, 10_030)]))
        assert known >= set(
            fingerprints([event(at).identity for at in range(begin + 460, begin + 500)])
        )
        sizes.append(read.call_count)
    sink.close()
    # Two windows of 40, commits of 20, and the 30.
    assert max(sizes) <= 30 + 2 * (40 + 20), sizes


def test_a_mark_that_the_broker_does_not_answer_is_made_later(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sinks, "MARK_SECONDS", 0.0)
    monkeypatch.setattr(sinks, "MARK_RETRY_SECONDS", 0.0)
    sink = place.sink()
    sink.open(resume=True)
    ends = Admin.ends
    no_answer = KafkaException(KafkaError(KafkaError._TIMED_OUT))
    with monkeypatch.context() as silent:
        silent.setattr(Admin, "ends", Mock(side_effect=no_answer))
        steady(sink, range(400))
    assert Admin.ends is ends
    steady(sink, range(400, 600))
    sink.close()
    sink = place.sink()
    known = {each.fingerprint for each in sink.open(resume=True).window}
    sink.close()
    assert known >= set(fingerprints([event(at).identity for at in range(560, 600)]))
    assert read_back(caplog) < 600


def test_a_partition_that_was_added_is_read_from_its_beginning(
    place: Place, kafka: str, topic: str
) -> None:
    sink = place.sink()
    sink.open(resume=True)
    sink.commit(checkpoint(0))
    admin = AdminClient({"bootstrap.servers": kafka})
    (added,) = admin.create_partitions([NewPartitions(topic, 3)]).values()
    added.result(ANSWER_SECONDS)
    sink.close()
    sink = place.sink()
    sink.open(resume=True)
    events = [event(number)._replace(key=b"%d" % number) for number in range(50)]
    sink.write(events)
    sink.commit(checkpoint(50))
    sink.close()
    assert {record.partition for record in topic_records(kafka, topic)} == {0, 1, 2}
    sink = place.sink()
    known = {each.fingerprint for each in sink.open(resume=True).window}
    sink.close()
    assert known == set(fingerprints([each.identity for each in events]))


# ---- whose a record is ----


def replay_of(bootstrap: str, topic: str, child: ChildContext, metrics: Metrics) -> Place:
    span = Range(Bound(START_MS), Bound(START_MS + 1_000))
    sources = {SOURCE: START_MS}
    settings = ReplaySettings(span, START_MS, sources, 2, 0.0, None, False, False, False)
    return kafka_place(bootstrap, topic, child, metrics, settings, "replay-1")


def one_entry(number: int) -> Event:
    """Its id has one entry, as in a stream with one topic-partition, or in a replay."""
    return event(number)._replace(key=compose_id({SOURCE: START_MS + number + 1}).encode())


def test_an_ingest_knows_what_it_published_before_a_partition_was_added(
    place: Place, kafka: str, topic: str, child: ChildContext, metrics: Metrics
) -> None:
    """Its ids named one topic-partition then, as a replay's ids do; a replay marks its records."""
    sink = place.sink()
    sink.open(resume=True)
    sink.write([one_entry(number) for number in range(10)])
    sink.commit(Checkpoint({SOURCE: START_MS + 10}, START_MS, START_MS))
    replayed = replay_of(kafka, topic, child, metrics).sink()
    replayed.open(resume=True)
    replayed.commit(Checkpoint({SOURCE: 0}, 0, 0, ReplayProgress()))
    replayed.write([*(one_entry(number) for number in range(100, 110)), letter(5)])
    replayed.commit(Checkpoint({SOURCE: START_MS + 110}, 0, 0, ReplayProgress()))
    sink.write([event(10)])
    sink.commit(Checkpoint({SOURCE: START_MS + 11, ("eqiad.x", 1): 0}, START_MS, START_MS))
    sink.close()
    sink = place.sink()
    known = [each.fingerprint for each in sink.open(resume=True).window]
    sink.close()
    assert known == fingerprints([event(number).identity for number in range(11)])
    replayed.close()
    replayed = replay_of(kafka, topic, child, metrics).sink()
    known = [each.fingerprint for each in replayed.open(resume=True).window]
    replayed.close()
    of_replay = [event(number).identity for number in range(100, 110)]
    assert sorted(known) == sorted(fingerprints([*of_replay, letter(5).identity]))


# ---- no position ----


def forget(kafka: str, topic: str) -> None:
    """Delete the stored position, as Kafka does a week after the last commit."""
    admin = AdminClient({"bootstrap.servers": kafka})
    (done,) = admin.delete_consumer_groups([f"pleiades-{topic}-recentchange"]).values()
    done.result(ANSWER_SECONDS)


def test_a_position_that_expired_in_mid_catch_up_skips_no_topic(
    place: Place, kafka: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One topic has been read already, and the ids contain nothing of the other."""
    sink = place.sink()
    sink.open(resume=True)
    key = b'[{"topic":"%s","partition":0,"timestamp":%d},{"topic":"codfw.x","partition":0,"offset":7}]'
    events = [
        event(number)._replace(key=key % (SOURCE[0].encode(), START_MS + number + 1))
        for number in range(0, 7_200_000, 72_000)
    ]
    sink.write(events)
    sink.commit(Checkpoint({SOURCE: events[-1].timestamp_ms, IDLE: 0}, START_MS, START_MS))
    sink.close()
    forget(kafka, topic)
    sink = place.sink()
    opened = sink.open(resume=True)
    list(opened.window)
    sink.close()
    assert opened.checkpoint is not None
    assert opened.checkpoint.position == {SOURCE: events[-1].timestamp_ms, IDLE: 0}
    assert opened.checkpoint.started_ms <= START_MS
    assert "no event of the topic tells how far codfw.x was" in caplog.text


def test_where_no_position_is_stored_it_reads_back_until_each_topic_tells(
    place: Place,
    kafka: str,
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last connection brought nothing of one topic: its position is further back."""
    monkeypatch.setattr(recovery, "FIRST_RECORDS", 10)
    sink = place.sink()
    sink.open(resume=True)
    sink.write([of_idle(0), *(event(number) for number in range(1, 20))])
    key = b'[{"topic":"%s","partition":0,"timestamp":%d},{"topic":"codfw.x","partition":0,"offset":7}]'
    later = [
        event(number)._replace(key=key % (SOURCE[0].encode(), START_MS + number + 1))
        for number in range(20, 200)
    ]
    sink.write(later)
    sink.commit(checkpoint(200))
    sink.close()
    forget(kafka, topic)
    sink = place.sink()
    opened = sink.open(resume=True)
    known = {each.fingerprint for each in opened.window}
    assert opened.checkpoint is not None
    assert opened.checkpoint.position == {SOURCE: START_MS + 200, IDLE: START_MS + 1}
    assert known == set(fingerprints([event(number).identity for number in range(200)]))
    # The next start reads back the same records.
    sink.commit(opened.checkpoint)
    sink.close()
    sink = place.sink()
    assert {each.fingerprint for each in sink.open(resume=True).window} == known
    sink.close()
