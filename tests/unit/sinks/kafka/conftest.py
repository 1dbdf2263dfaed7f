"""A Kafka destination for tests, without a cluster."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pleiades.config.settings import Settings
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.base import SinkContext
from pleiades.sinks.kafka.clients import Clients
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.retry import Retry
from tests.unit.conftest import FakeChildContext


@pytest.fixture
def child() -> FakeChildContext:
    child = FakeChildContext(0)
    child.ready = True
    return child


def kafka_destination(
    *properties: tuple[str, str], brokers: str = "127.0.0.1:1"
) -> KafkaDestination:
    return KafkaDestination(
        brokers=brokers,
        topic="events",
        partitions=1,
        replication=0,
        compression="zstd",
        commit_interval_seconds=0.2,
        key_field=(),
        properties=properties,
        position_name="recentchange",
    )


@pytest.fixture
def destination() -> KafkaDestination:
    properties = (("sasl.password", "hunter2"), ("security.protocol", "ssl"))
    return kafka_destination(*properties, brokers="kafka.example:9092")


@pytest.fixture
def clients(destination: KafkaDestination) -> Clients:
    return Clients(destination)


@pytest.fixture
def retry(
    clients: Clients,
    child: FakeChildContext,
    metrics: Metrics,
    settings_of: Callable[..., Settings],
) -> Retry:
    """The retries of a program that has reached the cluster."""
    context = SinkContext(child, metrics, settings_of(), reached=True)
    return Retry(clients, context)
