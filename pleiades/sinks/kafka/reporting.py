"""What is said of the sink's work: to the parent, in the log, and as metrics."""

from __future__ import annotations

import contextlib
import enum
import logging
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import orjson

from pleiades.runtime.child import Life
from pleiades.runtime.logs import Seldom
from pleiades.runtime.metrics import Metrics

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
"""What passes within this time is not worth a line."""
WARNING_SECONDS = 30.0
AGGREGATED = 300
"""Commits over which minimum, maximum and average are taken: a minute of them, usually."""
MAX_BROKERS = 100
"""Brokers that get series of their own."""
_US = 1e-6
_TROUBLES = {
    "txerrs": "send",
    "rxerrs": "receive",
    "req_timeouts": "timeout",
    "disconnects": "disconnect",
}


class Trouble(enum.Enum):
    """What kind of trouble is told of."""

    NO_ANSWER = enum.auto()
    """So far; no error yet."""
    REFUSED = enum.auto()
    """An error that passes, usually at once: a coordinator moves, a leader is elected."""
    BEGUN_AGAIN = enum.auto()
    """A transaction had to be aborted."""


class Reporting:
    """Tells of one sink, from the thread that uses it."""

    def __init__(self, life: Life, metrics: Metrics) -> None:
        self._life = life
        self._metrics = metrics
        self._write_seconds: deque[float] = deque(maxlen=AGGREGATED)
        self._wait_seconds: deque[float] = deque(maxlen=AGGREGATED)
        self._written_seconds = 0.0
        self._since: float | None = None
        """Monotonic time since which something is waited for."""
        self._in_trouble = False
        self._warnings = Seldom(WARNING_SECONDS)
        self._totals: dict[tuple[str, str], int] = {}

    def alive(self) -> None:
        """The process lives."""
        self._life.beat()

    def pause(self, seconds: float) -> None:
        """Wait, and show that it is on purpose."""
        self._life.pause(seconds)

    def trouble(self, operation: str, why: str, kind: Trouble) -> None:
        """Something can't be done now and is tried again."""
        if kind is not Trouble.NO_ANSWER:
            self._metrics.kafka_errors.inc()
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if kind is not Trouble.BEGUN_AGAIN and now - self._since < PATIENCE_SECONDS:
            log.debug("can't %s: %s", operation, why)
            return
        self._in_trouble = True
        self._life.ready = False
        if self._warnings.due():
            log.warning(
                "can't %s: %s. Nothing is lost: what is in flight is kept, the reader waits, and it is "
                "tried until it works",
                operation,
                why,
            )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around handing over events."""
        started = time.monotonic()
        yield
        self._written_seconds += time.monotonic() - started

    @contextlib.contextmanager
    def committing(self) -> Iterator[None]:
        """Around a commit."""
        started = time.monotonic()
        yield
        now = time.monotonic()
        self._metrics.kafka_writes.inc()
        _aggregate(self._metrics.kafka_write_seconds, self._write_seconds, self._written_seconds)
        _aggregate(self._metrics.kafka_wait_seconds, self._wait_seconds, now - started)
        self._written_seconds = 0.0

    def well(self) -> None:
        """Kafka answers as it should."""
        if self._in_trouble and self._since is not None:
            log.info("Kafka takes events again, after %.0f s", time.monotonic() - self._since)
            self._in_trouble = False
            self._life.ready = True
            self._warnings = Seldom(WARNING_SECONDS)
        self._since = None

    def statistics(self, encoded: str) -> None:
        """What librdkafka counts (its STATISTICS.md), as far as an operator needs it."""
        figures: dict[str, Any] = orjson.loads(encoded)
        self._metrics.kafka_queue_messages.set(figures.get("msg_cnt", 0))
        self._metrics.kafka_queue_bytes.set(figures.get("msg_size", 0))
        brokers = figures.get("brokers", {}).values()
        for broker in [each for each in brokers if each.get("nodeid", -1) >= 0][:MAX_BROKERS]:
            name = str(broker["nodeid"])
            for percentile, key in (("50", "p50"), ("99", "p99")):
                seconds = broker.get("rtt", {}).get(key, 0) * _US
                self._metrics.kafka_rtt_seconds.labels(name, percentile).set(seconds)
            for key, kind in _TROUBLES.items():
                total = broker.get(key, 0)
                before = self._totals.get((name, kind), 0)
                self._metrics.kafka_broker_errors.labels(name, kind).inc(max(total - before, 0))
                self._totals[name, kind] = total


def _aggregate(gauge: Any, seconds: deque[float], latest: float) -> None:
    seconds.append(latest)
    gauge.labels("min").set(min(seconds))
    gauge.labels("max").set(max(seconds))
    gauge.labels("avg").set(sum(seconds) / len(seconds))
