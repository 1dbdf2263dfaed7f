"""Answers of a cluster about the stored position."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import (
    OFFSET_INVALID,
    KafkaError,
    KafkaException,
)

from pleiades.core.checkpoint import Checkpoint
from pleiades.core.readback import Readback
from pleiades.sinks.kafka.admin import Admin
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.offset_metadata import encode

CHECKPOINT = Checkpoint({("t", 0): 100_000}, 0, 100_000)


def admin_with(
    destination: KafkaDestination, offset: int, error: KafkaError | None = None
) -> Admin:
    """Its cluster has a readable text beside this offset."""
    at = (destination.topic, 0)
    readback = Readback({at: 0}, 0, CHECKPOINT.position, CHECKPOINT.position)
    stored: Any = Mock(topic=at[0], partition=at[1], offset=offset, error=error)
    stored.metadata = encode(CHECKPOINT, readback, "ab", at)[at]
    answer: Future[Any] = Future()
    answer.set_result(Mock(topic_partitions=[stored]))
    client: Any = Mock()
    client.list_consumer_group_offsets.return_value = {destination.group: answer}
    return Admin(client, destination)


@pytest.mark.parametrize("offset", [0, 1])
def test_a_position_is_stored_beside_any_offset(destination: KafkaDestination, offset: int) -> None:
    """The first one of an empty topic is stored beside 0."""
    stored = admin_with(destination, offset).stored(())
    assert stored is not None
    assert stored.checkpoint.position == CHECKPOINT.position


@pytest.mark.parametrize("offset", [-1, OFFSET_INVALID])
def test_a_group_without_an_offset_has_no_position(
    destination: KafkaDestination, offset: int
) -> None:
    assert admin_with(destination, offset).stored(()) is None


def test_a_refusal_does_not_pass_for_a_missing_position(destination: KafkaDestination) -> None:
    refused = KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED)
    with pytest.raises(KafkaException):
        admin_with(destination, 0, refused).stored(())
