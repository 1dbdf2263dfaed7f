"""Looks at a cluster and the stored position as a start would find them; changes nothing.

One thing can't be tried without disturbing a running instance: whether this user may begin transactions
under our transactional id.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    ConfigResource,
    DescribeClusterResult,
    TopicDescription,
)

from pleiades.config.settings import Settings
from pleiades.core.checkpoint import Checkpoint, UnreadableCheckpoint
from pleiades.core.readback import OutputPartition
from pleiades.core.units import iso_time, plural, rough_duration
from pleiades.runtime.findings import Finding, note, now_ms, ok, problem, warning
from pleiades.sinks.inspection import no_position, stored_position
from pleiades.sinks.kafka.admin import (
    DEFAULT_MAX_BATCH_BYTES,
    GROUPS_TOPIC,
    Admin,
    Configuration,
    rights_in,
)
from pleiades.sinks.kafka.clients import TRANSACTION_TIMEOUT_MS, Clients
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.errors import Kind, advice, fatal, kind_of
from pleiades.sinks.kafka.inspect_clock import inspect_clock
from pleiades.sinks.kafka.inspect_topics import inspect_topics, refused, retention_ms
from pleiades.sinks.kafka.offset_metadata import MAX_METADATA_BYTES, Stored
from pleiades.sinks.kafka.retry import CONNECT_SECONDS, REACH_SECONDS, check_first_start

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 0.2
RUNNING_SECONDS = 30.0
"""A younger position may be that of a running instance."""
MOVE_SECONDS = 3.0
"""The longest wait for the position to move."""
MOVE_POLL_SECONDS = 0.1
NOWHERE = "127.0.0.1:1"
"""No broker is there: for clients that only check their properties."""


def inspect(settings: Settings, kafka: KafkaDestination) -> Iterator[Finding]:
    """Everything that a start would find.

    Raises:
        UsageError: librdkafka refuses the properties.
        Fatal: the cluster can't be reached.
    """
    # The producer and the consumer refuse properties that the admin client does not know.
    unused = Clients(replace(kafka, brokers=NOWHERE))
    unused.producer(DEFAULT_MAX_BATCH_BYTES, lambda _: None).purge()
    unused.consumer().close()
    admin, cluster = _reach(kafka)
    yield ok(f"Kafka at {kafka.brokers} answers: {plural(len(cluster.nodes), 'broker')}")
    try:
        topics = admin.describe([kafka.topic, kafka.dead_letters, GROUPS_TOPIC])
        may_ask = may_hold_groups(topics[kafka.topic], topics.pop(GROUPS_TOPIC))
        seen = [topic for topic in topics.values() if not isinstance(topic, KafkaError)]
        configurations = {
            topic.name: admin.configuration(ConfigResource.Type.TOPIC, topic.name) for topic in seen
        }
        yield from inspect_topics(settings, admin, topics, configurations)
        yield from inspect_clock(Clients(kafka), seen, configurations)
        yield from inspect_transactions(admin, cluster)
        topic = configurations.get(kafka.topic) or {}
        yield from inspect_position(settings, admin, seen, topic, may_ask)
    except KafkaException as error:
        raise fatal("inspect the topics", error.args[0], kafka) from None


def stored_checkpoint(kafka: KafkaDestination) -> Checkpoint | None:
    """The position that an earlier run left; None: there is none, or it is unreadable.

    Raises:
        Fatal: the cluster can't be asked.
    """
    admin, _ = _reach(kafka)
    stored = None
    try:
        topics = admin.describe([kafka.topic, GROUPS_TOPIC])
        if may_hold_groups(topics[kafka.topic], topics[GROUPS_TOPIC]):
            stored = admin.stored(())
    except KafkaException as error:
        operation = f"read the position of the group {kafka.group}"
        raise fatal(operation, error.args[0], kafka) from None
    except UnreadableCheckpoint as error:
        log.warning(
            "the position stored as the group %s is unusable (%s): beginning again. Events that the "
            "topic already has come twice, unless with --skipExisting",
            kafka.group,
            error,
        )
    return stored and stored.checkpoint


def _reach(kafka: KafkaDestination) -> tuple[Admin, DescribeClusterResult]:
    """Wait for an answer, as long as a first start does.

    Raises:
        Fatal: no broker answers, or it refuses this user.
    """
    clients = Clients(kafka)
    admin = Admin(clients.admin(), kafka)
    give_up = partial(check_first_start, clients, f"reach Kafka at {kafka.brokers}")
    return admin, _ask(lambda: admin.cluster(REACH_SECONDS), give_up)


def _ask(request: Callable[[], T], give_up: Callable[[KafkaError, float], None]) -> T:
    """Repeat a request until it is answered or `give_up`, which knows error and deadline, raises."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            return request()
        except KafkaException as error:
            give_up(error.args[0], deadline)
        time.sleep(RETRY_SECONDS)


