"""Every metric there is, in one place, each with what it means.

Each process writes files named by its role, not by its pid: a restarted child, even one that was
SIGKILLed, goes on with its predecessor's counters, and files don't pile up. How they are written
stands in `metric_files`, how they are read in `metric_scrape`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from prometheus_client import Counter, Gauge, Histogram, values
from prometheus_client.registry import CollectorRegistry

from pleiades import __version__
from pleiades.core.wire import LINE_TYPES, REASONS
from pleiades.runtime.errors import MetricsUnavailable
from pleiades.runtime.metric_files import SUFFIX, UNFINISHED_SUFFIX, Ledger, values_in
from pleiades.runtime.metric_scrape import ScrapeCollector

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

RECONNECT_REASONS = ("closed", "cut", "decode", "idle", "past_end")
RECV_ERRORS = (
    "connect",
    "content_type",
    "empty",
    "encoding",
    "id",
    "proxy",
    "redirect",
    "status_4xx",
    "status_5xx",
    "throttled",
    "upstream",
)

STARTING_SECONDS = 10.0
"""So long after a start or restart a process may not have made its files."""

_OWN_PREFIX = "pleiades-metrics-"
_LOCK = "lock"


@contextlib.contextmanager
def metrics_folder() -> Iterator[None]:
    """An empty folder for this run's metric files, announced to the children by environment.

    The one named by `PROMETHEUS_MULTIPROC_DIR`, which is left behind; else a temporary one. A lock in
    the latter says that its owner lives (a pid would not: containers that share a temporary folder
    count their processes each for itself), and folders without an owner are removed.

    Raises:
        MetricsUnavailable: there can be no such folder. One that is full, or that can't be written, is
            no reason to relay nothing: see `metric_files`.
    """
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        _empty(Path(chosen))
        yield
        return
    try:
        folder, lock = _temporary_folder()
    except OSError as error:
        raise MetricsUnavailable(
            f"can't make a folder for the metrics' files: {error}. Nothing was read or written. "
            f"Make room for a few KB there, or name another folder by TMPDIR or {FOLDER_VARIABLE}"
        ) from None
    with lock:
        os.environ[FOLDER_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[FOLDER_VARIABLE]
            shutil.rmtree(folder, ignore_errors=True)


def _empty(chosen: Path) -> None:
    try:
        chosen.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MetricsUnavailable(
            f"can't make the folder that {FOLDER_VARIABLE} names: {error}. Nothing was read or "
            "written. Name one that can be made, or none: then it is a temporary one"
        ) from None
    for left in (*chosen.glob(f"*{SUFFIX}"), *chosen.glob(f"*{UNFINISHED_SUFFIX}")):
        # What can't be removed is no file of ours, or shows at the first scrape.
        with contextlib.suppress(OSError):
            left.unlink()


def _temporary_folder() -> tuple[str, IO[bytes]]:
    for left in Path(tempfile.gettempdir()).glob(_OWN_PREFIX + "*"):
        with contextlib.suppress(OSError), (left / _LOCK).open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_OWN_PREFIX)
    held = (Path(folder) / _LOCK).open("w+b")
    fcntl.flock(held, fcntl.LOCK_EX)
    return folder, held


@dataclass
class _Run:
    """What this process knows of its own figures, and the parent of those that must be there."""

    ledger: Ledger | None = None
    expected: frozenset[str] = frozenset()
    """The roles of this generation."""
    since: float = 0.0
    """When it began, by the monotonic clock."""

    def roles(self) -> frozenset[str]:
        """Those of all processes that there should be."""
        return self.expected if self.ledger is None else self.expected | {self.ledger.role}

    def unwritten(self, roles: set[str], incomplete: set[str]) -> int:
        """How many processes' figures are not all in files, by what a scrape found there."""
        begun = time.monotonic() - self.since > STARTING_SECONDS
        missing = self.expected - roles if begun else frozenset()
        own = self.ledger
        failed = {own.role} if own is not None and not own.all_written else set()
        return len(incomplete | missing | failed)


_run = _Run()


def collected() -> CollectorRegistry:
    """A registry that reads all processes' files when it is scraped.

    Its own the parent makes good before: it counts too seldom to notice otherwise.
    """
    if _run.ledger is not None:
        _run.ledger.look()
    registry = CollectorRegistry()
    folder = Path(os.environ[FOLDER_VARIABLE])
    registry.register(ScrapeCollector(folder, _run.roles(), _run.unwritten))
    return registry


class Metrics:
    """The catalogue. Made once in each process, with that process's role.

    Args:
        role: names the files, e.g. `reader`, `parser-0`; without an underscore, which separates
            the parts of the files' names.
    """

    def __init__(self, role: str) -> None:
        _run.ledger = Ledger(Path(os.environ[FOLDER_VARIABLE]), role)
        # Where prometheus-client's own metrics look up what keeps a figure.
        values.ValueClass = values_in(_run.ledger)
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
            "pleiades_upstream_connected", "Connections to the upstream that are open."
        )
        self.unread_bytes = gauge(
            "pleiades_upstream_unread_bytes",
            "Bytes of a live stream that wait on this machine to be read: in the socket and within TLS.",
        )
        self.reconnects = counter(
            "pleiades_upstream_reconnects", "Connections that ended, by reason.", "reason"
        )
        self.gaps = counter(
            "pleiades_upstream_gaps",
            "Resumes after which the upstream's history began later than what was asked for.",
        )
        self.topics_left_out = gauge(
            "pleiades_upstream_topics_left_out",
            "Topics with a position that the upstream does not have at present: left out of requests.",
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
        self.outside_range_dropped = counter(
            "pleiades_outside_range_events_dropped",
            "Events beside the range that is replayed.",
        )
        self.existing_skipped = counter(
            "pleiades_existing_events_skipped",
            "Events that the destination had before the replay.",
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
            "percentile",
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
        self.start_time = gauge(
            "pleiades_start_time_seconds",
            "When the program was started, s since 1970; a restart of its processes does not count.",
            mode="max",
        )
        self._started = time.time()

    def describe(self, components: Iterable[str]) -> None:
        """Show every series from the start, so that none first appears with its first count.

        The parent does it, with the names of the processes that it starts.
        """
        components = list(components)
        _run.expected = frozenset(components)
        _run.since = time.monotonic()
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
        self.start_time.set(self._started)
