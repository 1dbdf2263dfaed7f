"""Answers of a cluster about the stored position."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, cast
from unittest.mock import Mock

import pytest
from confluent_kafka import (
    OFFSET_INVALID,
    KafkaError,
    KafkaException,
    TopicPartition,
)

from pleiades.core.checkpoint import Checkpoint
from pleiades.core.readback import Readback
from pleiades.sinks.kafka.admin import Admin
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.offset_metadata import Stored, encode

CHECKPOINT = Checkpoint({("t", 0): 100_000}, 0, 100_000)


def offset_of(
    destination: KafkaDestination, offset: int, error: KafkaError | None = None
) -> TopicPartition:
    """An offset with a readable text beside it."""
    at = (destination.topic, 0)
    readback = Readback({at: 0}, 0, CHECKPOINT.position, CHECKPOINT.position)
    text = encode(CHECKPOINT, readback, "ab", at)[at]
    return cast(
        "TopicPartition", Mock(topic=at[0], partition=0, offset=offset, metadata=text, error=error)
    )


def result(of: Any) -> Future[Any]:
    answer: Future[Any] = Future()
    if isinstance(of, Exception):
        answer.set_exception(of)
    else:
        answer.set_result(of)
    return answer


class Cluster:
    """Answers the admin client and the consumer alike."""

    def __init__(self, destination: KafkaDestination, stored: TopicPartition) -> None:
        group = destination.group
        self.client: Any = Mock()
        self.client.describe_consumer_groups.return_value = {
            group: result(Mock(authorized_operations=None))
        }
        offsets = {group: result(Mock(topic_partitions=[stored]))}
        self.client.list_consumer_group_offsets.return_value = offsets
        self.consumer: Any = Mock()
        self.consumer.committed.return_value = [stored]
        self.admin = Admin(self.client, destination)

    def ask(self, who: str) -> Stored | None:
        if who == "admin":
            return self.admin.stored(())
        return self.admin.stored_stable(self.consumer, ())


either = pytest.mark.parametrize("who", ["admin", "consumer"])


@either
@pytest.mark.parametrize("offset", [0, 1])
def test_a_position_is_stored_beside_any_offset(
    destination: KafkaDestination, offset: int, who: str
) -> None:
    """The first one of an empty topic is stored beside 0."""
    stored = Cluster(destination, offset_of(destination, offset)).ask(who)
    assert stored is not None
    assert stored.checkpoint.position == CHECKPOINT.position


@either
@pytest.mark.parametrize("offset", [-1, OFFSET_INVALID])
def test_a_group_without_an_offset_has_no_position(
    destination: KafkaDestination, offset: int, who: str
) -> None:
    assert Cluster(destination, offset_of(destination, offset)).ask(who) is None


@either
def test_a_refusal_does_not_pass_for_a_missing_position(
    destination: KafkaDestination, who: str
) -> None:
    refused = offset_of(destination, 0, KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED))
    with pytest.raises(KafkaException):
        Cluster(destination, refused).ask(who)


def test_the_question_that_may_crash_is_not_asked_without_a_coordinator(
    destination: KafkaDestination,
) -> None:
    cluster = Cluster(destination, offset_of(destination, 0))
    refused = KafkaException(KafkaError(KafkaError.NOT_COORDINATOR))
    cluster.client.describe_consumer_groups.return_value = {destination.group: result(refused)}
    with pytest.raises(KafkaException, match="NOT_COORDINATOR"):
        cluster.ask("admin")
    cluster.client.list_consumer_group_offsets.assert_not_called()


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ([], KafkaError._TIMED_OUT),
        ([None], KafkaError._TIMED_OUT),
        ([KafkaError.GROUP_AUTHORIZATION_FAILED], KafkaError.GROUP_AUTHORIZATION_FAILED),
    ],
)
def test_a_consumer_tells_why_it_finds_no_coordinator(
    destination: KafkaDestination, told: list[int | None], code: int
) -> None:
    cluster = Cluster(destination, offset_of(destination, 0))
    cluster.consumer.committed.side_effect = KafkaException(KafkaError(KafkaError._TIMED_OUT))
    errors = [None if each is None else KafkaError(each) for each in told]
    cluster.consumer.consume.return_value = [
        Mock(error=lambda error=error: error) for error in errors
    ]
    with pytest.raises(KafkaException) as raised:
        cluster.ask("consumer")
    assert raised.value.args[0].code() == code


class Starting:
    """A cluster that names no controller until it is asked for its metadata once more."""

    def __init__(self) -> None:
        self.asked = 0

    def list_topics(self, _topic: str, _seconds: float) -> None:
        self.asked += 1

    def _answer(self, of: Any) -> Future[Any]:
        timed_out = KafkaError(KafkaError._TIMED_OUT, "Failed while waiting for controller")
        return result(of if self.asked > 1 else KafkaException(timed_out))

    def describe_configs(self, asked: list[Any], **_: Any) -> dict[Any, Future[Any]]:
        return {asked[0]: self._answer({"max.message.bytes": Mock(value="7")})}

    def create_topics(self, topics: list[Any], **_: Any) -> dict[str, Future[Any]]:
        return {topic.topic: self._answer(None) for topic in topics}


@pytest.mark.parametrize("request_name", ["configuration", "create"])
def test_a_controller_that_was_not_known_is_asked_for_again(
    destination: KafkaDestination, request_name: str
) -> None:
    """librdkafka does so after five minutes only."""
    admin = Admin(cast("Any", Starting()), destination)
    ask: Any = {
        "configuration": lambda: admin.max_batch_bytes(destination.topic),
        "create": lambda: admin.create([admin.new_topic(destination.topic)]),
    }[request_name]
    with pytest.raises(KafkaException, match="controller"):
        ask()
    assert ask() in (7, None)
