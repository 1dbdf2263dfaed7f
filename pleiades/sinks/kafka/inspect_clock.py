"""Asks the brokers whether they accept this machine's time.

Law: nothing is written. Kafka takes a batch of records as a whole or not at all, and each batch of ours
has records with a date that no broker accepts. Its answer tells which records it refuses: also the one
that is dated now, or only the others. The client sends each batch whole, because it waits for the flush.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    ConfigResource,
    TopicDescription,
)

from pleiades.core.units import iso_time, rough_duration
from pleiades.runtime.errors import UsageError
from pleiades.runtime.findings import Finding, note, now_ms, problem
from pleiades.sinks.kafka.admin import REQUEST_SECONDS, Admin, Configuration
from pleiades.sinks.kafka.clients import Clients
from pleiades.sinks.kafka.destination import KafkaDestination

PROBE_SECONDS = 5.0
AFTER, BEFORE = "message.timestamp.after.max.ms", "message.timestamp.before.max.ms"
UNLIMITED_MS = 2**62
"""Kafka's own default for "unlimited" is 2**63 - 1; a date so far away is refused by any lower limit."""
_DEFAULTS = {AFTER: "3600000"}
"""Those of Kafka 4, if this user may not read the brokers' configuration."""
REFUSED = (KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP)

Answers = dict[tuple[str, int], KafkaError | None]


def inspect_clock(
    clients: Clients,
    topics: list[TopicDescription],
    configurations: Mapping[str, Configuration | None],
) -> Iterator[Finding]:
    """Yield a problem if a broker refuses records that are dated now.

    Args:
        topics: those of the sink that this user may see; each partition asks its leader.
    """
    if not topics:
        yield note(
            "only a start will tell whether the brokers' clocks are right: they refuse events that are "
            "dated too far from their time, and can be asked once the topic exists"
        )
    limited = {}
    for topic in topics:
        configuration = configurations[topic.name] or {}
        if impossible_ms := _impossible_ms(configuration):
            led = {each.leader.id: each.id for each in topic.partitions if each.leader is not None}
            limited.update({(topic.name, number): impossible_ms for number in led.values()})
    clock_ms = now_ms()
    refusing = {
        name
        for (name, _), error in _ask(clients, limited, clock_ms).items()
        if error is not None and error.code() in REFUSED
    }
    for name in sorted(refusing):
        limits = _limits(configurations[name] or {})
        yield problem(
            f"this machine's clock says {iso_time(clock_ms)}, which is too far from the broker's: the "
            f"topic {name} refuses records with such a time ({limits}), and nothing could be "
            "published. Set the clock of the machine that is wrong, this one's or the broker's (NTP)"
        )


def _impossible_ms(topic: Configuration) -> int:
    """A date that a topic accepts at no time; 0: there is none, or the topic's limits are unknown."""
    if topic.get("message.timestamp.type", "CreateTime") != "CreateTime":
        return 0
    if _limit_ms(topic, AFTER) < UNLIMITED_MS:
        return UNLIMITED_MS
    return -UNLIMITED_MS if _limit_ms(topic, BEFORE) < UNLIMITED_MS else 0


def _ask(clients: Clients, limited: Mapping[tuple[str, int], int], clock_ms: int) -> Answers:
    """The answers about a record that is dated so; none from brokers that do not answer in time."""
    answers: Answers = {}

    def answered(at: tuple[str, int], error: KafkaError | None, _message: Message) -> None:
        answers[at] = error

    if not limited:
        return answers
    try:
        producer = clients.prober()
    except UsageError:
        # Properties that the producer of events takes, but not beside these.
        return answers
    # librdkafka tells records apart only if the broker refuses more than one.
    for (topic, partition), impossible_ms in limited.items():
        for timestamp_ms in (impossible_ms, impossible_ms, clock_ms):
            told: Any = {}
            if timestamp_ms == clock_ms:
                told = {"on_delivery": partial(answered, (topic, partition))}
            # A compacted topic refuses records without a key.
            producer.produce(topic, b"", b"-", partition, timestamp=timestamp_ms, **told)
    producer.flush(PROBE_SECONDS)
    producer.purge()
    return answers


def refusal_of_new_topic(kafka: KafkaDestination, ahead_seconds: float) -> str:
    """Why the topic that a start creates would refuse records dated so far ahead; empty: it would not.

    A topic that is missing can't be asked. So the upstream's clock stands for the brokers'.
    """
    admin = Admin(Clients(kafka).admin(), kafka)
    brokers: Configuration = {}
    # What else is wrong with the cluster is not the clock's business.
    with contextlib.suppress(KafkaException):
        if admin.missing():
            cluster = admin.cluster(REQUEST_SECONDS)
            node = str(cluster.nodes[0].id)
            brokers = admin.configuration(ConfigResource.Type.BROKER, node) or _DEFAULTS
    topic = {key.removeprefix("log."): value for key, value in brokers.items()}
    if (
        brokers
        and _impossible_ms(topic)
        and not -_limit_ms(topic, BEFORE) <= ahead_seconds * 1000 <= _limit_ms(topic, AFTER)
    ):
        return (
            "Kafka refuses records that are dated too far from the broker's time "
            f"({_limits(topic)})"
        )
    return ""


def _limit_ms(topic: Configuration, name: str) -> int:
    return int(topic.get(name, UNLIMITED_MS))


def _limits(topic: Configuration) -> str:
    return ", ".join(
        f"{name}: {rough_duration(limit_ms / 1000)}"
        for name in (AFTER, BEFORE)
        if (limit_ms := _limit_ms(topic, name)) < UNLIMITED_MS
    )
