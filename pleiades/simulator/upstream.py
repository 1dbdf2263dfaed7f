"""The state behind the server: events that become due, the log they go to, and the journal.

Law: not thread-safe and without a clock; whoever owns it says what time it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from pleiades.core.wire import TopicPartition
from pleiades.simulator.generator import generated
from pleiades.simulator.journal import Journal, JournalEntry
from pleiades.simulator.log import (
    Cluster,
    Fresh,
    UpstreamLog,
    first_offset,
    home_of,
    sources_of,
)
from pleiades.simulator.recorded import (
    RecordedEvent,
    read_recorded,
    replayed,
    sources_in,
    topics_for_streams,
)
from pleiades.simulator.settings import SimulatorSettings, stream_of


class LocalUpstream:
    """The log of all streams and what will be appended to it.

    Args:
        settings: everything.
        started_ms: the wall clock at the start, ms since 1970.

    Raises:
        UsageError: a file can't be read or written.
    """

    def __init__(self, settings: SimulatorSettings, started_ms: int) -> None:
        topics = topics_for_streams(settings.streams)
        sources = list(sources_of(topics, settings.partitions))
        recorded: list[RecordedEvent] = []
        if settings.file is not None:
            recorded = read_recorded(settings.file, topics[0])
            found = sources_in(recorded)
            # Both topics of each stream exist, also where the file has events of one only.
            twins = topics_for_streams(tuple(stream_of(topic) for topic, _ in found))
            sources = list(dict.fromkeys([*sources, *sources_of(twins, 1), *found]))
            if settings.rate == 0:
                count = min(len(recorded), settings.max_events or len(recorded))
                settings = replace(settings, history_events=count)
        self.settings = settings
        self.streams = tuple(dict.fromkeys(stream_of(topic) for topic, _ in sources))
        self.partitions: dict[str, list[int]] = {}
        for topic, partition in sources:
            self.partitions.setdefault(topic, []).append(partition)
        self.log = UpstreamLog(sources, settings.retention_bytes)
        self.journal = Journal(settings.journal)
        self._bases = {
            source: first_offset(settings.seed, home_of(source), source) for source in sources
        }
        events = (
            generated(settings, started_ms)
            if settings.file is None
            else replayed(recorded, settings, started_ms)
        )
        self._coming = islice(events, settings.max_events)
        self._next: Fresh | None = next(self._coming, None)

    @property
    def due_seconds(self) -> float | None:
        """When the next event is due, seconds since the start; None: there will be none."""
        return None if self._next is None else self._next.due_ms / 1000.0

    def append_history(self) -> None:
        """Append what is dated before the start."""
        for fresh in self._until(0.0):
            self._append(fresh, float("-inf"))
        self.journal.flush()

    def append_due(self, now_seconds: float) -> int:
        """Append what is due, `now_seconds` after the start; returns how many events."""
        appended = 0
        for fresh in self._until(now_seconds):
            self._append(fresh, now_seconds)
            appended += 1
        if appended:
            self.journal.flush()
        return appended

    def append_next(self, count: int, now_seconds: float) -> int:
        """Append the next events, due or not; returns how many there were.

        What is not due yet is dated now: no event is dated in the future by this.
        """
        appended = 0
        while appended < count and self._next is not None:
            fresh, self._next = self._next, next(self._coming, None)
            early_ms = max(int(fresh.due_ms - now_seconds * 1000.0), 0)
            fresh = fresh._replace(timestamp_ms=fresh.timestamp_ms - early_ms)
            self._append(fresh, now_seconds)
            appended += 1
        self.journal.flush()
        return appended

    def cluster(self, data_centre: str, mirror_lag_seconds: float) -> Cluster:
        """The log as a data centre's Kafka shows it."""
        return Cluster(self.log, data_centre, self.settings.seed, mirror_lag_seconds)

    def _until(self, now_seconds: float) -> Iterator[Fresh]:
        while self._next is not None and self._next.due_ms < now_seconds * 1000.0:
            fresh, self._next = self._next, next(self._coming, None)
            yield fresh

    def _append(self, fresh: Fresh, now_seconds: float) -> None:
        index = self.log.append(fresh, now_seconds)
        source: TopicPartition = fresh.source
        self.journal.add(
            JournalEntry(
                *source,
                self._bases[source] + index,
                fresh.timestamp_ms,
                fresh.identity,
                fresh.canary,
            )
        )
