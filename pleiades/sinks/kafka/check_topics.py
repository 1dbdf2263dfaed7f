"""Looks at the topic and its dead letters: what they are, or whether they could be made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from pleiades.config.settings import Settings
from pleiades.core.units import plural, rough_duration
from pleiades.runtime.findings import Finding, note, ok, problem, warning
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.topics import DEFAULT_MAX_BATCH_BYTES, REQUEST_SECONDS, Topics
from pleiades.sinks.kafka.trouble import Kind, fatal, kind_of, said
from pleiades.sinks.kafka.view import Configuration, Topic, View

NEEDED = ("DESCRIBE", "READ", "WRITE")
MAX_LISTED = 10


def look_at_topics(
    settings: Settings,
    kafka: KafkaDestination,
    view: View,
    topics: Topics,
    described: Mapping[str, Topic | KafkaError],
    configurations: Mapping[str, Configuration | KafkaError],
) -> Iterator[Finding]:
    """What a start would find, or make."""
    for name, topic in described.items():
        if isinstance(topic, Topic):
            yield from _topic(settings, kafka, topic, configurations[name])
        elif topic.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            yield _missing(kafka, view, topics, name)
        else:
            yield problem(str(fatal(f"see the topic {name}", topic, kafka)))


def retention_ms(configuration: Configuration) -> int | None:
    """How long a topic keeps its records; None: for ever, or it does not say."""
    kept_ms = int(configuration.get("retention.ms", -1))
    if kept_ms < 0 or "delete" not in configuration.get("cleanup.policy", ""):
        return None
    return kept_ms


def _missing(kafka: KafkaDestination, view: View, topics: Topics, name: str) -> Finding:
    try:
        wanted = {topic.topic: topic for topic in topics.missing(REQUEST_SECONDS)}
    except KafkaException:
        # The other of the two may not be seen, which is told beside this.
        wanted = {}
    if name not in wanted:
        return note(f"the topic {name} is missing: a start would try to make it")
    topic: Any = wanted[name]
    error = view.creation(topic)
    partitions = plural(topic.num_partitions, "partition")
    copies = (
        f"{plural(topic.replication_factor, 'copy', 'copies')} of each"
        if topic.replication_factor > 0
        else "as many copies as the cluster makes by default"
    )
    would = f"the topic {name} is missing: a start would make it, with {partitions} and {copies}"
    if error is None:
        return note(f"{would}; the cluster allows it")
    if error.code() in (KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION):
        return note(f"{would}. Whether it may could not be tried: the brokers are too old")
    if kind_of(error) is Kind.FATAL:
        return problem(str(fatal(f"make the missing topic {name}", error, kafka)))
    return problem(
        f"can't make the missing topic {name}: {said(error, kafka).rstrip('.')}. Look at "
        "--kafka.partitions and --kafka.replication, or make the topic yourself",
    )


def _topic(
    settings: Settings, kafka: KafkaDestination, topic: Topic, answer: Configuration | KafkaError
) -> Iterator[Finding]:
    configuration = {} if isinstance(answer, KafkaError) else answer
    yield ok(f"topic {topic.name}: {_described(topic, configuration)}")
    if isinstance(answer, KafkaError):
        yield note(
            f"this user may not see the settings of {topic.name} (DescribeConfigs): a start assumes "
            f"that it takes {DEFAULT_MAX_BATCH_BYTES:,} bytes per batch",
        )
    yield from _health(topic, configuration)
    rights = NEEDED if topic.rights is None else topic.rights
    lacking = [right.title() for right in NEEDED if right not in rights]
    if lacking:
        refused = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
        does = " and ".join(lacking)
        yield problem(str(fatal(f"use the topic {topic.name} ({does})", refused, kafka)))
    yield from _cleanup(settings, kafka, topic, configuration)


def _described(topic: Topic, configuration: Configuration) -> str:
    copies = min(partition.copies for partition in topic.partitions)
    described = (
        f"{plural(len(topic.partitions), 'partition')}, {plural(copies, 'copy', 'copies')} of each"
    )
    if "max.message.bytes" in configuration:
        described += f", takes {int(configuration['max.message.bytes']):,} bytes per batch"
    if configuration.get("message.timestamp.type") == "LogAppendTime":
        described += ", its records carry the broker's time"
    kept_ms = retention_ms(configuration)
    if kept_ms is not None:
        described += f", keeps them for {rough_duration(kept_ms / 1000)}"
    return described


def _health(topic: Topic, configuration: Configuration) -> Iterator[Finding]:
    leaderless = [partition.number for partition in topic.partitions if not partition.has_leader]
    if leaderless:
        yield problem(
            f"{_listed(leaderless)} of {topic.name} can't be written: no broker leads it. Start the "
            "broker that holds it",
        )
    needed = int(configuration.get("min.insync.replicas", 1))
    short = [
        partition.number
        for partition in topic.partitions
        if partition.has_leader and partition.copies_in_sync < needed
    ]
    if short:
        yield problem(
            f"{_listed(short)} of {topic.name} can't be written: fewer copies are in sync than "
            f"min.insync.replicas ({needed}) asks for. Start the brokers that hold the others",
        )


def _cleanup(
    settings: Settings, kafka: KafkaDestination, topic: Topic, configuration: Configuration
) -> Iterator[Finding]:
    if "compact" in configuration.get("cleanup.policy", ""):
        why = (
            "--kafka.keyField gives many the same"
            if kafka.key_field
            else "events of one millisecond have the same"
        )
        yield warning(
            f"{topic.name} is compacted (cleanup.policy): of the events with one key only the last is "
            f"kept, and {why}. The others are lost, and no longer recognised when the upstream repeats "
            "them. Set cleanup.policy=delete",
        )
    kept_ms = retention_ms(configuration)
    # What a restart reads back of an active topic covers less than two windows (core.readback).
    window_ms = 2000 * max(settings.window_seconds, settings.upstream.overlap_seconds)
    if kept_ms is not None and kept_ms < window_ms:
        yield warning(
            f"{topic.name} keeps its records for only {rough_duration(kept_ms / 1000)} (retention.ms). "
            f"A restart recognises repeats by those of up to {rough_duration(window_ms / 1000)} (twice "
            "--dedup.window): what is gone of them may be published a second time. Set retention.ms "
            "higher",
        )


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:MAX_LISTED]))
    more = ", …" if len(numbers) > MAX_LISTED else ""
    return f"partition{'s' if len(numbers) > 1 else ''} {shown}{more}"
