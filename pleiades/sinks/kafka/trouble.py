"""What an error of Kafka means: pass by, ask for another process, or end the program.

- *transient*: waited for, tried again, as often as it takes;
- *abort*: the open transaction is given up and what is in flight is produced again;
- *fenced*: another producer with our transactional id has begun, or the broker ended our transaction;
- *lost*: this producer can't go on, a new one can: the pipeline starts again from the durable position;
- *fatal*: another try is of no use.
"""

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
    """See above."""

    TRANSIENT = enum.auto()
    ABORT = enum.auto()
    FENCED = enum.auto()
    LOST = enum.auto()
    FATAL = enum.auto()


_FENCED = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        # So a commit is answered whose transaction the broker has ended.
        KafkaError.INVALID_TXN_STATE,
    }
)

_UNREACHABLE = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        # The answer was not Kafka's: HTTP, or TLS.
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

# What retriable() does not say of itself, and what passes all the same.
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
    # Once the clock is set right, the same events are taken.
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
    "{topic}-dead-letters, or make them yourself; and IdempotentWrite on the cluster",
}

_ADVICE: list[tuple[Container[int], str]] = [
    (
        {KafkaError._RESOLVE},
        "the host name in --kafka.broker {brokers} is not known: check its spelling and the DNS",
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
            "TLS did not come about: check security.protocol and ssl.ca.location (--kafka.config), and "
            "that the broker's certificate is for the host in --kafka.broker {brokers}"
        ),
    ),
    (NO_TOPIC, "check --kafka.topic {topic}: it has been deleted, or never was there"),
    (
        {KafkaError.INVALID_TRANSACTION_TIMEOUT},
        (
            "the broker's transaction.max.timeout.ms is less than transaction.timeout.ms: set the "
            "latter lower (--kafka.property transaction.timeout.ms=60000)"
        ),
    ),
    (
        _UNREACHABLE,
        (
            "check host and port in --kafka.broker {brokers}, that the broker runs and can be reached, "
            "and whether it wants TLS or a log-in (--kafka.config)"
        ),
    ),
    *(
        ({code}, "this user has no right to it: allow " + rights)
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
    """How to take an error of a call on the producer, the consumer or the admin client."""
    code = error.code()
    # In this order: an error that aborts says so beside its code, and an authorization that fails
    # within a transaction must not be tried again for ever.
    for kind, holds in (
        (Kind.FENCED, code in _FENCED),
        (Kind.FATAL, code in _FATAL),
        (Kind.ABORT, error.txn_requires_abort()),
        (Kind.LOST, error.fatal()),
        (Kind.TRANSIENT, error.retriable() or code in _TRANSIENT),
    ):
        if holds:
            return kind
    return Kind.LOST


def group_of(settings: KafkaDestination) -> str:
    """Names the consumer group that holds the position, and the transactional id."""
    return f"pleiades-{settings.topic}-{settings.position_name}"


def said(error: KafkaError, settings: KafkaDestination) -> str:
    """An error's own words, fit for a log: one line, no secret."""
    text = without_values(error.str() or error.name(), settings.properties)
    return printable(text, MAX_SHOWN)


def advice(error: KafkaError, settings: KafkaDestination) -> str:
    """What an operator should look at; empty where there is nothing to say."""
    code = error.code()
    for codes, text in _ADVICE:
        if code in codes:
            return text.format(
                brokers=settings.brokers, topic=settings.topic, group=group_of(settings)
            )
    return ""


def clock_advice(now_ms: int, newest_ms: int, ahead_ms: int, behind_ms: int | None) -> str:
    """What to do about a topic that refuses the time of this machine.

    Args:
        now_ms: this machine's clock.
        newest_ms: the upstream's time of the newest event that waits; 0: it is not known.
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
            f". It is {_duration(abs(apart_ms))} {side} the newest event that waits, which is dated "
            f"{iso_time(newest_ms)}"
        )
    return (
        f"this machine's clock says {iso_time(now_ms)}, and that is {limit}, whose topic refuses "
        f"records with such a time (message.timestamp.after.max.ms, message.timestamp.before.max.ms)"
        f"{newest}. Set the clock of the machine that is wrong (NTP): publishing then goes on by itself"
    )


def _duration(ms: int) -> str:
    return rough_duration(ms / 1000) if ms >= _ROUGH_MS else f"{ms / 1000:g} s"


def fatal(operation: str, error: KafkaError, settings: KafkaDestination) -> Fatal:
    """The end of the program because of an error."""
    hint = advice(error, settings)
    return Fatal(
        f"can't {operation}: {said(error, settings)}. Nothing is lost, what is committed is safe"
        + (f"; {hint}" if hint else "")
    )
