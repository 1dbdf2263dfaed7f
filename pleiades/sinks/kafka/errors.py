"""Errors of Kafka: how the relay reacts, and what it tells the operator."""

from __future__ import annotations

import enum

from confluent_kafka import KafkaError

from pleiades.core.units import iso_time, rough_duration
from pleiades.runtime.errors import Fatal
from pleiades.runtime.findings import now_ms
from pleiades.runtime.logs import printable
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.properties import without_values

MAX_SHOWN = 300
"""Characters of a broker's or librdkafka's message that are shown."""


class Kind(enum.Enum):
    """The reaction to an error."""

    TRANSIENT = "retry until it passes"
    ABORT = "abort the open transaction and produce its records again"
    FENCED = "another producer uses our transactional id, or the broker ended our transaction"
    LOST = "restart the pipeline: a new producer can go on, this one can't"
    FATAL = "end the program: another try would fail, too"


def _codes(names: str) -> frozenset[int]:
    """Errors by their names in `KafkaError`; those with an underscore are librdkafka's own."""
    return frozenset(getattr(KafkaError, name) for name in names.split())


# INVALID_TXN_STATE answers a commit whose transaction the broker has ended.
_FENCED = _codes("_FENCED PRODUCER_FENCED INVALID_PRODUCER_EPOCH INVALID_TXN_STATE")
# _BAD_MSG: the server does not speak Kafka but HTTP, or TLS.
_UNREACHABLE = _codes("_TRANSPORT _ALL_BROKERS_DOWN _TIMED_OUT _BAD_MSG")
# Those for which retriable() is false although they pass. INVALID_TIMESTAMP does when the clock is set.
_TRANSIENT = _UNREACHABLE | _codes(
    """
    _RESOLVE _TIMED_OUT_QUEUE _WAIT_COORD _WAIT_CACHE _QUEUE_FULL _PURGE_QUEUE _PURGE_INFLIGHT
    _MSG_TIMED_OUT BROKER_NOT_AVAILABLE COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE
    NOT_COORDINATOR CONCURRENT_TRANSACTIONS LEADER_NOT_AVAILABLE NOT_LEADER_FOR_PARTITION
    REPLICA_NOT_AVAILABLE NETWORK_EXCEPTION REQUEST_TIMED_OUT NOT_ENOUGH_REPLICAS
    NOT_ENOUGH_REPLICAS_AFTER_APPEND NOT_CONTROLLER KAFKA_STORAGE_ERROR UNSTABLE_OFFSET_COMMIT
    THROTTLING_QUOTA_EXCEEDED INVALID_TIMESTAMP
    """
)
NO_TOPIC = _codes("UNKNOWN_TOPIC_OR_PART _UNKNOWN_TOPIC _UNKNOWN_PARTITION UNKNOWN_TOPIC_ID")
_LOG_IN = _codes(
    "_AUTHENTICATION SASL_AUTHENTICATION_FAILED UNSUPPORTED_SASL_MECHANISM ILLEGAL_SASL_STATE"
)
_RIGHTS = "this user lacks the rights: allow "

_FATAL_ADVICE = {
    _LOG_IN: "the broker refused the log-in: check sasl.mechanisms, sasl.username and sasl.password "
    "(--kafka.config, --kafka.property)",
    _codes("_SSL"): "the TLS handshake failed: check security.protocol and ssl.ca.location "
    "(--kafka.config), and that the broker's certificate names the host in --kafka.broker {brokers}",
    NO_TOPIC: "check --kafka.topic {topic}: somebody deleted it, or it never existed",
    _codes(
        "INVALID_REPLICATION_FACTOR INVALID_PARTITIONS TOPIC_EXCEPTION POLICY_VIOLATION INVALID_CONFIG"
    ): "check --kafka.partitions and --kafka.replication, or create the topic yourself",
    _codes("INVALID_TRANSACTION_TIMEOUT"): "the broker's transaction.max.timeout.ms is less than "
    "transaction.timeout.ms: lower the latter (--kafka.property transaction.timeout.ms=60000)",
    _codes("TOPIC_AUTHORIZATION_FAILED"): _RIGHTS
    + "Describe, Read and Write (and Create, where it is "
    "missing) on the topics {topic} and {topic}-dead-letters",
    _codes("GROUP_AUTHORIZATION_FAILED"): _RIGHTS + "Read on the group {group}",
    _codes("TRANSACTIONAL_ID_AUTHORIZATION_FAILED"): _RIGHTS
    + "Describe and Write on the transactional id {group}",
    _codes("CLUSTER_AUTHORIZATION_FAILED"): _RIGHTS + "Create on the topics {topic} and "
    "{topic}-dead-letters, or create them yourself; and IdempotentWrite on the cluster",
}
_FATAL = frozenset[int]().union(*_FATAL_ADVICE)
_ADVICE = _FATAL_ADVICE | {
    _codes(
        "_RESOLVE"
    ): "the host name in --kafka.broker {brokers} is unknown: check its spelling and the DNS",
    _UNREACHABLE: "check host and port in --kafka.broker {brokers}, that the broker runs and is "
    "reachable, and whether it wants TLS or a log-in (--kafka.config)",
}


def kind_of(error: KafkaError) -> Kind:
    """The reaction to an error of a call on the producer, the consumer or the admin client."""
    code = error.code()
    # The order matters: an error that aborts says so beside its code, and an authorization that fails
    # within a transaction must not be retried for ever.
    if code in _FENCED:
        return Kind.FENCED
    if code in _FATAL:
        return Kind.FATAL
    if error.txn_requires_abort():
        return Kind.ABORT
    if not error.fatal() and (error.retriable() or code in _TRANSIENT):
        return Kind.TRANSIENT
    return Kind.LOST


def text_of(error: KafkaError, settings: KafkaDestination) -> str:
    """An error's own text for a log: one line, without secrets."""
    text = without_values(error.str() or error.name(), settings.properties)
    return printable(text, MAX_SHOWN)


def advice(error: KafkaError, settings: KafkaDestination) -> str:
    """Advice for the operator; may be empty."""
    # librdkafka reports some failed handshakes as a lost connection: only the text shows the cause.
    code = KafkaError._SSL if "SSL routines" in error.str() else error.code()
    found = next((text for codes, text in _ADVICE.items() if code in codes), "")
    return found.format(brokers=settings.brokers, topic=settings.topic, group=settings.group)


def fatal(operation: str, error: KafkaError, settings: KafkaDestination) -> Fatal:
    """The error that ends the program."""
    hint = advice(error, settings)
    return Fatal(
        f"can't {operation}: {text_of(error, settings)}. Nothing is lost: all committed events are safe"
        + (f"; {hint}" if hint else "")
    )


def clock_advice(newest_ms: int) -> str:
    """Advice if the topic refuses this machine's time; `newest_ms`: that of the newest waiting event."""
    clock_ms = now_ms()
    side = "ahead of" if clock_ms >= newest_ms else "behind"
    return (
        f"this machine's clock says {iso_time(clock_ms)}, which is too far from the broker's; the topic "
        "refuses records with such a time (message.timestamp.after.max.ms, "
        "message.timestamp.before.max.ms). It is "
        f"{rough_duration(abs(clock_ms - newest_ms) / 1000)} {side} the newest waiting event, dated "
        f"{iso_time(newest_ms)}. Set the clock of the machine that is wrong (NTP): publishing then "
        "resumes"
    )