def _raise_unless_transient(error: KafkaError, deadline: float) -> None:
    if kind_of(error) is not Kind.TRANSIENT or time.monotonic() >= deadline:
        raise KafkaException(error)


def may_hold_groups(
    events: TopicDescription | KafkaError, groups: TopicDescription | KafkaError
) -> bool | None:
    """True if our group may hold a position; None: unknown, and a request could create something."""
    if not isinstance(groups, KafkaError):
        return True
    refusals = [answer.code() for answer in (events, groups) if isinstance(answer, KafkaError)]
    if KafkaError.UNKNOWN_TOPIC_OR_PART in refusals:
        # Kafka forgets the offsets of a deleted topic.
        return False
    # This user may not see the topic of all groups. It exists if ours does.
    return None if isinstance(events, KafkaError) else True


def inspect_transactions(admin: Admin, cluster: DescribeClusterResult) -> Iterator[Finding]:
    """Check that the brokers allow our transactions and keep our position."""
    kafka = admin.settings
    own = dict(kafka.properties).get("transaction.timeout.ms", "")
    timeout_ms = int(own) if own.isdecimal() else TRANSACTION_TIMEOUT_MS
    wanted = f"transactions of up to {timeout_ms / 1000:g} s"
    broker = admin.configuration(ConfigResource.Type.BROKER, str(cluster.nodes[0].id))
    if broker is None:
        yield note(
            "this user may not read the brokers' configuration (DescribeConfigs on the cluster): only a "
            f"start will tell whether they allow {wanted}"
        )
    else:
        allowed_ms = int(broker.get("transaction.max.timeout.ms", timeout_ms))
        if timeout_ms <= allowed_ms:
            yield ok(f"the brokers allow {wanted} (transaction.max.timeout.ms: {allowed_ms})")
        else:
            hint = advice(KafkaError(KafkaError.INVALID_TRANSACTION_TIMEOUT), kafka)
            allowed = f"at most {allowed_ms / 1000:g} s: {hint}"
            yield problem(f"the brokers do not allow {wanted}, {allowed}")
        stored_bytes = int(broker.get("offset.metadata.max.bytes", MAX_METADATA_BYTES))
        if stored_bytes < MAX_METADATA_BYTES:
            yield warning(
                f"the brokers keep only {stored_bytes} bytes with an offset "
                "(offset.metadata.max.bytes): the position of many streams needs up to "
                f"{MAX_METADATA_BYTES}"
            )
    if "ALTER" not in (rights_in(cluster) or ()):
        yield note(
            "not tried, because it would end a running instance: whether this user has Describe and "
            f"Write on the transactional id {kafka.group}"
        )


# ---- the position ----


