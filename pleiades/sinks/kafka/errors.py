"""Errors of Kafka: how the relay reacts, and what it tells the operator."""

from __future__ import annotations

import enum
from collections.abc import Container

from confluent_kafka import KafkaError

from pleiades.core.units import iso_time, rough_duration
from pleiades.runtime.errors import Fatal
from pleiades.runtime.logs import printable
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.properties import without_values

_ROUGH_MS = 120_000
MAX_SHOWN = 300
"""Characters of a broker's or librdkafka's message that are shown."""


class Kind(enum.Enum):
    """How to react to an error."""

    TRANSIENT = enum.auto()
    """Retry until it passes."""
    ABORT = enum.auto()
    """Abort the open transaction and produce its records again."""
    FENCED = enum.auto()
    """Another producer uses our transactional id, or the broker ended our transaction."""
    LOST = enum.auto()
    """Restart the pipeline from the durable position: a new producer can go on, this one can't."""
    FATAL = enum.auto()
    """End the program: another try would fail, too."""


_FENCED = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        # The answer to a commit whose transaction the broker has ended.
        KafkaError.INVALID_TXN_STATE,
    }
)

_UNREACHABLE = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        # The server does not speak Kafka but HTTP, or TLS.
        KafkaError._BAD_MSG,
    }
)

_LOG_IN = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.ILLEGAL_SASL_STATE,
    }
)

# retriable() is false for these, although they pass.
_TRANSIENT = _UNREACHABLE | {
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._WAIT_COORD,
    KafkaError._WAIT_CACHE,
    KafkaError._QUEUE_FULL,
    KafkaError._PURGE_QUEUE,
    KafkaError._PURGE_INFLIGHT,
    KafkaError._MSG_TIMED_OUT,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.CONCURRENT_TRANSACTIONS,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.NOT_CONTROLLER,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    KafkaError.THROTTLING_QUOTA_EXCEEDED,
    # Passes when somebody sets the clock.
    KafkaError.INVALID_TIMESTAMP,
}

NO_TOPIC = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_TOPIC_ID,
    }
)

_FORBIDDEN = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "Describe, Read and Write (and Create, where it is "
    "missing) on the topics {topic} and {topic}-dead-letters",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "Read on the group {group}",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "Describe and Write on the transactional "
    "id {group}",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "Create on the topics {topic} and "
    "{topic}-dead-letters, or create them yourself; and IdempotentWrite on the cluster",
}

_ADVICE: list[tuple[Container[int], str]] = [
    (
        {KafkaError._RESOLVE},
        "the host name in --kafka.broker {brokers} is unknown: check its spelling and the DNS",
    ),
    (
        _LOG_IN,
        (
            "the broker refused the log-in: check sasl.mechanisms, sasl.username and sasl.password "
            "(--kafka.config, --kafka.property)"
        ),
    ),
    (
        {KafkaError._SSL},
        (
            "the TLS handshake failed: check security.protocol and ssl.ca.location (--kafka.config), "
            "and that the broker's certificate names the host in --kafka.broker {brokers}"
        ),
    ),
    (NO_TOPIC, "check --kafka.topic {topic}: somebody deleted it, or it never existed"),
    (
        {KafkaError.INVALID_TRANSACTION_TIMEOUT},
        (
            "the broker's transaction.max.timeout.ms is less than transaction.timeout.ms: lower the "
            "latter (--kafka.property transaction.timeout.ms=60000)"
        ),
    ),
    (
        _UNREACHABLE,
        (
            "check host and port in --kafka.broker {brokers}, that the broker runs and is reachable, "
            "and whether it wants TLS or a log-in (--kafka.config)"
        ),
    ),
    *(
        ({code}, "this user lacks the rights: allow " + rights)
        for code, rights in _FORBIDDEN.items()
    ),
]

_FATAL = (
    _LOG_IN
    | NO_TOPIC
    | _FORBIDDEN.keys()
    | {KafkaError._SSL, KafkaError.INVALID_TRANSACTION_TIMEOUT}
)


def kind_of(error: KafkaError) -> Kind:
    """How to react to the error of a call on the producer, the consumer or the admin client."""
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


def group_of(settings: KafkaDestination) -> str:
    """The consumer group that holds the position, which is also the transactional id."""
    return f"pleiades-{settings.topic}-{settings.position_name}"


def text_of(error: KafkaError, settings: KafkaDestination) -> str:
    """An error's own text for a log: one line, without secrets."""
    text = without_values(error.str() or error.name(), settings.properties)
    return printable(text, MAX_SHOWN)


def advice(error: KafkaError, settings: KafkaDestination) -> str:
    """What an operator should check; may be empty."""
    code = error.code()
    for codes, text in _ADVICE:
        if code in codes:
            return text.format(
                brokers=settings.brokers, topic=settings.topic, group=group_of(settings)
            )
    return ""


def fatal(operation: str, error: KafkaError, settings: KafkaDestination) -> Fatal:
    """The error that ends the program."""
    hint = advice(error, settings)
    return Fatal(
        f"can't {operation}: {text_of(error, settings)}. Nothing is lost: all committed events are safe"
        + (f"; {hint}" if hint else "")
    )


def clock_advice(now_ms: int, newest_ms: int, ahead_ms: int, behind_ms: int | None) -> str:
    """What to do about a topic that refuses records dated by this machine's clock.

    Args:
        now_ms: this machine's clock.
        newest_ms: the upstream's time of the newest waiting event; 0: unknown.
        ahead_ms, behind_ms: how far a record's time may be from the broker's clock; None: no limit.
    """
    limit = f"more than {_duration(ahead_ms)} ahead of the broker's"
    if behind_ms is not None:
        limit += f" or more than {_duration(behind_ms)} behind it"
    newest = ""
    if newest_ms:
        apart_ms = now_ms - newest_ms
        side = "ahead of" if apart_ms >= 0 else "behind"
        newest = (
            f". It is {_duration(abs(apart_ms))} {side} the newest waiting event, which is dated "
            f"{iso_time(newest_ms)}"
        )
    return (
        f"this machine's clock says {iso_time(now_ms)}, which is {limit}; the topic refuses records "
        f"with such a time (message.timestamp.after.max.ms, message.timestamp.before.max.ms){newest}. "
        "Set the clock of the machine that is wrong (NTP): publishing then resumes"
    )


def _duration(ms: int) -> str:
    return rough_duration(ms / 1000) if ms >= _ROUGH_MS else f"{ms / 1000:g} s"
