"""What a cluster says of itself, its topics and our group to one who changes nothing.

Law: nothing is made. Not all that only asks is harmless: a consumer, and whoever asks for a group, has
the broker make the topic of all groups where that is missing; a producer that begins transactions ends
those of a running instance. So here is neither consumer nor producer, and a group is asked for only
where there can be one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeAlias, TypeVar

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
    NewTopic,
    OffsetSpec,
)

from pleiades.core.readback import OutputPartition
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.trouble import group_of

REQUEST_SECONDS = 3.0
GROUPS_TOPIC = "__consumer_offsets"

T = TypeVar("T")
Configuration: TypeAlias = Mapping[str, str]


class Cluster(NamedTuple):
    """Who answers."""

    broker_ids: tuple[int, ...]
    may_alter: bool
    """This user has rights that only an administrator has, or there are no rights to be had."""


class Partition(NamedTuple):
    """One of a topic's."""

    number: int
    has_leader: bool
    copies: int
    copies_in_sync: int


class Topic(NamedTuple):
    """One that is there."""

    name: str
    partitions: tuple[Partition, ...]
    rights: frozenset[str] | None
    """Kafka's names of what this user may do with it, `READ`; None: the broker does not tell."""


class View:
    """Asks. An error of the answer is a value; one of asking is raised as `KafkaException`."""

    def __init__(self, admin: AdminClient, settings: KafkaDestination) -> None:
        self._admin = admin
        self._settings = settings

    def cluster(self, timeout_seconds: float) -> Cluster:
        """Which brokers there are.

        Raises:
            KafkaException: nobody answers.
        """
        found = self._admin.describe_cluster(
            include_authorized_operations=True, request_timeout=timeout_seconds
        ).result()
        rights = _rights(found) or ()
        return Cluster(tuple(node.id for node in found.nodes), "ALTER" in rights)

    def topics(self, names: Iterable[str]) -> dict[str, Topic | KafkaError]:
        """What is there under these names."""
        asked = self._admin.describe_topics(
            TopicCollection(list(names)),
            include_authorized_operations=True,
            request_timeout=REQUEST_SECONDS,
        )
        answers = {name: _answer(future) for name, future in asked.items()}
        return {
            name: found if isinstance(found, KafkaError) else _topic(found)
            for name, found in answers.items()
        }

    def topic_configuration(self, name: str) -> Configuration | KafkaError:
        """How a topic is set up."""
        return self._configuration(ConfigResource(ConfigResource.Type.TOPIC, name))

    def broker_configuration(self, broker_id: int) -> Configuration | KafkaError:
        """How a broker is set up."""
        return self._configuration(ConfigResource(ConfigResource.Type.BROKER, str(broker_id)))

    def _configuration(self, resource: ConfigResource) -> Configuration | KafkaError:
        asked = self._admin.describe_configs([resource], request_timeout=REQUEST_SECONDS)
        found: Any = _answer(asked[resource])
        if isinstance(found, KafkaError):
            return found
        # Secret ones have no value.
        return {name: entry.value for name, entry in found.items() if entry.value is not None}

    def creation(self, topic: NewTopic) -> KafkaError | None:
        """Why a topic could not be made; it is not made in any case."""
        asked = self._admin.create_topics(
            [topic], validate_only=True, request_timeout=REQUEST_SECONDS
        )
        error: KafkaError | None = _answer(asked[topic.topic])
        return error

    def group_rights(self) -> frozenset[str] | KafkaError | None:
        """What this user may do with our group; None: the broker does not tell."""
        group = group_of(self._settings)
        asked = self._admin.describe_consumer_groups(
            [group], include_authorized_operations=True, request_timeout=REQUEST_SECONDS
        )
        found = _answer(asked[group])
        return found if isinstance(found, KafkaError) else _rights(found)

    def metadata(self) -> str | KafkaError:
        """The position of our group; empty if there is none."""
        at = (self._settings.topic, 0)
        found = self.texts([at])
        return found if isinstance(found, KafkaError) else found.get(at, "")

    def texts(
        self, partitions: Iterable[OutputPartition]
    ) -> dict[OutputPartition, str] | KafkaError:
        """What is stored with the offsets of our group.

        Also while a transaction is open that would change it: what a consumer is told then is to wait.
        """
        group = group_of(self._settings)
        wanted = [TopicPartition(*at) for at in partitions]
        asked = self._admin.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group, wanted)],
            require_stable=False,
            request_timeout=REQUEST_SECONDS,
        )
        found = _answer(asked[group])
        if isinstance(found, KafkaError):
            return found
        texts = {}
        for stored in found.topic_partitions:
            if stored.error is not None:
                return KafkaError(stored.error.code())
            if stored.offset >= 0 and stored.metadata:
                texts[stored.topic, stored.partition] = stored.metadata
        return texts

    def ends(
        self, partitions: Iterable[OutputPartition]
    ) -> dict[OutputPartition, int] | KafkaError:
        """Where partitions end."""
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        return self._offsets(partitions, latest)

    def records(self, topic: Topic, since_ms: int | None) -> int | KafkaError:
        """About how many records a topic has: all, or those from a time on.

        Every partition's leader answers by itself: that they can be reached is known then.
        """
        partitions = [(topic.name, partition.number) for partition in topic.partitions]
        first: Any = (
            OffsetSpec.earliest()  # type: ignore[no-untyped-call]
            if since_ms is None
            else OffsetSpec.for_timestamp(max(since_ms, 0))
        )
        begins, ends = self._offsets(partitions, first), self.ends(partitions)
        if isinstance(begins, KafkaError):
            return begins
        if isinstance(ends, KafkaError):
            return ends
        # No record from that time on has no offset: -1.
        return sum(max(ends[at] - begins[at], 0) for at in partitions if begins[at] >= 0)

    def _offsets(
        self, partitions: Iterable[OutputPartition], spec: Any
    ) -> dict[OutputPartition, int] | KafkaError:
        asked = self._admin.list_offsets(
            {TopicPartition(*at): spec for at in partitions},
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=REQUEST_SECONDS,
        )
        offsets = {}
        for at, future in asked.items():
            found = _answer(future)
            if isinstance(found, KafkaError):
                return found
            offsets[at.topic, at.partition] = found.offset
        return offsets


def _answer(future: Future[Any]) -> Any:
    """What is in a future of the admin client: a value or the broker's error."""
    try:
        return future.result()
    except KafkaException as error:
        return error.args[0]


def _topic(found: Any) -> Topic:
    return Topic(
        found.name,
        tuple(
            Partition(
                partition.id,
                partition.leader is not None and partition.leader.id >= 0,
                len(partition.replicas),
                len(partition.isr),
            )
            for partition in found.partitions
        ),
        _rights(found),
    )


def _rights(found: Any) -> frozenset[str] | None:
    rights = found.authorized_operations
    return None if rights is None else frozenset(right.name for right in rights)
