"""Every metric there is, in one place, each with what it means; prometheus-client in multiprocess mode.

Each process writes files named by its role, not by its pid: a restarted child, even one that was
SIGKILLed, goes on with its predecessor's counters, and files don't pile up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import CollectorRegistry

from pleiades import __version__
from pleiades.core.decoding import LINE_TYPES, REASONS

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
LAG_BUCKETS_SECONDS = (0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 10, 30, 60, 300, 900, 3600, 86400)
COMMIT_BUCKETS_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
)

RECONNECT_REASONS = ("closed", "cut", "decode", "idle")
RECV_ERRORS = (
    "connect",
    "content_type",
    "empty",
    "id",
    "status_4xx",
    "status_5xx",
    "throttled",
    "upstream",
)

_OWN_PREFIX = "pleiades-metrics-"
_LOCK = "lock"


@contextlib.contextmanager
def metrics_folder() -> Iterator[None]:
    """An empty folder for this run's metric files, announced to the children by environment.

    The one named by `PROMETHEUS_MULTIPROC_DIR`, which is left behind; else a temporary one. A lock in
    the latter says that its owner lives (a pid would not: containers that share a temporary folder
    count their processes each for itself), and folders without an owner are removed.
    """
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        Path(chosen).mkdir(parents=True, exist_ok=True)
        for left in Path(chosen).glob("*.db"):
            left.unlink(missing_ok=True)
        yield
        return
    for left in Path(tempfile.gettempdir()).glob(_OWN_PREFIX + "*"):
        with contextlib.suppress(OSError), (left / _LOCK).open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_OWN_PREFIX)
    with (Path(folder) / _LOCK).open("w+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.environ[FOLDER_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[FOLDER_VARIABLE]
            shutil.rmtree(folder, ignore_errors=True)


class _Collector(MultiProcessCollector):  # untyped in the library
    """Reads all processes' files, but for those that are empty.

    A process makes its file in two steps, and between them there is nothing in it: a scrape at that
    moment would fail, and after a SIGKILL at that moment every scrape until its successor began.
    """

    def collect(self) -> Any:
        files = [str(file) for file in Path(self._path).glob("*.db") if file.stat().st_size]
        return self.merge(files, accumulate=True)  # type: ignore[no-untyped-call]  # as above


def collected() -> CollectorRegistry:
    """A registry that reads all processes' files when it is scraped."""
    registry = CollectorRegistry()
    _Collector(registry)  # type: ignore[no-untyped-call]  # untyped in the library
    return registry


