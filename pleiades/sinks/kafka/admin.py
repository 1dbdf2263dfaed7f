"""A cluster as its admin API shows it: topics, offsets, configuration, rights, stored metadata.

Law: only `create` creates anything. Questions can create things, too: for a consumer, or for a question
about a group, the broker creates the topic of all groups if that is missing; a producer that begins
transactions ends those of a running instance.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    AdminClient,
    ConfigResource,
    DescribeClusterResult,
    NewTopic,
    OffsetSpec,
    TopicDescription,
)

from pleiades.core.readback import OutputPartition
from pleiades.sinks.kafka.destination import DEAD_LETTERS_SUFFIX, KafkaDestination
from pleiades.sinks.kafka.errors import group_of

log = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0
GROUPS_TOPIC = "__consumer_offsets"
DEFAULT_MAX_BATCH_BYTES = 1_000_000
"""The limit if this user may not read the topic's own: a little below the broker's default."""
DEFAULT_AHEAD_MS = 3_600_000
"""The same, for `message.timestamp.after.max.ms`."""
MAX_MS = 2**53
"""A longer time is no limit."""

REFUSED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)

Configuration: TypeAlias = Mapping[str, str]


class Limits(NamedTuple):
    """The limits of a topic."""

    max_batch_bytes: int
    ahead_ms: int = DEFAULT_AHEAD_MS
    """The time by which a record may be dated ahead of the broker's clock."""
    behind_ms: int | None = None
    """The time by which it may be behind; None: no limit."""


