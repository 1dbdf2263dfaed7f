"""The state of the local upstream: the events to come, the log, and the journal.

Law: no clock and no lock; the caller has both.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from pleiades.simulator.generator import generated
from pleiades.simulator.journal import Journal, JournalEntry
from pleiades.simulator.log import Cluster, Fresh, UpstreamLog, first_offset, home_of, sources_of
from pleiades.simulator.recorded import RecordedEvent, read_recorded, replayed, sources_in
from pleiades.simulator.settings import SimulatorSettings, stream_of, topics_of


class LocalUpstream:
    """The log of all streams, and the events that will be appended to it.

    Args:
        settings: everything.
        started_ms: the wall clock at the start, ms since 1970.

    Raises:
        UsageError: a file can't be read or written.
    """

    def __init__(self, settings: SimulatorSettings, started_ms: int) -> None:
        topics = [topic for stream in settings.streams for topic in topics_of(stream)]
        sources = list(sources_of(topics, settings.partitions))
        recorded: list[RecordedEvent] = []
        if settings.file is not None:
            recorded = read_recorded(settings.file, topics[0])
            found = sources_in(recorded)
            # Both topics of each stream exist, even where the file has events of only one.
            twins = [twin for topic, _ in found for twin in topics_of(stream_of(topic))]
            sources = list(dict.fromkeys([*sources, *sources_of(twins, 1), *found]))
            if settings.rate == 0:
                count = min(len(recorded), settings.max_events or len(recorded))
                settings = replace(settings, history_events=count)
        self.streams = tuple(dict.fromkeys(stream_of(topic) for topic, _ in sources))
        self.partitions: dict[str, list[int]] = {}
        for topic, partition in sources:
            self.partitions.setdefault(topic, []).append(partition)
        self.log = UpstreamLog(sources, settings.retention_bytes)
        self.journal = Journal(settings.journal)
        self._seed = settings.seed
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
        self.append_due(0.0, float("-inf"))

    def append_due(self, now_seconds: float, appended_seconds: float | None = None) -> int:
        """Append what is due.

        Args:
            now_seconds: since the start.
            appended_seconds: the time of appending; None: now.

        Returns:
            The number of events.
        """
        appended = 0
        while self._next is not None and self._next.due_ms < now_seconds * 1000.0:
            self._append(self._next, now_seconds if appended_seconds is None else appended_seconds)
            appended += 1
        self.journal.flush()
        return appended

    def append_next(self, count: int, now_seconds: float) -> int:
        """Append the next events, due or not; returns how many there were.

        An event that is not due yet is dated now: none is dated in the future by this.
        """
        appended = 0
        while appended < count and self._next is not None:
            early_ms = max(int(self._next.due_ms - now_seconds * 1000.0), 0)
            dated_ms = self._next.timestamp_ms - early_ms
            self._append(self._next._replace(timestamp_ms=dated_ms), now_seconds)
            appended += 1
        self.journal.flush()
        return appended

    def cluster(self, data_centre: str, mirror_lag_seconds: float) -> Cluster:
        """The log as a data centre's Kafka shows it."""
        return Cluster(self.log, data_centre, self._seed, mirror_lag_seconds)

    def _append(self, fresh: Fresh, now_seconds: float) -> None:
        self._next = next(self._coming, None)
        source = fresh.source
        offset = self._bases[source] + self.log.append(fresh, now_seconds)
        self.journal.add(
            JournalEntry(*source, offset, fresh.timestamp_ms, fresh.identity, fresh.canary)
        )
