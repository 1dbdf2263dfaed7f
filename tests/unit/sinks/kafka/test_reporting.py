"""What is said while Kafka can't be reached."""

from __future__ import annotations

import logging

import orjson
import pytest
from prometheus_client import CollectorRegistry

from pleiades.runtime.metric_store import collected
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.kafka import reporting
from pleiades.sinks.kafka.reporting import Reporting, Trouble
from tests.unit.conftest import FakeLife


@pytest.fixture
def life() -> FakeLife:
    life = FakeLife(0)
    life.ready = True
    return life


def sample(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_a_short_wait_is_not_worth_a_line(
    life: FakeLife, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    said = Reporting(life, metrics)
    said.trouble("commit", "no answer yet", Trouble.NO_ANSWER)
    assert caplog.text == ""
    assert life.ready
    assert sample(collected(), "pleiades_kafka_writer_errors_total") == 0


def test_a_long_wait_is_said_and_its_end_too(
    life: FakeLife,
    metrics: Metrics,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "PATIENCE_SECONDS", 0.0)
    said = Reporting(life, metrics)
    caplog.set_level(logging.INFO)
    for _ in range(3):
        said.trouble("commit", "no answer yet", Trouble.NO_ANSWER)
    ready_while_waiting = life.ready
    assert not ready_while_waiting
    assert caplog.text.count("can't commit: no answer yet. Nothing is lost") == 1
    said.well()
    assert life.ready
    assert "takes events again" in caplog.text
    caplog.clear()
    said.well()
    assert caplog.text == ""


def test_errors_are_counted_and_a_transaction_begun_again_is_said_at_once(
    life: FakeLife, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    said = Reporting(life, metrics)
    said.trouble("commit", "broken", Trouble.REFUSED)
    assert caplog.text == "", "it passes at once, usually"
    said.trouble("commit", "broken", Trouble.BEGUN_AGAIN)
    assert "broken" in caplog.text
    assert sample(collected(), "pleiades_kafka_writer_errors_total") == 2


def test_times_of_transactions(life: FakeLife, metrics: Metrics) -> None:
    said = Reporting(life, metrics)
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


def test_a_commit_that_fails_is_none(life: FakeLife, metrics: Metrics) -> None:
    said = Reporting(life, metrics)

    def fails() -> None:
        with said.committing():
            raise ConnectionError

    with pytest.raises(ConnectionError):
        fails()
    assert sample(collected(), "pleiades_kafka_publish_writes_total") == 0


def test_librdkafkas_figures(life: FakeLife, metrics: Metrics) -> None:
    said = Reporting(life, metrics)
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