class Metrics:
    """The catalogue. Made once in each process, with that process's role.

    Args:
        role: names the files, e.g. `reader`, `parser-0`; without an underscore, which separates
            the parts of the files' names.
    """

    def __init__(self, role: str) -> None:
        values.ValueClass = values.MultiProcessValue(lambda: role)  # type: ignore[no-untyped-call]  # the documented way to name files other than by pid
        registry = CollectorRegistry()

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(name, meaning, labels, registry=registry)

        def gauge(name: str, meaning: str, *labels: str, mode: Any = "mostrecent") -> Gauge:
            return Gauge(name, meaning, labels, multiprocess_mode=mode, registry=registry)

        def histogram(name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, meaning, buckets=buckets, registry=registry)

        self.recv_events = counter(
            "pleiades_recv_events", "Events received from the upstream, repeated ones included."
        )
        self.recv_lines = counter(
            "pleiades_recv_event_lines", "Lines of the event stream by kind.", "type"
        )
        self.recv_errors = counter(
            "pleiades_recv_errors", "Trouble with the upstream or in what it sent.", "type"
        )
        self.recv_bytes = counter(
            "pleiades_recv_bytes", "Bytes of the event stream, after decompression."
        )
        self.connected = gauge(
            "pleiades_upstream_connected", "1 while a connection to the upstream is open."
        )
        self.reconnects = counter(
            "pleiades_upstream_reconnects", "Connections that ended, by reason.", "reason"
        )
        self.gaps = counter(
            "pleiades_upstream_gaps",
            "Resumes after which the upstream's history began later than what was asked for.",
        )
        self.position = gauge(
            "pleiades_upstream_position_seconds",
            "Timestamp up to which a topic is committed, seconds since 1970.",
            "topic",
            "partition",
        )
        self.oversized_frames = counter(
            "pleiades_oversized_frames", "Frames beyond 8 MiB, which are skipped."
        )
        self.canaries_dropped = counter(
            "pleiades_canary_events_dropped", "Canary events, which are not published."
        )
        self.duplicates_dropped = counter(
            "pleiades_duplicate_events_dropped",
            "Events that the upstream repeated and that are published already.",
        )
        self.before_start_dropped = counter(
            "pleiades_before_start_events_dropped",
            "Events older than the start of this relay that a reconnect brought.",
        )
        self.identities_replaced = counter(
            "pleiades_replaced_identities", "Events without a usable meta.id."
        )
        self.dead_letters = counter(
            "pleiades_dead_letters", "Events that could not be published as such.", "reason"
        )
        self.file_events = counter(
            "pleiades_file_publish_events", "Events written as files and committed."
        )
        self.file_errors = counter(
            "pleiades_file_publish_errors", "Failed attempts to write, each tried again."
        )
        self.kafka_events = counter(
            "pleiades_kafka_publish_events", "Events committed to the topic."
        )
        self.kafka_writes = counter("pleiades_kafka_publish_writes", "Transactions committed.")
        self.kafka_errors = counter(
            "pleiades_kafka_writer_errors", "Trouble with Kafka, waited for or tried again."
        )
        self.kafka_write_seconds = gauge(
            "pleiades_kafka_publish_write_time_seconds",
            "Time to hand over the events of a transaction, of the last 300 transactions.",
            "agg",
        )
        self.kafka_wait_seconds = gauge(
            "pleiades_kafka_publish_wait_time_seconds",
            "Time to wait for Kafka to commit a transaction, of the last 300 transactions.",
            "agg",
        )
        self.kafka_lag_ms = gauge(
            "pleiades_kafka_publish_lag_milliseconds",
            "From the latest committed event's Kafka timestamp upstream to its commit.",
        )
        self.kafka_queue_messages = gauge(
            "pleiades_kafka_client_queue_messages", "Messages that librdkafka holds."
        )
        self.kafka_queue_bytes = gauge(
            "pleiades_kafka_client_queue_bytes", "Size of the messages that librdkafka holds."
        )
        self.kafka_rtt_seconds = gauge(
            "pleiades_kafka_broker_rtt_seconds",
            "Round trip of requests to a broker, by librdkafka.",
            "broker",
            "quantile",
        )
        self.kafka_broker_errors = counter(
            "pleiades_kafka_broker_errors",
            "What librdkafka counts of a broker: failed sends and receives, timeouts, disconnects.",
            "broker",
            "type",
        )
        self.commit_seconds = histogram(
            "pleiades_commit_seconds", "Time of one commit.", COMMIT_BUCKETS_SECONDS
        )
        self.lag_seconds = histogram(
            "pleiades_publish_lag_seconds",
            "From an event's meta.dt until it is durable; at most 100 events of a commit, evenly.",
            LAG_BUCKETS_SECONDS,
        )
        self.last_event = gauge(
            "pleiades_last_event_time_seconds",
            "meta.dt of the last committed event, seconds since 1970.",
        )
        self.window_identities = gauge(
            "pleiades_window_identities", "Identities remembered to recognise repeats."
        )
        self.window_forgotten = counter(
            "pleiades_window_forgotten_identities",
            "Identities forgotten early because --dedup.maxEntries was reached.",
        )
        self.queue_depth = gauge("pleiades_queue_depth", "Batches waiting in a channel.", "channel")
        self.goroutine_restarts = gauge(
            "pleiades_goroutine_restarts",
            "As pleiades_process_restarts_total; the name that existing dashboards know.",
            "component",
            mode="max",
        )
        self.process_restarts = counter(
            "pleiades_process_restarts",
            "Restarts of the pipeline, by the component that ended first.",
            "component",
        )
        self.build_info = gauge("pleiades_build_info", "Always 1.", "version", "python", mode="max")

    def describe(self, components: Iterable[str]) -> None:
        """Show every series from the start, so that none first appears with its first count.

        The parent does it, with the names of the processes that it starts.
        """
        for component in components:
            self.process_restarts.labels(component)
            self.goroutine_restarts.labels(component)
        for reason in REASONS:
            self.dead_letters.labels(reason)
        for kind in LINE_TYPES:
            self.recv_lines.labels(kind)
        for kind in RECV_ERRORS:
            self.recv_errors.labels(kind)
        for reason in RECONNECT_REASONS:
            self.reconnects.labels(reason)
        self.build_info.labels(__version__, platform.python_version()).set(1)
