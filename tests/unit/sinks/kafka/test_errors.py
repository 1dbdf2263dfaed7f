"""The classification of Kafka errors, and the messages for the operator."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.errors import Kind, advice, fatal, kind_of, text_of


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError._TRANSPORT, Kind.TRANSIENT),
        (KafkaError._TIMED_OUT, Kind.TRANSIENT),
        (KafkaError.NOT_ENOUGH_REPLICAS, Kind.TRANSIENT),
        (KafkaError.COORDINATOR_LOAD_IN_PROGRESS, Kind.TRANSIENT),
        (KafkaError.CONCURRENT_TRANSACTIONS, Kind.TRANSIENT),
        (KafkaError._FENCED, Kind.FENCED),
        (KafkaError.PRODUCER_FENCED, Kind.FENCED),
        (KafkaError.INVALID_PRODUCER_EPOCH, Kind.FENCED),
        (KafkaError.INVALID_TXN_STATE, Kind.FENCED),
        (KafkaError._AUTHENTICATION, Kind.FATAL),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, Kind.FATAL),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, Kind.FATAL),
        (KafkaError._SSL, Kind.FATAL),
        (KafkaError.UNKNOWN_PRODUCER_ID, Kind.LOST),
        (KafkaError._STATE, Kind.LOST),
    ],
)
def test_kinds(code: int, kind: Kind) -> None:
    assert kind_of(KafkaError(code)) is kind


def test_what_librdkafka_knows_counts() -> None:
    assert kind_of(KafkaError(KafkaError._INVALID_ARG, retriable=True)) is Kind.TRANSIENT
    assert kind_of(KafkaError(KafkaError._INVALID_ARG, txn_requires_abort=True)) is Kind.ABORT
    assert kind_of(KafkaError(KafkaError._INVALID_ARG, fatal=True)) is Kind.LOST
    forbidden = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, txn_requires_abort=True)
    assert kind_of(forbidden) is Kind.FATAL, "aborting and retrying would never end"


@pytest.mark.parametrize(
    ("code", "names"),
    [
        (KafkaError._RESOLVE, ["--kafka.broker kafka.example:9092", "DNS"]),
        (KafkaError._TRANSPORT, ["host and port", "TLS"]),
        (KafkaError._AUTHENTICATION, ["sasl.password"]),
        (KafkaError._SSL, ["ssl.ca.location"]),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, ["events", "events-dead-letters", "Write"]),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, ["the group pleiades-events-recentchange"]),
        (
            KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
            ["transactional id pleiades-events-recentchange"],
        ),
        (KafkaError.INVALID_TRANSACTION_TIMEOUT, ["transaction.timeout.ms"]),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, ["--kafka.topic events"]),
    ],
)
def test_advice_names_what_to_check(
    destination: KafkaDestination, code: int, names: list[str]
) -> None:
    told = str(fatal("commit", KafkaError(code), destination))
    assert told.startswith("can't commit: ")
    for name in names:
        assert name in told


def test_a_failed_handshake_is_known_by_its_text(destination: KafkaDestination) -> None:
    text = "sasl_ssl://x:1/bootstrap: error:0A000086:SSL routines::certificate verify failed"
    assert "ssl.ca.location" in advice(KafkaError(KafkaError._TRANSPORT, text), destination)


def test_no_advice_where_there_is_none(destination: KafkaDestination) -> None:
    unknown = KafkaError(-1)
    assert advice(unknown, destination) == ""
    assert "None" not in str(fatal("commit", unknown, destination))


def test_no_secret_and_one_line(destination: KafkaDestination) -> None:
    error = KafkaError(KafkaError._AUTHENTICATION, "user x\nwith hunter2 was\x1b[31m refused")
    shown = text_of(error, destination)
    assert "hunter2" not in shown
    assert shown.isprintable()