def inspect_position(
    settings: Settings,
    admin: Admin,
    topics: list[TopicDescription],
    topic: Configuration,
    may_ask: bool | None,
) -> Iterator[Finding]:
    """Yield the findings about where a start would resume, and how much it would read back.

    Args:
        topics: those of the sink that this user may see; `topic`: the configuration of the first.
        may_ask: see `may_hold_groups`.
    """
    kafka, group = admin.settings, f"the group {admin.settings.group}"
    outputs = [(topic.name, partition.id) for topic in topics for partition in topic.partitions]
    if may_ask is None:
        yield note(f"did not ask whether {group} holds a position: this user can't see the topic")
        return
    operation, stored, records = f"see {group}", None, 0
    try:
        if may_ask:
            # A coordinator that has just been chosen does not answer at once; a start waits for it, too.
            rights = _ask(admin.group_rights, _raise_unless_transient)
            if rights is not None and "READ" not in rights:
                yield refused(f"commit as {group}", KafkaError.GROUP_AUTHORIZATION_FAILED, kafka)
            operation = f"read the position of {group}"
            stored = admin.stored(outputs)
    except KafkaException as error:
        yield refused(operation, error.args[0], kafka)
        return
    except UnreadableCheckpoint as error:
        yield warning(
            f"the position stored as {group} is unusable ({error}): a start looks for it in the topic"
        )
    if stored is not None:
        clock_ms = stored.checkpoint.clock_ms
        yield from stored_position(settings, stored.checkpoint, clock_ms, f"as {group}")
    if admin.position_at in outputs:
        records = yield from _inspect_records(admin, stored, outputs, topic)
    if stored is not None:
        if now_ms() - stored.checkpoint.clock_ms < RUNNING_SECONDS * 1000:
            yield _running(admin, stored.checkpoint)
    elif records and settings.resume:
        yield note(
            f"no position is stored as {group}, but the topic holds about {records:,} records: a start "
            "goes on after the last ones, as far as their ids tell; otherwise it begins at --since"
        )
    else:
        yield from no_position(settings, f"as {group}")


def _inspect_records(
    admin: Admin, stored: Stored | None, outputs: list[OutputPartition], topic: Configuration
) -> Generator[Finding, None, int]:
    """Returns about how many records a start reads, or could read where no position is stored."""
    try:
        # The leader of each partition answers for itself: this shows that all can be reached.
        ends = admin.ends(of=outputs)
        if stored is not None:
            parts = stored.readback.parts(ends)
            read = [(part.begin.get(at, 0), end) for part in parts for at, end in part.end.items()]
        else:
            events = [output for output in outputs if output[0] == admin.settings.topic]
            read = [(begin, ends[at]) for at, begin in admin.starts(events).items()]
    except KafkaException as error:
        failure = fatal("ask the brokers that hold the topic", error.args[0], admin.settings)
        yield problem(
            f"{failure}. Also check the brokers' advertised.listeners: each of their addresses must be "
            "reachable from here"
        )
        return 0
    records = sum(max(end - begin, 0) for begin, end in read)
    if stored is None and not records and any(ends.values()):
        yield warning(
            f"no position is stored as the group {admin.settings.group}, and the records of the topic "
            "have been deleted: nothing tells where to go on. If a relay ran before, start once with "
            "--resume=false --since=TIME, the time at which it stopped: otherwise the events since then "
            "are missing"
        )
    if stored is not None:
        since_ms = stored.readback.oldest_ms
        yield ok(
            f"to recognise repeats a start reads about {records:,} records of the topic back, the "
            f"oldest from {iso_time(since_ms)}"
        )
        kept_ms, age_ms = retention_ms(topic), now_ms() - since_ms
        if kept_ms is not None and age_ms > kept_ms:
            yield warning(
                f"that is {rough_duration(age_ms / 1000)} ago, but the topic keeps its records for only "
                f"{rough_duration(kept_ms / 1000)} (retention.ms): events of deleted records may be "
                "published a second time"
            )
    return records


def _running(admin: Admin, before: Checkpoint) -> Finding:
    """The finding about another instance: it publishes if the position moves."""
    instance = "an instance may be running, with nothing to publish at the moment"
    deadline = time.monotonic() + MOVE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(KafkaException, UnreadableCheckpoint):
            stored = admin.stored(())
            if stored is None or stored.checkpoint != before:
                instance = "an instance is running, its position moves"
                break
        time.sleep(MOVE_POLL_SECONDS)
    return note(
        f"{instance}: a start would end it and go on in its place. Nothing is lost by that, but two "
        "instances at once are of no use"
    )
