"""The sink's metrics."""

from __future__ import annotations

import orjson
import pytest
from prometheus_client import CollectorRegistry

from pleiades.runtime.metric_store import collected
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.kafka.metrics import KafkaMetrics


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_times_of_transactions(metrics: Metrics) -> None:
    said = KafkaMetrics(metrics)
    for _ in range(2):
        with said.writing():
            pass
        with said.committing():
            pass
    registry = collected()
    assert sample(registry, "pleiades_kafka_publish_writes_total") == 2
    for name in ("write", "wait"):
        least, most, mean = (
            sample(registry, f"pleiades_kafka_publish_{name}_time_seconds", agg=agg)
            for agg in ("min", "max", "avg")
        )
        assert least is not None
        assert most is not None
        assert mean is not None
        assert least <= mean <= most


def test_a_commit_that_fails_is_none(metrics: Metrics) -> None:
    said = KafkaMetrics(metrics)

    def fails() -> None:
        with said.committing():
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fails()
    assert sample(collected(), "pleiades_kafka_publish_writes_total") == 0


def test_librdkafkas_figures(metrics: Metrics) -> None:
    said = KafkaMetrics(metrics)
    broker = {"nodeid": 7, "rtt": {"p50": 1500, "p99": 9000}, "txerrs": 2, "disconnects": 1}
    bootstrap = {"nodeid": -1, "txerrs": 99}
    figures = {"msg_cnt": 5, "msg_size": 500, "brokers": {"a": broker, "b": bootstrap}}
    said.statistics(orjson.dumps(figures).decode())
    broker["txerrs"] = 5
    said.statistics(orjson.dumps(figures).decode())
    registry = collected()
    assert sample(registry, "pleiades_kafka_client_queue_messages") == 5
    assert sample(registry, "pleiades_kafka_client_queue_bytes") == 500
    rtt = "pleiades_kafka_broker_rtt_seconds"
    assert sample(registry, rtt, broker="7", percentile="50") == pytest.approx(0.0015)
    assert sample(registry, rtt, broker="7", percentile="99") == pytest.approx(0.009)
    errors = "pleiades_kafka_broker_errors_total"
    assert sample(registry, errors, broker="7", type="send") == 5
    assert sample(registry, errors, broker="7", type="disconnect") == 1
    assert sample(registry, errors, broker="-1", type="send") is None
