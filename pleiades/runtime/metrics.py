"""Every metric of the relay, with its meaning. `metric_store` says where the values are kept."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pleiades import __version__
from pleiades.core.event import LINE_TYPES, REASONS
from pleiades.runtime.metric_store import use_files_of

LAG_BUCKETS_SECONDS = (0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 10, 30, 60, 300, 900, 3600, 86400)
COMMIT_BUCKETS_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
RECONNECT_REASONS = ("closed", "cut", "decode", "idle", "past_end")
RECV_ERRORS = (
    *("connect", "content_type", "empty", "encoding", "environment", "id", "proxy", "redirect"),
    *("status_4xx", "status_5xx", "throttled", "upstream"),
)


class ArchiveMetrics(NamedTuple):
    """The metrics of the archive."""

    events: Counter
    errors: Counter
    closed: Counter
    open_bytes: Gauge
    open_since: Gauge


class UploadMetrics(NamedTuple):
    """The metrics of the archive's uploads."""

    pending: Gauge
    pending_bytes: Gauge
    lag: Gauge
    uploaded: Counter
    uploaded_bytes: Counter
    errors: Counter
    skipped: Counter
    removed: Counter


class Metrics:
    """The catalogue. Each process creates it once, after it knows its role.

    Args:
        role: such as `reader` or `parser-0`.
        folder: of `metric_store.metrics_folder`.

    Raises:
        MetricsUnavailable: there is no room for this process's files.
    """

    def __init__(self, role: str, folder: str) -> None:
        use_files_of(role, folder)
        common: Any = {"namespace": "pleiades", "registry": CollectorRegistry()}

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(name, meaning, labels, **common)

        def gauge(name: str, meaning: str, *labels: str, mode: Any = "mostrecent") -> Gauge:
            return Gauge(name, meaning, labels, multiprocess_mode=mode, **common)

        def histogram(name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, meaning, buckets=buckets, **common)

        self.recv_events = counter("recv_events", "Events from the upstream, with repeats.")
        self.recv_lines = counter("recv_event_lines", "Lines of the event stream by kind.", "type")
        self.recv_errors = counter("recv_errors", "Errors of the upstream and in its data.", "type")
        self.recv_bytes = counter("recv_bytes", "Bytes of the event stream, decompressed.")
        self.connected = gauge("upstream_connected", "Open connections to the upstream.")
        self.unread_bytes = gauge(
            "upstream_unread_bytes", "Bytes of a live stream that wait in the socket and in TLS."
        )
        self.reconnects = counter("upstream_reconnects", "Connections ended, by reason.", "reason")
        self.gaps = counter("upstream_gaps", "Resumes that found the history to begin too late.")
        self.topics_left_out = gauge(
            "upstream_topics_left_out",
            "Topics with a position that the upstream does not have at present: left out of requests.",
        )
        self.position = gauge(
            "upstream_position_seconds",
            "Timestamp up to which a topic is committed, seconds since 1970.",
            *("topic", "partition"),
        )
        self.oversized_frames = counter("oversized_frames", "Skipped frames of more than 8 MiB.")
        self.canaries_dropped = counter("canary_events_dropped", "Canary events, not published.")
        self.duplicates_dropped = counter(
            "duplicate_events_dropped", "Repeated events that are published already."
        )
        self.before_start_dropped = counter(
            "before_start_events_dropped", "Events from before the start that a reconnect brought."
        )
        self.outside_range_dropped = counter(
            "outside_range_events_dropped", "Events outside of the range that is replayed."
        )
        self.existing_skipped = counter(
            "existing_events_skipped", "Events that the destination had before the replay."
        )
        self.identities_replaced = counter(
            "replaced_identities", "Events without a usable meta.id."
        )
        self.dead_letters = counter("dead_letters", "Events published as dead letters.", "reason")
        self.file_events = counter("file_publish_events", "Events written as files and committed.")
        self.file_errors = counter("file_publish_errors", "Failed writes, each tried again.")
        self.archive = ArchiveMetrics(
            counter("archive_publish_events", "Events written into the archive."),
            counter("archive_publish_errors", "Failed writes, each tried again."),
            counter("archive_segments_closed", "Segments closed."),
            gauge("archive_open_bytes", "Bytes of the segments that are not closed."),
            gauge(
                "archive_open_since_seconds",
                "When the oldest segment that is not closed was opened, seconds since 1970; 0: none is.",
            ),
        )
        self.uploads = UploadMetrics(
            gauge("archive_upload_pending_segments", "Closed segments that wait for their upload."),
            gauge("archive_upload_pending_bytes", "Bytes of them."),
            gauge(
                "archive_upload_lag_seconds",
                "Since the oldest of them was closed; 0: there is none.",
            ),
            counter("archive_upload_segments", "Closed segments uploaded."),
            counter("archive_upload_bytes", "Bytes of them."),
            counter("archive_upload_errors", "Failed uploads, each tried again."),
            counter(
                "archive_upload_skipped_segments",
                "Closed segments that somebody removed before they were uploaded.",
            ),
            counter(
                "archive_removed_segments", "Uploaded segments removed after --archive.keepLocal."
            ),
        )
        self.kafka_events = counter("kafka_publish_events", "Events committed to the topic.")
        self.kafka_writes = counter("kafka_publish_writes", "Transactions committed.")
        self.kafka_errors = counter("kafka_writer_errors", "Errors of Kafka, each tried again.")
        self.kafka_write_seconds = gauge(
            "kafka_publish_write_time_seconds",
            "Time to hand over the events of a transaction, of the last 300 transactions.",
            "agg",
        )
        self.kafka_wait_seconds = gauge(
            "kafka_publish_wait_time_seconds",
            "Time to wait for the commit of a transaction, of the last 300 transactions.",
            "agg",
        )
        self.kafka_lag_ms = gauge(
            "kafka_publish_lag_milliseconds", "From the upstream's Kafka timestamp to the commit."
        )
        self.kafka_queue_messages = gauge("kafka_client_queue_messages", "Messages in librdkafka.")
        self.kafka_queue_bytes = gauge("kafka_client_queue_bytes", "Bytes of them.")
        self.kafka_rtt_seconds = gauge(
            "kafka_broker_rtt_seconds", "Round trip to a broker.", "broker", "percentile"
        )
        self.kafka_broker_errors = counter(
            "kafka_broker_errors", "Errors and disconnects by librdkafka.", "broker", "type"
        )
        self.commit_seconds = histogram(
            "commit_seconds", "Time of a commit.", COMMIT_BUCKETS_SECONDS
        )
        self.lag_seconds = histogram(
            "publish_lag_seconds",
            "From an event's meta.dt until it is durable; at most 100 events of a commit, evenly.",
            LAG_BUCKETS_SECONDS,
        )
        self.lag_left_out = counter(
            "publish_lag_left_out",
            "Those of them that publish_lag_seconds leaves out: dated back by more than 31 days.",
        )
        self.last_event = gauge(
            "last_event_time_seconds", "meta.dt of the last committed event, seconds since 1970."
        )
        self.window_identities = gauge("window_identities", "Identities kept to recognise repeats.")
        self.window_forgotten = counter(
            "window_forgotten_identities",
            "Identities forgotten early: --dedup.maxEntries is reached.",
        )
        self.queue_depth = gauge("queue_depth", "Batches waiting in a channel.", "channel")
        self.goroutine_restarts = gauge(
            "goroutine_restarts",
            "As process_restarts_total; the name that existing dashboards know.",
            "component",
            mode="max",
        )
        self.process_restarts = counter(
            "process_restarts", "Restarts, by the component that ended first.", "component"
        )
        self.log_lines_dropped = counter(
            "log_lines_dropped",
            "Log lines dropped: nobody read them, or they could not be written.",
        )
        self.build_info = gauge("build_info", "Always 1.", "version", "python", mode="max")
        self.start_time = gauge(
            "start_time_seconds", "Start of the program, seconds since 1970.", mode="max"
        )
        self._started = time.time()

    def describe(self, components: Iterable[str]) -> None:
        """Create every series at the start, so that none first appears with its first count.

        Args:
            components: the processes that the parent starts.
        """
        for component in components:
            self.process_restarts.labels(component)
            self.goroutine_restarts.labels(component)
        for metric, values in (
            (self.dead_letters, REASONS),
            (self.recv_lines, LINE_TYPES),
            (self.recv_errors, RECV_ERRORS),
            (self.reconnects, RECONNECT_REASONS),
        ):
            for value in values:
                metric.labels(value)
        # A gauge appears when it is set first.
        archive, uploads = self.archive, self.uploads
        for unset in (
            *(archive.open_bytes, archive.open_since),
            *(uploads.pending, uploads.pending_bytes, uploads.lag),
        ):
            unset.set(0)
        self.build_info.labels(__version__, platform.python_version()).set(1)
        self.start_time.set(self._started)
