"""Looks at a cluster and its topics as the Kafka sink would find them; see `view` for what it may do.

What can't be tried without disturbing a running instance is whether this user may begin transactions
under our transactional id.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException

from pleiades.config.settings import Settings
from pleiades.core.position import UnreadableCheckpoint
from pleiades.core.readback import OutputPartition
from pleiades.core.units import iso_time, rough_duration
from pleiades.runtime.findings import Finding, note, now_ms, ok, problem, warning
from pleiades.sinks.inspection import no_position, stored_position
from pleiades.sinks.kafka.check_topics import look_at_topics, retention_ms
from pleiades.sinks.kafka.clients import TRANSACTION_TIMEOUT_MS, Clients
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.peek import may_hold_groups, reach
from pleiades.sinks.kafka.stored import MAX_METADATA_BYTES, Stored, read_stored
from pleiades.sinks.kafka.topics import DEFAULT_MAX_BATCH_BYTES, Topics
from pleiades.sinks.kafka.trouble import advice, fatal, group_of
from pleiades.sinks.kafka.view import (
    GROUPS_TOPIC,
    Cluster,
    Configuration,
    Topic,
    View,
)

RUNNING_SECONDS = 30.0
"""A position that was stored less than that ago may be a running instance's."""
MOVE_SECONDS = 3.0
"""How long is looked whether it moves."""
MOVE_POLL_SECONDS = 0.1
NOWHERE = "127.0.0.1:1"
"""Where no broker is: for clients that are made to see whether they can be."""


class Found(NamedTuple):
    """What the looks at the position need of those before."""

    events: Topic | None
    configuration: Configuration
    groups: bool | None
    """Whether our group may hold a position; None: it was not asked, for that could make something."""
    outputs: tuple[OutputPartition, ...]
    """The partitions of both topics, as far as they can be seen."""


def look(settings: Settings, kafka: KafkaDestination) -> Iterator[Finding]:
    """What a start would find.

    Raises:
        UsageError: librdkafka refuses the properties.
        Fatal: the cluster can't be reached.
    """
    _try_to_make_clients(kafka)
    clients = Clients(kafka)
    admin = clients.admin()
    view = View(admin, kafka)
    cluster = reach(clients, view)
    brokers = "1 broker" if len(cluster.broker_ids) == 1 else f"{len(cluster.broker_ids)} brokers"
    yield ok(f"Kafka at {kafka.brokers} answers: {brokers}")
    topics = Topics(admin, kafka)
    try:
        described = view.topics([topics.events, topics.dead_letters, GROUPS_TOPIC])
        groups = described.pop(GROUPS_TOPIC)
        configurations = {
            name: view.topic_configuration(name)
            for name, topic in described.items()
            if isinstance(topic, Topic)
        }
        yield from look_at_topics(settings, kafka, view, topics, described, configurations)
        yield from _transactions(kafka, cluster, view)
        events = described[topics.events]
        configuration = configurations.get(topics.events, {})
        found = Found(
            events if isinstance(events, Topic) else None,
            {} if isinstance(configuration, KafkaError) else configuration,
            may_hold_groups(events, groups),
            tuple(
                (topic.name, partition.number)
                for topic in described.values()
                if isinstance(topic, Topic)
                for partition in topic.partitions
            ),
        )
        yield from _position(settings, kafka, view, found)
    except KafkaException as error:
        raise fatal("look at the topics", error.args[0], kafka) from None


def _try_to_make_clients(kafka: KafkaDestination) -> None:
    """Properties that only the producer or the consumer refuses are refused at once, too."""
    clients = Clients(replace(kafka, brokers=NOWHERE))
    clients.producer(DEFAULT_MAX_BATCH_BYTES, lambda _: None).purge()
    clients.consumer().close()


def _transactions(kafka: KafkaDestination, cluster: Cluster, view: View) -> Iterator[Finding]:
    broker = view.broker_configuration(cluster.broker_ids[0])
    own = dict(kafka.properties).get("transaction.timeout.ms", "")
    timeout_ms = int(own) if own.isdecimal() else TRANSACTION_TIMEOUT_MS
    wanted = f"transactions of up to {timeout_ms / 1000:g} s"
    if isinstance(broker, KafkaError):
        yield note(
            f"this user may not see the brokers' settings (DescribeConfigs on the cluster): whether "
            f"{wanted} are allowed tells the start",
        )
    else:
        yield from _broker(kafka, broker, timeout_ms, wanted)
    if not cluster.may_alter:
        yield note(
            "not tried, because it would end a running instance: whether this user has Describe and "
            f"Write on the transactional id {group_of(kafka)}",
        )


