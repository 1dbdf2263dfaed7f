"""Looks at the topic and its dead letters: how they are set up, or whether they could be created."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    TopicDescription,
)

from pleiades.config.settings import Settings
from pleiades.core.units import plural, rough_duration
from pleiades.runtime.findings import Finding, note, ok, problem, warning
from pleiades.sinks.kafka.admin import DEFAULT_MAX_BATCH_BYTES, Admin, Configuration, rights_in
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.errors import fatal

NEEDED = ("DESCRIBE", "READ", "WRITE")
MAX_LISTED = 10
LEAST_BATCH_BYTES = 1000
"""The id of an event, twice, and what identifies it have about so many."""
USUAL_BATCH_BYTES = 100_000
"""Longer events are rare in all streams."""


def refused(operation: str, error: KafkaError | int, kafka: KafkaDestination) -> Finding:
    """The finding about an operation that a start could not do; `error` may be a code."""
    error = error if isinstance(error, KafkaError) else KafkaError(error)
    return problem(str(fatal(operation, error, kafka)))


def retention_ms(topic: Configuration) -> int | None:
    """The time for which a topic keeps its records; None: for ever, or unknown."""
    kept_ms = int(topic.get("retention.ms", -1))
    return kept_ms if kept_ms >= 0 and "delete" in topic.get("cleanup.policy", "") else None


def inspect_topics(
    settings: Settings,
    admin: Admin,
    topics: Mapping[str, TopicDescription | KafkaError],
    configurations: Mapping[str, Configuration | None],
) -> Iterator[Finding]:
    """Each topic as a start would find or create it."""
    for name, topic in topics.items():
        if not isinstance(topic, KafkaError):
            yield from _topic(admin.settings, topic, configurations[name])
            yield from _cleanup(settings, admin.settings, name, configurations[name] or {})
        elif topic.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            yield _missing(admin, name)
        else:
            yield refused(f"see the topic {name}", topic, admin.settings)


def _missing(admin: Admin, name: str) -> Finding:
    topic: Any = admin.new_topic(name)
    partitions, copies = plural(topic.num_partitions, "partition"), topic.replication_factor
    each = (
        plural(copies, "copy", "copies") if copies > 0 else "the cluster's default number of copies"
    )
    would = (
        f"the topic {name} is missing: a start would create it with {partitions}, {each} of each"
    )
    try:
        admin.create([topic], only_validate=True)
    except KafkaException as raised:
        error = raised.args[0]
        if error.code() in (KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION):
            return note(f"{would}. The brokers are too old to tell whether they allow it")
        return refused(f"create the missing topic {name}", error, admin.settings)
    return note(f"{would}; the cluster allows it")


def _topic(
    kafka: KafkaDestination, topic: TopicDescription, readable: Configuration | None
) -> Iterator[Finding]:
    found = readable or {}
    partitions: list[Any] = topic.partitions
    copies = min(len(partition.replicas) for partition in partitions)
    described = (
        f"{plural(len(partitions), 'partition')}, {plural(copies, 'copy', 'copies')} of each"
    )
    if "max.message.bytes" in found:
        described += f", accepts batches of {int(found['max.message.bytes']):,} bytes"
    if found.get("message.timestamp.type") == "LogAppendTime":
        described += ", dates its records by the broker's time"
    kept_ms = retention_ms(found)
    if kept_ms is not None:
        described += f", keeps them for {rough_duration(kept_ms / 1000)}"
    yield ok(f"topic {topic.name}: {described}")
    if readable is None:
        yield note(
            f"this user may not read the configuration of {topic.name} (DescribeConfigs): a start "
            f"assumes that it accepts batches of {DEFAULT_MAX_BATCH_BYTES:,} bytes"
        )
    led = [each for each in partitions if each.leader is not None and each.leader.id >= 0]
    needed = int(found.get("min.insync.replicas", 1))
    # Kafka 3.7 and later never ask for more copies than there are (its issue 15583).
    short = [each.id for each in led if len(each.isr) < min(needed, len(each.replicas))]
    beyond = [each.id for each in led if len(each.replicas) < needed and each.id not in short]
    leaderless = [each.id for each in partitions if each not in led]
    if leaderless:
        yield problem(
            f"can't write to {_listed(leaderless)} of {topic.name}: no broker leads it. Start the "
            "broker that holds it"
        )
    if short:
        yield problem(
            f"can't write to {_listed(short)} of {topic.name}: fewer copies are in sync than "
            f"min.insync.replicas ({needed}). Start the brokers that hold the others"
        )
    if beyond:
        yield warning(
            f"{_listed(beyond)} of {topic.name} can never have as many copies in sync as "
            f"min.insync.replicas asks for ({needed}). Brokers before Kafka 3.7 refuse every event "
            "then, and the relay waits; later ones take them. Lower min.insync.replicas, or add copies"
        )
    rights = rights_in(topic)
    lacking = [right.title() for right in NEEDED if rights is not None and right not in rights]
    if lacking:
        operation = f"use the topic {topic.name} ({' and '.join(lacking)})"
        yield refused(operation, KafkaError.TOPIC_AUTHORIZATION_FAILED, kafka)


def _cleanup(
    settings: Settings, kafka: KafkaDestination, name: str, topic: Configuration
) -> Iterator[Finding]:
    if "compact" in topic.get("cleanup.policy", ""):
        why = (
            "--kafka.keyField gives many the same"
            if kafka.key_field
            else "events of one millisecond have the same"
        )
        yield warning(
            f"{name} is compacted (cleanup.policy): it keeps only the last event of each key, and "
            f"{why}. The others are lost, and no longer recognised when the upstream repeats them. Set "
            "cleanup.policy=delete"
        )
    accepted_bytes = int(topic.get("max.message.bytes", DEFAULT_MAX_BATCH_BYTES))
    if accepted_bytes < LEAST_BATCH_BYTES:
        yield problem(
            f"{name} accepts batches of {accepted_bytes:,} bytes only (max.message.bytes): neither "
            "events nor dead letters fit into it. Raise it; Kafka's default is 1048588"
        )
    elif accepted_bytes < USUAL_BATCH_BYTES:
        yield warning(
            f"{name} accepts batches of {accepted_bytes:,} bytes only (max.message.bytes): longer "
            "events become dead letters, and many small batches are slow. Raise it; Kafka's default is "
            "1048588"
        )
    kept_ms = retention_ms(topic)
    # A restart reads back less than two windows of an active topic (core.readback).
    window_ms = 2000 * max(settings.window_seconds, settings.upstream.overlap_seconds)
    if kept_ms is not None and kept_ms < window_ms:
        yield warning(
            f"{name} keeps its records for only {rough_duration(kept_ms / 1000)} (retention.ms). A "
            f"restart recognises repeats by those of up to {rough_duration(window_ms / 1000)} (twice "
            "--dedup.window): events of deleted records may be published a second time. Raise "
            "retention.ms"
        )


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:MAX_LISTED]))
    more = ", …" if len(numbers) > MAX_LISTED else ""
    return f"partition{'s' if len(numbers) > 1 else ''} {shown}{more}"