class Admin:
    """Asks the cluster about the topics and the group of one sink.

    Every method raises `KafkaException` if the cluster does not answer or refuses.
    """

    def __init__(
        self, client: AdminClient, settings: KafkaDestination, seconds: float = REQUEST_SECONDS
    ) -> None:
        self._client = client
        self._settings = settings
        self.seconds = seconds
        """The timeout of each request."""
        self._group = group_of(settings)
        self.events = settings.topic
        self.dead_letters = settings.topic + DEAD_LETTERS_SUFFIX

    # ---- topics ----

    def missing(self, seconds: float) -> list[NewTopic]:
        """The topics that must be created."""
        partitions = {self.events: self._settings.partitions, self.dead_letters: 1}
        return [
            NewTopic(name, number, self._settings.replication or -1)
            for name, number in partitions.items()
            if not self._partitions(name, seconds)
        ]

    def _partitions(self, topic: str, seconds: float) -> list[OutputPartition]:
        """Those of one topic; none if it does not exist."""
        found = self._client.list_topics(topic, seconds).topics[topic]
        if found.error is None or found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return [(topic, number) for number in sorted(found.partitions)]
        raise KafkaException(found.error)

    def create(self, topics: list[NewTopic], only_validate: bool = False) -> None:
        """Create topics, unless somebody else has done so meanwhile; or only ask whether one may."""
        created = self._client.create_topics(
            topics, validate_only=only_validate, request_timeout=self.seconds
        )
        for name, answer in created.items():
            try:
                answer.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
            else:
                log.log(
                    logging.DEBUG if only_validate else logging.INFO, "created the topic %s", name
                )

    def describe(self, names: list[str]) -> dict[str, TopicDescription | KafkaError]:
        """The topics of these names, with this user's rights, or why each can't be seen."""
        asked = self._client.describe_topics(
            TopicCollection(names),
            include_authorized_operations=True,
            request_timeout=self.seconds,
        )
        described: dict[str, TopicDescription | KafkaError] = {}
        for name, answer in asked.items():
            try:
                described[name] = answer.result()
            except KafkaException as error:
                described[name] = error.args[0]
        return described

    # ---- offsets ----

    def ends(
        self, seconds: float = REQUEST_SECONDS, of: Iterable[OutputPartition] | None = None
    ) -> dict[OutputPartition, int]:
        """The end offsets of partitions, uncommitted records of others included.

        Args:
            of: the partitions; None: all of both topics.
        """
        if of is None:
            # Afresh: some may have been added.
            of = [
                at for t in (self.events, self.dead_letters) for at in self._partitions(t, seconds)
            ]
        return self._offsets(of, OffsetSpec.latest(), seconds)  # type: ignore[no-untyped-call]

    def starts(self, partitions: Iterable[OutputPartition]) -> dict[OutputPartition, int]:
        """The first offset that each partition still has."""
        return self._offsets(partitions, OffsetSpec.earliest(), self.seconds)  # type: ignore[no-untyped-call]

    def begins(
        self, partitions: Iterable[OutputPartition], since_ms: int
    ) -> dict[OutputPartition, int]:
        """The first record of each partition that is dated at or after a time, committed or not.

        Partitions without such records are left out. A consumer of committed records would find none
        behind a transaction that is still open.
        """
        since = OffsetSpec.for_timestamp(max(since_ms, 0))
        found = self._offsets(partitions, since, self.seconds)
        return {at: offset for at, offset in found.items() if offset >= 0}

    def _offsets(
        self, partitions: Iterable[OutputPartition], spec: OffsetSpec, seconds: float
    ) -> dict[OutputPartition, int]:
        asked = self._client.list_offsets(
            {TopicPartition(*at): spec for at in partitions},
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=seconds,
        )
        return {(at.topic, at.partition): answer.result().offset for at, answer in asked.items()}

    def offset_metadata(
        self, partitions: Iterable[OutputPartition], stable: bool
    ) -> dict[OutputPartition, str]:
        """The metadata that is stored with the offsets of our group.

        Args:
            stable: refuse for now if an open transaction may change it; else it is not waited for.
        """
        wanted = [TopicPartition(*at) for at in partitions]
        asked = self._client.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(self._group, wanted)],
            require_stable=stable,
            request_timeout=self.seconds,
        )
        metadata = {}
        for stored in asked[self._group].result().topic_partitions:
            if stored.error is not None:
                raise KafkaException(stored.error)
            if stored.offset >= 0 and stored.metadata:
                metadata[stored.topic, stored.partition] = stored.metadata
        return metadata

    # ---- configuration and rights ----

    def limits(self, topic: str) -> Limits:
        """The limits of a topic; the defaults if this user may not read them."""
        found = self.configuration(ConfigResource.Type.TOPIC, topic)
        if found is None:
            log.info(
                "this user may not read the configuration of %s (DescribeConfigs): assuming that it "
                "accepts batches of %d bytes",
                topic,
                DEFAULT_MAX_BATCH_BYTES,
            )
            return Limits(DEFAULT_MAX_BATCH_BYTES)
        behind_ms = int(found.get("message.timestamp.before.max.ms", MAX_MS))
        return Limits(
            int(found["max.message.bytes"]),
            int(found.get("message.timestamp.after.max.ms", DEFAULT_AHEAD_MS)),
            behind_ms if behind_ms < MAX_MS else None,
        )

    def configuration(self, kind: Any, name: str) -> Configuration | None:
        """The configuration of a topic or a broker, without secrets; None: this user may not read it."""
        resource = ConfigResource(kind, name)
        asked = self._client.describe_configs([resource], request_timeout=self.seconds)
        try:
            entries = asked[resource].result()
        except KafkaException as error:
            if error.args[0].code() in REFUSED:
                return None
            raise
        return {key: entry.value for key, entry in entries.items() if entry.value is not None}

    def cluster(self, seconds: float) -> DescribeClusterResult:
        """The brokers of the cluster, with this user's rights."""
        found: DescribeClusterResult = self._client.describe_cluster(
            include_authorized_operations=True, request_timeout=seconds
        ).result()
        return found

    def group_rights(self) -> frozenset[str] | None:
        """The operations that this user may do with our group; None: the broker does not say."""
        asked = self._client.describe_consumer_groups(
            [self._group], include_authorized_operations=True, request_timeout=self.seconds
        )
        return rights_in(asked[self._group].result())


def rights_in(description: Any) -> frozenset[str] | None:
    """Kafka's names of what this user may do, such as `READ`; None: the broker does not tell."""
    rights = description.authorized_operations
    return None if rights is None else frozenset(right.name for right in rights)
