"""Metrics of the sink: the times of its transactions, and the statistics of librdkafka."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import orjson

from pleiades.runtime.metrics import Metrics

AGGREGATED = 300
"""Commits that minimum, maximum and average cover: usually one minute."""
MAX_BROKERS = 100
"""Brokers with series of their own."""
_US = 1e-6
_ERRORS = (
    *(("txerrs", "send"), ("rxerrs", "receive")),
    *(("req_timeouts", "timeout"), ("disconnects", "disconnect")),
)


class KafkaMetrics:
    """Records the metrics of one sink."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._seconds: dict[Any, deque[float]] = {}
        """The latest values of each aggregating gauge."""
        self._written_seconds = 0.0
        self._totals: dict[tuple[str, str], int] = {}

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Measures producing the events of a transaction."""
        started = time.monotonic()
        yield
        self._written_seconds += time.monotonic() - started

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """Measures and counts a commit."""
        started = time.monotonic()
        yield
        self._metrics.kafka_writes.inc()
        self._aggregate(self._metrics.kafka_write_seconds, self._written_seconds)
        self._aggregate(self._metrics.kafka_wait_seconds, time.monotonic() - started)
        self._written_seconds = 0.0

    def _aggregate(self, gauge: Any, latest: float) -> None:
        seconds = self._seconds.setdefault(gauge, deque(maxlen=AGGREGATED))
        seconds.append(latest)
        gauge.labels("min").set(min(seconds))
        gauge.labels("max").set(max(seconds))
        gauge.labels("avg").set(sum(seconds) / len(seconds))

    def statistics(self, encoded: str) -> None:
        """Take librdkafka's statistics (its STATISTICS.md): those that an operator needs."""
        figures: dict[str, Any] = orjson.loads(encoded)
        self._metrics.kafka_queue_messages.set(figures.get("msg_cnt", 0))
        self._metrics.kafka_queue_bytes.set(figures.get("msg_size", 0))
        brokers = figures.get("brokers", {}).values()
        for broker in [each for each in brokers if each.get("nodeid", -1) >= 0][:MAX_BROKERS]:
            name = str(broker["nodeid"])
            for percentile, key in (("50", "p50"), ("99", "p99")):
                seconds = broker.get("rtt", {}).get(key, 0) * _US
                self._metrics.kafka_rtt_seconds.labels(name, percentile).set(seconds)
            for key, kind in _ERRORS:
                total = broker.get(key, 0)
                before = self._totals.get((name, kind), 0)
                self._metrics.kafka_broker_errors.labels(name, kind).inc(max(total - before, 0))
                self._totals[name, kind] = total
