"""The state of the local upstream: the events to come, the log, the journal, and who is connected.

Law: one lock, that of `changed` and `grown`, guards all of it; nothing is sent while it is held.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import orjson

from pleiades.simulator.body import Body
from pleiades.simulator.generator import generated
from pleiades.simulator.journal import Journal, JournalEntry
from pleiades.simulator.log import Fresh, UpstreamLog, first_offset, home_of, sources_of
from pleiades.simulator.recorded import read_recorded, replayed
from pleiades.simulator.settings import Cut, Faults, SimulatorSettings, stream_of, topics_of


@dataclass(slots=True)
class Stats:
    """Counters since the start."""

    requests_total: int = 0
    """Requests for a stream, refused ones included."""
    connections_total: int = 0
    """Streams that were opened."""
    connections_open: int = 0
    refused_total: int = 0
    """Requests answered with anything but a stream."""
    cuts_total: int = 0
    """Streams that were cut, `error` events included."""
    events_appended_total: int = 0
    events_served_total: int = 0
    """Whole events given to the network; a cut may have lost some of them."""
    bytes_served_total: int = 0
    """The bytes of these in the bodies, as written (compressed)."""


class LocalUpstream:
    """The upstream without the network.

    Args:
        settings: everything.

    Raises:
        UsageError: a file can't be read or written.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self.started_ms = time.time_ns() // 1_000_000
        """The start, ms since 1970; the history is dated before it."""
        topics = [topic for stream in settings.streams for topic in topics_of(stream)]
        sources = sources_of(topics, settings.partitions)
        if settings.file is None:
            events = generated(settings, self.started_ms)
        else:
            recorded = read_recorded(settings.file, topics[0])
            found = dict.fromkeys(event.source for event in recorded)
            # Both topics of each stream exist, even where the file has events of only one.
            twins = [twin for topic, _ in found for twin in topics_of(stream_of(topic))]
            sources = list(dict.fromkeys([*sources, *sources_of(twins, 1), *found]))
            if settings.rate == 0:
                count = min(len(recorded), settings.max_events or len(recorded))
                settings = replace(settings, history_events=count)
            events = replayed(recorded, settings, self.started_ms)
        self.settings = settings
        self.faults = settings.faults
        self.streams = tuple(dict.fromkeys(stream_of(topic) for topic, _ in sources))
        self.partitions: dict[str, list[int]] = {}
        for topic, partition in sources:
            self.partitions.setdefault(topic, []).append(partition)
        self.log = UpstreamLog(sources, settings.retention_bytes)
        self.open: set[Body] = set()
        """The streams being written."""
        lock = threading.RLock()
        self.changed = threading.Condition(lock)
        """Notified of each change of the counters."""
        self.grown = threading.Condition(lock)
        """Notified of new events, and of cuts."""
        self._journal = Journal(settings.journal)
        self._started = time.monotonic()
        self._stats = Stats()
        self.request_numbers = itertools.count(1)
        """Of the requests that were not answered 4xx."""
        self._bases = {
            source: first_offset(settings.seed, home_of(source), source) for source in sources
        }
        self._coming = itertools.islice(events, settings.max_events)
        self._next = next(self._coming, None)
        self._append_due(0.0, float("-inf"))

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def append_due(self) -> None:
        """Append the events that are due; none without a rate."""
        if self.settings.rate > 0:
            self._append_due(self.now(), self.now())

    def _append_due(self, until_seconds: float, appended_seconds: float) -> None:
        with self.changed:
            count = 0
            while self._next is not None and self._next.due_ms < until_seconds * 1000.0:
                self._append(self._next, appended_seconds)
                count += 1
            if count:
                self._appended(count)

    def append(self, count: int) -> int:
        """Append the next events now, whether due or not; returns how many there were.

        An event that is not due yet is dated now: none is dated in the future by this.
        """
        with self.changed:
            appended, now_seconds = 0, self.now()
            while appended < count and self._next is not None:
                early_ms = max(int(self._next.due_ms - now_seconds * 1000.0), 0)
                dated_ms = self._next.timestamp_ms - early_ms
                self._append(self._next._replace(timestamp_ms=dated_ms), now_seconds)
                appended += 1
            self._appended(appended)
            return appended

    def _append(self, fresh: Fresh, now_seconds: float) -> None:
        self._next = next(self._coming, None)
        offset = self._bases[fresh.source] + self.log.append(fresh, now_seconds)
        entry = JournalEntry(
            *fresh.source, offset, fresh.timestamp_ms, fresh.identity, fresh.canary
        )
        self._journal.add(entry)

    def _appended(self, count: int) -> None:
        self._journal.flush()
        self.count(events_appended_total=count)
        self.grown.notify_all()

    def cut_all(self, cut: Cut = Cut.RESET) -> int:
        """Cut every open stream; returns how many."""
        with self.changed:
            for body in self.open:
                body.abandoned = cut
            self.grown.notify_all()
            return len(self.open)

    def set_faults(self, **changes: object) -> Faults:
        """Change fields of `Faults` for future requests; returns all of them."""
        self.faults = replace(self.faults, **changes)  # type: ignore[arg-type]
        return self.faults

    def journal(self) -> list[JournalEntry]:
        """Everything appended so far, in that order."""
        return [JournalEntry(**orjson.loads(line)) for line in self.journal_lines().splitlines()]

    def journal_lines(self) -> bytes:
        """The same as JSON, one entry a line."""
        with self.changed:
            return self._journal.read()

    def count(self, **changes: int) -> None:
        """Add to counters."""
        with self.changed:
            for name, change in changes.items():
                setattr(self._stats, name, getattr(self._stats, name) + change)
            self.changed.notify_all()

    def stats(self) -> Stats:
        """A copy of the counters."""
        with self.changed:
            return replace(self._stats)

    @property
    def connections_total(self) -> int:
        """Streams opened so far."""
        return self._stats.connections_total

    def wait_until(
        self, condition: Callable[[Stats], bool], timeout_seconds: float = 10.0
    ) -> Stats:
        """Wait until the counters fulfil a condition; returns a copy of them.

        Raises:
            TimeoutError: they did not in time.
        """
        with self.changed:
            if not self.changed.wait_for(lambda: condition(self._stats), timeout_seconds):
                raise TimeoutError(f"still {self._stats} after {timeout_seconds} s")
            return self.stats()
