"""The topic and its dead letters: what is there, made where it is missing, and what it takes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
)

from pleiades.runtime.errors import Fatal
from pleiades.sinks.kafka.destination import DEAD_LETTERS_SUFFIX, KafkaDestination
from pleiades.sinks.kafka.trouble import advice, said

log = logging.getLogger(__name__)

Partition: TypeAlias = tuple[str, int]

REQUEST_SECONDS = 5.0
DEFAULT_MAX_BATCH_BYTES = 1_000_000
"""Of a topic that may not be asked for its own limit: a little below the broker's default."""
DEFAULT_AHEAD_MS = 3_600_000
"""Of one that may not be asked: the broker's default for `message.timestamp.after.max.ms`."""
MAX_MS = 2**53
"""What is more is no limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a topic takes."""

    max_batch_bytes: int
    ahead_ms: int = DEFAULT_AHEAD_MS
    """How far a record's time may be ahead of the broker's clock."""
    behind_ms: int | None = None
    """How far behind; None: as far as you like."""


class Topics:
    """The two topics of a sink, through the admin client."""

    def __init__(self, admin: AdminClient, settings: KafkaDestination) -> None:
        self._admin = admin
        self._settings = settings
        self.events = settings.topic
        self.dead_letters = settings.topic + DEAD_LETTERS_SUFFIX

    def missing(self, timeout_seconds: float) -> list[NewTopic]:
        """Which of the two must be made.

        Raises:
            KafkaException: the cluster can't be reached, or does not let this user see a topic.
        """
        replication = self._settings.replication or -1
        return [
            NewTopic(name, partitions, replication)
            for name, partitions in (
                (self.events, self._settings.partitions),
                (self.dead_letters, 1),
            )
            if not self._exists(name, timeout_seconds)
        ]

    def _exists(self, topic: str, timeout_seconds: float) -> bool:
        found = self._admin.list_topics(topic, timeout_seconds).topics[topic]
        if found.error is None:
            return True
        if found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return False
        raise KafkaException(found.error)

    def make(self, topics: list[NewTopic]) -> None:
        """Make them; one that somebody else made meanwhile is as good.

        Raises:
            KafkaException: it can't be done now, or this user may not.
            Fatal: the cluster can't make such a topic.
        """
        pending = self._admin.create_topics(topics, request_timeout=REQUEST_SECONDS)
        for name, made in pending.items():
            try:
                made.result()
            except KafkaException as error:
                self._not_made(name, error.args[0])
            else:
                log.info("made the topic %s", name)

    def _not_made(self, name: str, error: KafkaError) -> None:
        if error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            return
        if error.code() in (
            KafkaError.INVALID_REPLICATION_FACTOR,
            KafkaError.INVALID_PARTITIONS,
            KafkaError.TOPIC_EXCEPTION,
            KafkaError.POLICY_VIOLATION,
            KafkaError.INVALID_CONFIG,
        ):
            raise Fatal(
                f"can't make the topic {name}: {said(error, self._settings)}. Nothing was published; "
                "look at --kafka.partitions and --kafka.replication, or make the topic yourself"
            )
        raise KafkaException(error)

    def partitions(self, timeout_seconds: float = REQUEST_SECONDS) -> dict[str, list[int]]:
        """The partitions of both topics.

        Raises:
            KafkaException: they can't be seen now.
        """
        found = {}
        for topic in (self.events, self.dead_letters):
            described = self._admin.list_topics(topic, timeout_seconds).topics[topic]
            if described.error is not None:
                raise KafkaException(described.error)
            found[topic] = sorted(described.partitions)
        return found

    def ends(self, timeout_seconds: float = REQUEST_SECONDS) -> dict[Partition, int]:
        """Where each partition ends now, also behind what other transactions have not committed.

        Raises:
            KafkaException: they can't be asked now.
        """
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # untyped in the library
        # The partitions afresh: some may have been added since.
        partitions = self.partitions(timeout_seconds)
        return self._offsets(
            ((topic, number) for topic, numbers in partitions.items() for number in numbers),
            latest,
            timeout_seconds,
        )

    def starts(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The first offset that each partition still has.

        Raises:
            KafkaException: they can't be asked now.
        """
        earliest = OffsetSpec.earliest()  # type: ignore[no-untyped-call]  # untyped in the library
        return self._offsets(partitions, earliest)

    def begins(self, partitions: Iterable[Partition], since_ms: int) -> dict[Partition, int]:
        """The first record of each partition that is dated at or after a time, committed or not; nothing
        of those that have none.

        A consumer of committed records must not be asked: it finds none where another transaction is
        still open before it.

        Raises:
            KafkaException: they can't be asked now.
        """
        since = OffsetSpec.for_timestamp(max(since_ms, 0))
        found = self._offsets(partitions, since)
        return {at: offset for at, offset in found.items() if offset >= 0}

    def _offsets(
        self,
        partitions: Iterable[Partition],
        wanted: OffsetSpec,
        timeout_seconds: float = REQUEST_SECONDS,
    ) -> dict[Partition, int]:
        answers = self._admin.list_offsets(
            {TopicPartition(*at): wanted for at in partitions},
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=timeout_seconds,
        )
        return {(at.topic, at.partition): answer.result().offset for at, answer in answers.items()}

    def limits(self, topic: str) -> Limits:
        """What a topic takes; the usual limits where it may not be asked.

        Raises:
            KafkaException: it can't be asked now.
        """
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        answer = self._admin.describe_configs([resource], request_timeout=REQUEST_SECONDS)
        try:
            entries = answer[resource].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise
            log.info(
                "this user may not see the configuration of %s (DescribeConfigs): assuming that "
                "it takes %d bytes at once",
                topic,
                DEFAULT_MAX_BATCH_BYTES,
            )
            return Limits(DEFAULT_MAX_BATCH_BYTES)
        values = {name: entry.value for name, entry in entries.items()}
        return Limits(
            int(values["max.message.bytes"]),
            int(values.get("message.timestamp.after.max.ms", DEFAULT_AHEAD_MS)),
            _bounded(int(values.get("message.timestamp.before.max.ms", MAX_MS))),
        )


def _bounded(behind_ms: int) -> int | None:
    return behind_ms if behind_ms < MAX_MS else None


def hint(error: KafkaError, settings: KafkaDestination) -> str:
    """An error with what to look at, for a report."""
    advised = advice(error, settings)
    return said(error, settings) + (f": {advised}" if advised else "")
