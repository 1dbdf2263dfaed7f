"""A cluster as its admin API shows it: topics, offsets, configuration, rights, stored metadata.

Law: only `create` creates anything. Questions can create things, too: for a consumer, or for a question
about a group, the broker creates the topic of all groups if that is missing; a producer that begins
transactions ends those of a running instance.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeAlias

from confluent_kafka import (
    Consumer,
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
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.offset_metadata import Stored, read_stored

log = logging.getLogger(__name__)

REQUEST_SECONDS = 5.0
"""The timeout of a request."""
TIMEOUT: Any = {"request_timeout": REQUEST_SECONDS}
RIGHTS: Any = {"include_authorized_operations": True}
GROUPS_TOPIC = "__consumer_offsets"
DEFAULT_MAX_BATCH_BYTES = 1_000_000
"""The limit if this user may not read the topic's own: a little below the broker's default."""
REFUSED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)

Configuration: TypeAlias = Mapping[str, str]


class Admin:
    """Asks the cluster about the topics and the group of one sink.

    Every method raises `KafkaException` if the cluster does not answer or refuses.
    """

    def __init__(self, client: AdminClient, settings: KafkaDestination) -> None:
        self._client = client
        self.settings = settings
        self.position_at: OutputPartition = (settings.topic, 0)
        """The output partition whose offset has the position."""

    # ---- topics ----

    def missing(self, seconds: float = REQUEST_SECONDS) -> list[NewTopic]:
        """The topics that must be created."""
        names = (self.settings.topic, self.settings.dead_letters)
        return [self.new_topic(name) for name in names if not self._partitions(name, seconds)]

    def new_topic(self, name: str) -> NewTopic:
        """A topic as it would be created."""
        partitions = self.settings.partitions if name == self.settings.topic else 1
        return NewTopic(name, partitions, self.settings.replication or -1)

    def _partitions(self, topic: str, seconds: float) -> list[OutputPartition]:
        """Those of one topic; none if it does not exist."""
        found = self._client.list_topics(topic, seconds).topics[topic]
        if found.error is None or found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return [(topic, number) for number in sorted(found.partitions)]
        raise KafkaException(found.error)

    def create(self, topics: list[NewTopic], only_validate: bool = False) -> None:
        """Create topics, unless somebody else has done so meanwhile; or only ask whether one may."""
        self._refresh()
        asked = self._client.create_topics(topics, validate_only=only_validate, **TIMEOUT)
        for name, created in asked.items():
            error = _answer(created)
            if error is None:
                log.log(
                    logging.DEBUG if only_validate else logging.INFO, "created the topic %s", name
                )
            elif error.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise KafkaException(error)

    def describe(self, names: list[str]) -> dict[str, TopicDescription | KafkaError]:
        """The topics of these names, with this user's rights, or why each can't be seen."""
        asked = self._client.describe_topics(TopicCollection(names), **RIGHTS, **TIMEOUT)
        return {name: _answer(described) for name, described in asked.items()}

    # ---- offsets ----

    def ends(
        self, seconds: float = REQUEST_SECONDS, of: Iterable[OutputPartition] | None = None
    ) -> dict[OutputPartition, int]:
        """The end offsets of partitions (None: all), uncommitted records of others included."""
        if of is None:
            # Afresh: some may have been added.
            topics = (self.settings.topic, self.settings.dead_letters)
            of = [at for topic in topics for at in self._partitions(topic, seconds)]
        return self._offsets(of, OffsetSpec.latest(), seconds)  # type: ignore[no-untyped-call]

    def starts(self, partitions: Iterable[OutputPartition]) -> dict[OutputPartition, int]:
        """The first offset that each partition still has."""
        return self._offsets(partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    def begins(
        self, partitions: Iterable[OutputPartition], since_ms: int
    ) -> dict[OutputPartition, int]:
        """The first record of each partition that is dated at or after a time, committed or not.

        Partitions without such records are left out. A consumer of committed records would find none
        behind a transaction that is still open.
        """
        found = self._offsets(partitions, OffsetSpec.for_timestamp(max(since_ms, 0)))
        return {at: offset for at, offset in found.items() if offset >= 0}

    def _offsets(
        self,
        partitions: Iterable[OutputPartition],
        spec: OffsetSpec,
        seconds: float = REQUEST_SECONDS,
    ) -> dict[OutputPartition, int]:
        asked = self._client.list_offsets(
            {TopicPartition(*at): spec for at in partitions},
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=seconds,
        )
        return {(at.topic, at.partition): answer.result().offset for at, answer in asked.items()}

    def stored(self, partitions: Iterable[OutputPartition]) -> Stored | None:
        """The stored position with what these partitions have of it; None: there is none.

        Raises:
            UnreadableCheckpoint: it is damaged, or somebody else's.
        """
        # While the group has no coordinator or moves to another one, the answer to the second question
        # crashes librdkafka (its issue 5040, open in 2.16). The answer to this one does not.
        self.group_rights()
        group = self.settings.group
        asked = self._client.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group, self._wanted(partitions))], **TIMEOUT
        )
        return self._read(asked[group].result().topic_partitions)

    def stored_stable(
        self, consumer: Consumer, partitions: Iterable[OutputPartition]
    ) -> Stored | None:
        """The same, but not while an open transaction may change it.

        The consumer of committed records asks: unlike the admin client, it follows the group to another
        coordinator.
        """
        try:
            found = consumer.committed(self._wanted(partitions), REQUEST_SECONDS)
        except KafkaException:
            # Why it finds no coordinator, for lack of a right for example, a consumer tells only here.
            for message in consumer.consume(1, 0):
                if (error := message.error()) is not None:
                    raise KafkaException(error) from None
            raise
        return self._read(found)

    def _wanted(self, partitions: Iterable[OutputPartition]) -> list[TopicPartition]:
        return [TopicPartition(*at) for at in {self.position_at, *partitions}]

    def _read(self, found: Iterable[TopicPartition]) -> Stored | None:
        metadata = {}
        for stored in found:
            if stored.error is not None:
                raise KafkaException(stored.error)
            if stored.offset >= 0 and stored.metadata:
                metadata[stored.topic, stored.partition] = stored.metadata
        if self.position_at not in metadata:
            return None
        return read_stored(metadata, self.position_at)

    # ---- configuration and rights ----

    def _refresh(self) -> None:
        """Ask who the controller is: the next request needs to know.

        A cluster that has just started may name none. librdkafka asks again after five minutes only, and
        all requests fail until then.
        """
        self._client.list_topics(self.settings.topic, REQUEST_SECONDS)

    def max_batch_bytes(self, topic: str) -> int:
        """The longest batch that a topic accepts; a guess if this user may not read it."""
        found = self.configuration(ConfigResource.Type.TOPIC, topic)
        if found is not None:
            return int(found["max.message.bytes"])
        log.info(
            "this user may not read the configuration of %s (DescribeConfigs): assuming that it "
            "accepts batches of %d bytes",
            topic,
            DEFAULT_MAX_BATCH_BYTES,
        )
        return DEFAULT_MAX_BATCH_BYTES

    def configuration(self, kind: Any, name: str) -> Configuration | None:
        """The configuration of a topic or a broker, without secrets; None: this user may not read it."""
        self._refresh()
        (asked,) = self._client.describe_configs([ConfigResource(kind, name)], **TIMEOUT).values()
        found = _answer(asked)
        if not isinstance(found, KafkaError):
            return {key: entry.value for key, entry in found.items() if entry.value is not None}
        if found.code() in REFUSED:
            return None
        raise KafkaException(found)

    def cluster(self, seconds: float) -> DescribeClusterResult:
        """The brokers of the cluster, with this user's rights."""
        asked = self._client.describe_cluster(**RIGHTS, request_timeout=seconds)
        found: DescribeClusterResult = asked.result()
        return found

    def group_rights(self) -> frozenset[str] | None:
        """The operations that this user may do with our group; None: the broker does not say."""
        group = self.settings.group
        asked = self._client.describe_consumer_groups([group], **RIGHTS, **TIMEOUT)
        return rights_in(asked[group].result())


def rights_in(description: Any) -> frozenset[str] | None:
    """Kafka's names of what this user may do, such as `READ`; None: the broker does not tell."""
    rights = description.authorized_operations
    return None if rights is None else frozenset(right.name for right in rights)


def _answer(asked: Future[Any]) -> Any:
    """A request's result, or the `KafkaError` with which it failed."""
    try:
        return asked.result()
    except KafkaException as error:
        return error.args[0]