def _broker(
    kafka: KafkaDestination, broker: Configuration, timeout_ms: int, wanted: str
) -> Iterator[Finding]:
    allowed_ms = int(broker.get("transaction.max.timeout.ms", timeout_ms))
    if timeout_ms > allowed_ms:
        refused = KafkaError(KafkaError.INVALID_TRANSACTION_TIMEOUT)
        yield problem(
            f"{wanted} are not allowed, at most {allowed_ms / 1000:g} s: {advice(refused, kafka)}",
        )
    else:
        yield ok(f"{wanted} are allowed (transaction.max.timeout.ms: {allowed_ms})")
    stored_bytes = int(broker.get("offset.metadata.max.bytes", MAX_METADATA_BYTES))
    if stored_bytes < MAX_METADATA_BYTES:
        yield warning(
            f"the brokers keep only {stored_bytes} bytes with an offset (offset.metadata.max.bytes): "
            f"the position of many streams needs up to {MAX_METADATA_BYTES}",
        )


# ---- the position ----


def _position(
    settings: Settings, kafka: KafkaDestination, view: View, found: Found
) -> Iterator[Finding]:
    group = f"the group {group_of(kafka)}"
    at = (kafka.topic, 0)
    texts: dict[OutputPartition, str] = {}
    if found.groups is None:
        yield note(f"whether {group} holds a position was not asked: the topic can't be seen")
        return
    if found.groups:
        rights = view.group_rights()
        refused = KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED)
        if isinstance(rights, KafkaError):
            yield problem(str(fatal(f"see {group}", rights, kafka)))
            return
        if rights is not None and "READ" not in rights:
            yield problem(str(fatal(f"commit as {group}", refused, kafka)))
        answer = view.texts({at, *found.outputs})
        if isinstance(answer, KafkaError):
            yield problem(str(fatal(f"read the position of {group}", answer, kafka)))
            return
        texts = answer
    try:
        stored = read_stored(texts, at) if at in texts else None
    except UnreadableCheckpoint as error:
        yield warning(
            f"the position stored as {group} is unusable ({error}): a start looks for it in the "
            "topic",
        )
        stored = None
    if stored is None:
        yield from _without_position(settings, kafka, view, found)
        return
    checkpoint = stored.checkpoint
    yield from stored_position(settings, checkpoint, checkpoint.clock_ms, f"as {group}")
    yield from _read_back(kafka, view, found, stored)
    if now_ms() - checkpoint.clock_ms < RUNNING_SECONDS * 1000:
        yield _running(view, texts[at])


def _without_position(
    settings: Settings, kafka: KafkaDestination, view: View, found: Found
) -> Iterator[Finding]:
    records: int | KafkaError = 0
    if found.events is not None:
        records = view.records(found.events, None)
    if isinstance(records, KafkaError):
        yield _unreachable(kafka, records)
        records = 0
    if records and settings.resume:
        yield note(
            f"no position is stored as the group {group_of(kafka)}, but the topic holds about "
            f"{records:,} records: a start goes on after the last ones, as far as their ids tell; else "
            "it begins at --since",
        )
    else:
        yield from no_position(settings, f"as the group {group_of(kafka)}")


def _read_back(
    kafka: KafkaDestination, view: View, found: Found, stored: Stored
) -> Iterator[Finding]:
    if found.events is None:
        return
    since_ms = stored.since_ms
    records = _to_read(view, found.events, found.outputs, stored)
    if isinstance(records, KafkaError):
        yield _unreachable(kafka, records)
        return
    age_ms = now_ms() - since_ms
    yield ok(
        f"to recognise repeats a start reads about {records:,} records of the topic back, the oldest "
        f"from {iso_time(since_ms)}",
    )
    kept_ms = retention_ms(found.configuration)
    if kept_ms is not None and age_ms > kept_ms:
        yield warning(
            f"that is {rough_duration(age_ms / 1000)} ago, but the topic keeps its records for only "
            f"{rough_duration(kept_ms / 1000)} (retention.ms): what is gone of them may be published a "
            "second time",
        )


def _to_read(
    view: View, events: Topic, outputs: tuple[OutputPartition, ...], stored: Stored
) -> int | KafkaError:
    if stored.readback is None:
        # Of the version before.
        return view.records(events, stored.since_ms)
    ends = view.ends(outputs)
    if isinstance(ends, KafkaError):
        return ends
    return sum(
        max(end - part.begin.get(at, 0), 0)
        for part in stored.readback.parts(ends)
        for at, end in part.end.items()
    )


def _unreachable(kafka: KafkaDestination, error: KafkaError) -> Finding:
    return problem(
        f"{fatal('ask the brokers that hold the topic', error, kafka)}. Also check the brokers' "
        "advertised.listeners: their addresses must be reachable from here, each of them",
    )


def _running(view: View, metadata: str) -> Finding:
    """Whether the position moves, and so somebody publishes."""
    deadline = time.monotonic() + MOVE_SECONDS
    while time.monotonic() < deadline:
        later = view.metadata()
        if not isinstance(later, KafkaError) and later != metadata:
            return note(
                "an instance is running, its position moves: a start would end it and go on in its "
                "place. Nothing is lost by that, but two at once are of no use",
            )
        time.sleep(MOVE_POLL_SECONDS)
    return note(
        "an instance may be running, with nothing to publish at the moment: a start would end it and "
        "go on in its place. Nothing is lost by that, but two at once are of no use",
    )
