"""The state of the local upstream: the events to come, the log, the journal, and who is connected.

Law: one lock, that of `changed` and `grown`, guards all of it; nothing is sent while it is held.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import IO, Any

import orjson

from pleiades.runtime.errors import UsageError
from pleiades.simulator.body import Body
from pleiades.simulator.generator import generated
from pleiades.simulator.log import JournalEntry, UpstreamLog, first_offset, home_of, sources_of
from pleiades.simulator.recorded import read_recorded, replayed
from pleiades.simulator.settings import Cut, SimulatorSettings, stream_of, topics_of


@dataclass(slots=True)
class Stats:
    """Counters since the start, of requests for streams, streams and events."""

    requests_total: int = 0
    connections_total: int = 0
    connections_open: int = 0
    refused_total: int = 0
    """Requests answered with anything but a stream."""
    cuts_total: int = 0
    """Streams that were cut, `error` events included."""
    events_appended_total: int = 0
    events_served_total: int = 0
    """Whole events given to the network; a cut may have lost some of them."""
    bytes_served_total: int = 0
    """Of these in the bodies, as written (compressed)."""


class LocalUpstream:
    """The upstream without the network.

    Raises:
        UsageError: a file of the settings can't be read or written.
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
        self.log = UpstreamLog(sources, settings.retention_bytes)
        self.open: set[Body] = set()
        """The streams being written."""
        lock = threading.RLock()
        self.changed = threading.Condition(lock)
        """Notified of each change of the counters."""
        self.grown = threading.Condition(lock)
        """Notified of new events, and of cuts."""
        self._journal = _journal_file(settings.journal)
        weakref.finalize(self, self._journal.close)
        self._started = time.monotonic()
        self._stats = Stats()
        self.request_numbers = itertools.count(1)
        """Of the requests that were not answered 4xx."""
        self._bases = {
            source: first_offset(settings.seed, home_of(source), source) for source in sources
        }
        self._coming = itertools.islice(events, settings.max_events)
        self._next = next(self._coming, None)
        # As if appended long ago: a lagging mirror has the history.
        self._append(inf, 0.0, -inf)

    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def append_due(self) -> None:
        """Append the events that are due; none without a rate."""
        if self.settings.rate > 0:
            self._append(inf, self.now(), self.now())

    def append(self, count: int) -> int:
        """Append the next events now, whether due or not; returns how many there were.

        An event that is not due yet is dated now: none is dated in the future by this.
        """
        return self._append(count, inf, self.now())

    def _append(self, most: float, until_seconds: float, now_seconds: float) -> int:
        appended = 0
        with self.changed:
            while (fresh := self._next) and appended < most:
                if fresh.due_ms >= until_seconds * 1000:
                    break
                self._next = next(self._coming, None)
                if (early_ms := int(fresh.due_ms - self.now() * 1000)) > 0:
                    fresh = fresh._replace(timestamp_ms=fresh.timestamp_ms - early_ms)
                offset = self._bases[fresh.source] + self.log.append(fresh, now_seconds)
                entry = JournalEntry(
                    *fresh.source, offset, fresh.timestamp_ms, fresh.identity, fresh.canary
                )
                self._journal.write(orjson.dumps(entry._asdict()) + b"\n")
                appended += 1
            if appended:
                self._journal.flush()
                self.count(events_appended_total=appended)
                self.grown.notify_all()
        return appended

    def count_clients(self) -> int:
        """Count the open streams whose clients have not left."""
        with self.changed:
            return sum(not body.has_left() for body in self.open)

    def cut_all(self, cut: Cut = Cut.RESET) -> int:
        """Cut every open stream; returns how many."""
        with self.changed:
            for body in self.open:
                body.abandoned = cut
            self.grown.notify_all()
            return len(self.open)

    def set_faults(self, **changes: Any) -> None:
        """Change fields of `Faults` for future requests."""
        self.faults = replace(self.faults, **changes)

    def journal(self) -> list[JournalEntry]:
        """Everything appended so far, in that order."""
        return [JournalEntry(**orjson.loads(line)) for line in self.journal_lines().splitlines()]

    def journal_lines(self) -> bytes:
        """The same as JSON, one entry a line."""
        with self.changed:
            self._journal.seek(0)
            # Ends where the next event is to be written.
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


def _journal_file(path: Path | None) -> IO[bytes]:
    # On disk, so that a long run needs no memory for it.
    try:
        return path.open("w+b") if path else tempfile.TemporaryFile("w+b")
    except OSError as error:
        raise UsageError(f"can't write the journal: {error}; check --journal") from None
