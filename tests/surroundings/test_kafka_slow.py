"""A slow Kafka does not hang: a commit waits while anything is delivered, and for a quota."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from pleiades.config.settings import Settings
from pleiades.runtime.errors import GenerationLost
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.base import (
    FAST_COMMIT_SECONDS,
    LEAST_COMMIT_BYTES,
    MAX_BYTES_IN_FLIGHT,
    SLOW_COMMIT_SECONDS,
    SinkContext,
)
from pleiades.sinks.kafka import retry as retries
from pleiades.sinks.kafka.clients import Clients
from pleiades.sinks.kafka.retry import Retry
from tests.integration.test_kafka import make_topic
from tests.unit.conftest import FakeChildContext, metrics, settings_of
from tests.unit.sinks.kafka.conftest import kafka_destination

__all__ = ["metrics", "settings_of"]

MakeRetry = Callable[[Clients], Retry]


@pytest.fixture
def make_retry(metrics: Metrics, settings_of: Callable[..., Settings]) -> MakeRetry:
    context = SinkContext(FakeChildContext(0), metrics, settings_of(), reached=True)
    return lambda clients: Retry(clients, context)


def set_quota(bootstrap: str, client_id: str, bytes_per_second: int) -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pleiades"
    home = os.environ.get("JAVA_HOME")
    jars = ":".join(f"{folder}/*" for folder in cache.glob("kafka-*"))
    subprocess.run(
        [
            f"{home}/bin/java" if home else "java",
            *("-XX:TieredStopAtLevel=1", "-cp", jars, "kafka.admin.ConfigCommand"),
            *("--bootstrap-server", bootstrap, "--alter"),
            *("--entity-type", "clients", "--entity-name", client_id),
            *("--add-config", f"producer_byte_rate={bytes_per_second}"),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )


def test_a_quota_is_waited_for(
    kafka: str,
    topic: str,
    make_retry: MakeRetry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The broker answers the commit after the seconds that the quota asks for, and not before."""
    make_topic(kafka, topic)
    set_quota(kafka, topic, 20_000)
    for limit in ("ANSWER_SECONDS", "STUCK_SECONDS", "FAILING_SECONDS"):
        monkeypatch.setattr(retries, limit, 0.5)
    monkeypatch.setattr(retries, "QUIET_SECONDS", 0.1)
    clients = Clients(kafka_destination(("client.id", topic), brokers=kafka))
    retry = make_retry(clients)
    producer = clients.producer(1_000_000, lambda _: None)
    producer.init_transactions(30)
    producer.begin_transaction()
    for _ in range(30):
        producer.produce(topic, os.urandom(10_000))
    while producer.flush(0.1):
        pass
    # The broker reads it once the quota is kept.
    producer.produce(topic, b"late")
    commit = partial(producer.commit_transaction, retries.SLICE_SECONDS)
    retry.commit_step(producer, commit, retry.report)
    assert clients.throttled_until > 0
    assert "slow this client down to its quota (producer_byte_rate)" in caplog.text


class Delivering:
    """A producer that delivers a message at each poll; the last ones never."""

    def __init__(self, deliverable: int, stuck: int) -> None:
        self._left, self._stuck = deliverable, stuck
        self.all_delivered = threading.Event()

    def __len__(self) -> int:
        return self._left + self._stuck

    def poll(self, _seconds: float) -> None:
        self._left = max(self._left - 1, 0)
        if not len(self):
            self.all_delivered.set()


@pytest.mark.parametrize(("stuck", "lost"), [(0, False), (3, True)])
def test_a_call_is_waited_for_as_long_as_anything_is_delivered(
    stuck: int,
    lost: bool,
    make_retry: MakeRetry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    producer: Any = Delivering(20, stuck)
    retry = make_retry(Clients(kafka_destination()))
    # A second for each look at the call.
    seconds = iter(range(1_000_000))
    monkeypatch.setattr(retries, "time", Mock(monotonic=lambda: float(next(seconds))))
    monkeypatch.setattr(retries, "SLICE_SECONDS", 0.001)

    def call() -> None:
        producer.all_delivered.wait()

    if lost:
        with pytest.raises(GenerationLost, match="did not return"):
            retry.commit_step(producer, call, lambda *_: None)
        # Or the thread would never end.
        producer.all_delivered.set()
    else:
        retry.commit_step(producer, call, lambda *_: None)


def test_commits_of_a_slow_kafka_are_small() -> None:
    """A backlog of 20 MiB would take longer than a transaction may."""
    policy = kafka_destination().commit_policy
    assert policy.max_bytes == LEAST_COMMIT_BYTES
    for _ in range(10):
        policy = policy.after(FAST_COMMIT_SECONDS / 2)
    assert policy.max_bytes == MAX_BYTES_IN_FLIGHT
    assert policy.after(SLOW_COMMIT_SECONDS) == policy
    for _ in range(10):
        policy = policy.after(SLOW_COMMIT_SECONDS + 1)
    assert policy.max_bytes == LEAST_COMMIT_BYTES
