"""Process 3: restores the order, drops repeats, commits. It alone owns durable state."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from pleiades.config.settings import Settings
from pleiades.core.admission import Admission
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.columns import count_published, data_bytes_of, identities_of, times_of
from pleiades.core.event import TOO_LARGE, Batch, End, Event, time_ms
from pleiades.core.occurrences import Occurrences, is_recognisable
from pleiades.core.position import Position, in_words, join
from pleiades.core.range import halves
from pleiades.core.start import Start, choose_replay_start, choose_start
from pleiades.core.window import Window
from pleiades.runtime import faultpoints
from pleiades.runtime.channel import POLL_SECONDS, Channel
from pleiades.runtime.child import ChildContext
from pleiades.runtime.logs import Throttle
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.base import Sink, SinkContext, destination_of

log = logging.getLogger(__name__)

MAX_LAG_SECONDS = 31 * 86_400.0
"""The upstream keeps no event for longer, so an older date is no lag but that of an imported edit."""
LAG_SAMPLES = 100
"""The most lag observations in one commit, spread evenly over its events."""
WARNING_SECONDS = 60.0
OPEN_ALLOWED_SECONDS = 60.0
"""Opening a destination may block for this long without counting as hung."""


@dataclass(slots=True)
class InFlight:
    """The events written since the last commit."""

    written: list[Sequence[Event]] = field(default_factory=list)
    """Events and dead letters."""
    count: int = 0
    size_bytes: int = 0
    brought_new: bool = False
    """One of them will be recognised at its next delivery."""


class Publisher:
    """Publishes the batches of one generation into the sink."""

    def __init__(
        self,
        child: ChildContext,
        metrics: Metrics,
        settings: Settings,
        sink: Sink,
        resume: Channel[Checkpoint],
        parsers: list[Channel[Batch | End]],
        last: Checkpoint | None = None,
    ) -> None:
        self._child = child
        self._metrics = metrics
        self._settings = settings
        self._sink = sink
        self._resume = resume
        self._parsers = parsers
        self._last = last
        """The last commit of an earlier publisher of this program."""
        self._destination = destination_of(settings)
        self._policy = self._destination.commit_policy
        self._replay = settings.replay
        self._overlap_ms = int(settings.upstream.overlap_seconds * 1000)
        self._window_ms = max(int(settings.window_seconds * 1000), self._overlap_ms)
        self._window = Window(self._window_ms, settings.max_entries)
        self._admission: Admission
        """Set by `_open`."""
        self._occurrences = Occurrences(secrets.token_hex(8))
        self._window_warnings = Throttle(WARNING_SECONDS)
        self._dead_letter_warnings = Throttle(WARNING_SECONDS)
        self._sequence = 0
        self._known = sink.is_published if settings.replay is None else self._is_published
        self._existing = 0
        """Events of the current batch that the destination had before this replay."""
        self._resumed: Position = {}
        """The position at the start of this generation."""
        self._furthest: Position = {} if last is None else last.position
        """The greatest position that this program has reached."""
        self._in_flight: InFlight | None = None
        self._last_commit = 0.0
        """Monotonic time at which the last commit began."""
        self._checkpoint = Checkpoint({}, 0, 0)

    def run(self) -> None:
        """Publish until the end marker or a limit; then commit and close."""
        self._open()
        try:
            while self._left():
                self._child.beat()
                channel = self._next_channel()
                batch = channel.get(self._wait())
                self._metrics.queue_depth.labels(channel.name).set(channel.depth())
                if isinstance(batch, End):
                    break
                if batch is None:
                    self._sink.poll()
                else:
                    self._take(batch)
                self._commit_if_due()
            self._commit()
            self._sink.finish()
            self._child.farewell()
        finally:
            self._sink.close()

    def _open(self) -> None:
        with self._child.busy(OPEN_ALLOWED_SECONDS):
            opened = self._sink.open(self._settings.resume)
            self._admission = Admission(self._window, ask_each=not opened.window_complete)
            start = self._start(opened.checkpoint)
            if start.position_lost:
                log.warning(
                    "the stored position is gone: the destination was emptied or replaced while the "
                    "relay ran. No new event is lost, and events published earlier are not published "
                    "again"
                )
            log.info("%s", start.message)
            self._checkpoint = start.checkpoint
            is_stored = self._checkpoint is opened.checkpoint
            if is_stored:
                # The reader connects while the destination is read back.
                self._resume.put(self._checkpoint, self._child.beat)
            self._window.restore(start.checkpoint.position if start.resumed else {}, opened.window)
            if not is_stored:
                # A crash before the first event must not bring back a position that was given up.
                self._sink.commit(self._checkpoint)
                self._resume.put(self._checkpoint, self._child.beat)
            self._resumed = self._checkpoint.position
            self._furthest = join(self._furthest, self._resumed)
            self._show_position()
        self._child.ready = True
        self._child.beat()

    def _start(self, stored: Checkpoint | None) -> Start:
        if self._replay is not None:
            return choose_replay_start(
                stored,
                resume=self._settings.resume,
                sources=self._replay.first_ms,
                resolved_ms=self._replay.resolved_ms,
                incomplete=self._replay.incomplete,
            )
        return choose_start(
            stored,
            self._last,
            resume=self._settings.resume,
            since_ms=self._settings.since_ms,
            # "Now" is one overlap back: an event that reaches Kafka late, dated before the first
            # connection, is then not skipped by the first reconnect either.
            now_ms=time.time_ns() // 1_000_000 - self._overlap_ms,
        )

    def _show_position(self) -> None:
        self._child.position = in_words(self._checkpoint.position)
        self._child.details = self._checkpoint

    def _left(self) -> int:
        """The number of events that may still be published."""
        until = None if self._replay is None else self._replay.until_total
        done = self._checkpoint.done
        return sys.maxsize if until is None or done is None else max(until - done.total, 0)

    def _next_channel(self) -> Channel[Batch | End]:
        return self._parsers[self._sequence % len(self._parsers)]

    def _wait(self) -> float:
        if self._in_flight is None:
            return POLL_SECONDS
        since_last = time.monotonic() - self._last_commit
        return max(self._policy.interval_seconds - since_last, 0.0)

    def _take(self, batch: Batch) -> None:
        if batch.sequence != self._sequence:
            raise AssertionError(f"batch {batch.sequence} arrived instead of {self._sequence}")
        self._sequence += 1
        batch = self._occurrences.distinguish(batch)
        left = self._left()
        while left < len(batch.events) and left and count_published(batch.events) > left:
            # Some of the first half may be repeats.
            first, batch = halves(batch, left)
            self._admit(first)
            left = self._left()
        if left:
            self._admit(batch)

    def _admit(self, batch: Batch) -> None:
        admitted = self._admission.admit(batch, self._checkpoint, self._known)
        repeated = admitted.repeated
        if self._replay is not None:
            # The window holds what this replay published. Other known events were there before it.
            self._metrics.existing_skipped.inc(self._existing)
            repeated -= self._existing
            self._existing = 0
        if repeated:
            self._metrics.duplicates_dropped.inc(repeated)
        if admitted.before_start:
            self._metrics.before_start_dropped.inc(admitted.before_start)
        advanced = self._checkpoint.advanced(
            admitted.timestamps_ms, batch.started_ms, batch.clock_ms
        )
        if advanced.done is not None:
            advanced = replace(
                advanced, done=advanced.done.after(batch, count_published(admitted.events))
            )
        if not (self._checkpoint.clock_ms or any(advanced.position.values())):
            # A clock in a checkpoint means that something was delivered.
            advanced = replace(advanced, clock_ms=0)
        # The clock alone is no reason to commit.
        moved = replace(advanced, clock_ms=0) != replace(self._checkpoint, clock_ms=0)
        self._checkpoint = advanced
        if not (admitted.events or moved):
            return
        self._sink.write(admitted.events)
        faultpoints.passing(faultpoints.WRITTEN)
        if self._in_flight is None:
            self._in_flight = InFlight()
        flying = self._in_flight
        flying.written.append(admitted.events)
        flying.count += len(admitted.events)
        flying.size_bytes += data_bytes_of(admitted.events)
        if not flying.brought_new:
            flying.brought_new = any(map(is_recognisable, identities_of(admitted.events)))

    def _is_published(self, event: Event) -> bool:
        is_known = self._sink.is_published(event)
        # Events up to the resumed position are repeats, as after any reconnect.
        self._existing += is_known and event.timestamp_ms > self._resumed.get(event.source, 0)
        return is_known

    def _commit_if_due(self) -> None:
        flying = self._in_flight
        if flying is not None and self._policy.due(
            time.monotonic() - self._last_commit,
            flying.count,
            flying.size_bytes,
            self._next_channel().depth() > 0,
        ):
            self._commit()

    def _commit(self) -> None:
        flying = self._in_flight
        if flying is None:
            return
        started = self._last_commit = time.monotonic()
        # The sink keeps the heartbeat going for as long as this takes.
        self._checkpoint = self._checkpoint.remembering(self._window_ms)
        with self._metrics.commit_seconds.time():
            dead_letters, repeated = self._sink.commit(self._checkpoint)
            faultpoints.passing(faultpoints.COMMITTED)
            self._policy = self._policy.after(time.monotonic() - started)
            published = flying.count - len(dead_letters) - repeated
            self._note_progress(flying, repeated)
            self._child.published_total += published
            self._take_back(dead_letters)
            self._show_position()
        # The parent must know what is durable, whatever happens to this process next.
        self._child.beat(at_once=True)
        self._in_flight = None
        self._window.advance(self._checkpoint.position, self._checkpoint.clock_ms)
        live_ms = 0 if self._replay else max(self._checkpoint.position.values(), default=0)
        self._destination.record_commit(self._metrics, published, live_ms)
        if repeated:
            self._metrics.duplicates_dropped.inc(repeated)
        self._report_dead_letters(dead_letters)
        self._report(flying)

    def _note_progress(self, flying: InFlight, repeated: int) -> None:
        """Count the commit as progress if it published something new.

        Otherwise a pipeline that always fails at the same place would restart for ever, because it
        publishes the same unrecognisable events each time.
        """
        furthest = join(self._furthest, self._checkpoint.position)
        moved = any(reached > self._furthest.get(at, 0) for at, reached in furthest.items())
        self._furthest = furthest
        new = flying.brought_new and repeated < flying.count
        self._child.committed_total += moved or new

    def _take_back(self, dead_letters: list[Event]) -> None:
        """Do not count events as published that the destination refused."""
        done = self._checkpoint.done
        for letter in dead_letters:
            if done is not None and letter.reason == TOO_LARGE:
                done = done.less(letter.source)
        self._checkpoint = replace(self._checkpoint, done=done)

    def _report_dead_letters(self, letters: list[Event]) -> None:
        for letter in letters:
            self._metrics.dead_letters.labels(letter.reason).inc()
        if letters and self._dead_letter_warnings.due():
            log.warning(
                "%d events could not be published (%s): they are kept as dead letters, and the stream "
                "goes on",
                len(letters),
                ", ".join(sorted({letter.reason for letter in letters})),
            )

    def _report(self, flying: InFlight) -> None:
        metrics = self._metrics
        now = time.time()
        every = max(flying.count // LAG_SAMPLES, 1)
        times = list(chain.from_iterable(map(times_of, flying.written)))
        dated = list(filter(None, map(time_ms, times[::-every])))
        if dated:
            metrics.last_event.set(dated[0] / 1000)
        for (topic, partition), timestamp_ms in self._checkpoint.position.items():
            if timestamp_ms:
                metrics.position.labels(topic, str(partition)).set(timestamp_ms / 1000)
        if self._replay is None:
            # The age of history is no lag.
            self._report_lag(dated, now)
        metrics.window_identities.set(len(self._window))
        self._warn_of_forgotten(self._window.take_forgotten())

    def _report_lag(self, dated: list[int], now: float) -> None:
        lags = [max(now - dt_ms / 1000, 0.0) for dt_ms in dated]
        possible = [seconds for seconds in lags if seconds <= MAX_LAG_SECONDS]
        for seconds in possible:
            self._metrics.lag_seconds.observe(seconds)
        if possible:
            self._child.lag_seconds = possible[0]
        if len(possible) < len(lags):
            self._metrics.lag_left_out.inc(len(lags) - len(possible))

    def _warn_of_forgotten(self, forgotten: int) -> None:
        if not forgotten:
            return
        self._metrics.window_forgotten.inc(forgotten)
        if self._window_warnings.due():
            log.warning(
                "--dedup.maxEntries (%d) is reached: the oldest identities are forgotten early, and a "
                "reconnect may publish their events twice. Raise it",
                self._settings.max_entries,
            )


def run(
    child: ChildContext,
    metrics: Metrics,
    settings: Settings,
    reached: bool,
    last: Checkpoint | None,
    resume: Channel[Checkpoint],
    parsers: list[Channel[Batch | End]],
) -> None:
    """Publish in this process.

    Args:
        reached: an earlier publisher of this program had the destination open.
        last: the checkpoint that it committed last.
    """
    sink = destination_of(settings).make_sink(SinkContext(child, metrics, settings, reached))
    Publisher(child, metrics, settings, sink, resume, parsers, last).run()
