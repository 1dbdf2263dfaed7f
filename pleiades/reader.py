"""Process 1: bytes → whole frames; reconnects, and asks for position − overlap.

The only stage that knows the network, and the only one with a clock that matters: `Frames.clock_ms`
is what the publisher's window is measured by, so that both always mean the same time.
"""

from __future__ import annotations

import logging
import random
import time
from itertools import count

from pleiades.config.settings import Settings
from pleiades.core.falling_behind import PERIOD_SECONDS, FallingBehind
from pleiades.core.framing import ColumnarFrames
from pleiades.core.ids import ParsedIds
from pleiades.core.landmark import Landmark
from pleiades.core.past_end import PastEnd
from pleiades.core.pauses import Pauses
from pleiades.core.position import MAX_LAST_EVENT_ID_BYTES, Checkpoint, ResumeCursor
from pleiades.core.units import iso_time
from pleiades.core.wire import End, Frames, TopicPartition, compose_id
from pleiades.runtime.channel import POLL_SECONDS, Channel
from pleiades.runtime.child import Life
from pleiades.runtime.errors import Stopped, Transient
from pleiades.runtime.metrics import Metrics
from pleiades.upstream.http import CONNECT_TIMEOUT_SECONDS, Connection, Upstream
from pleiades.upstream.refusals import TopicsNotAvailable, named
from pleiades.upstream.retrying import retrying
from pleiades.upstream.session import PAST_END, Ended, Received, frames

log = logging.getLogger(__name__)

WATCH_SECONDS = 1.0
"""How often the reader looks whether it falls behind."""
MAX_CLOCK_DIFFERENCE_MS = 3_600_000
"""An upstream whose clock is further from ours has none: a proxy or a device after a reset."""
MAX_OMISSIONS = 5
"""So many requests in a row, each without the topics that the refusal of the one before names. The
service names all of them at once. What is known by then is kept for the next try, after a pause."""


class Reader:
    """Reads the upstream for one generation."""

    def __init__(
        self,
        life: Life,
        metrics: Metrics,
        settings: Settings,
        resume: Channel[Checkpoint],
        parsers: list[Channel[Frames | End]],
    ) -> None:
        self._life = life
        self._metrics = metrics
        self._settings = settings.upstream
        self._since_ms = settings.since_ms
        self._resume = resume
        self._parsers = parsers
        self._upstream = Upstream(settings.upstream)
        self._sequence = count()
        self._connection = 0
        self._idle = False
        self._last_event_id = b""
        """The last that came at all."""
        self._last_id_here = b""
        """The last on this connection; empty where that is not known."""
        self._asked: str | None = None
        self._pauses = Pauses()
        self._past_end = PastEnd()
        self._clock_ms = 0
        self._open: Connection | None = None
        self._falling_behind = FallingBehind()
        self._watched_at = 0.0
        self._course = ResumeCursor(0, int(settings.upstream.overlap_seconds * 1000))
        self._landmarks: dict[TopicPartition, Landmark] = {}
        """Of this connection: of the topic-partitions of which what is known has not come yet."""
        self._missing_topics: set[str] = set()
        """Those of which it was said that the upstream does not have them."""
        self._crowded_out = 0
        """Of so many topic-partitions it was said that they are not asked for."""

    def run(self) -> None:
        """Read until a stop is requested; then send the end marker to every parser."""
        self._life.allowed_seconds = CONNECT_TIMEOUT_SECONDS + self._settings.idle_timeout_seconds
        try:
            self._start()
            insist = retrying(self._pauses, self._announce, self._life.pause)
            while True:
                insist(self._one_connection)
                # Jitter spreads out instances that failed together; it guards no secret.
                pause_seconds = self._pauses.after_end(random.random())  # noqa: S311
                if pause_seconds:
                    self._life.pause(pause_seconds)
        except Stopped:
            log.debug("stopped reading")
        self._life.ready = False
        self._metrics.connected.set(0)
        for channel in self._parsers:
            channel.put(End(), self._life.beat)
        for channel in self._parsers:
            channel.flush(self._life.beat)

    def _start(self) -> None:
        checkpoint = None
        while checkpoint is None:
            self._life.check()
            self._life.beat()
            checkpoint = self._resume.get(POLL_SECONDS)
        self._clock_ms = checkpoint.clock_ms
        self._course.started_ms = checkpoint.started_ms
        self._course.floors = dict(checkpoint.known_from)
        self._course.resume(checkpoint.position)
        self._tell_of_crowding()

    def _now_ms(self) -> int:
        self._clock_ms = max(self._clock_ms, time.time_ns() // 1_000_000)
        return self._clock_ms

    def _announce(self, error: Transient, pause_seconds: float) -> None:
        self._metrics.recv_errors.labels(error.kind).inc()
        log.warning("%s; trying again in %.1f s", error, pause_seconds)

    def _one_connection(self) -> None:
        """Connect and read to the connection's end; returns if that end is a normal one.

        Raises:
            Transient: it could not be opened, or ended soon and brought nothing new: back off.
        """
        self._pauses.opened(self._course.position, self._last_event_id, time.monotonic())
        started = self._now_ms()
        connection, asked = self._connect(started)
        try:
            if self._start_lay_ahead(connection.server_ms, started):
                return
            self._connection += 1
            self._last_id_here = b""
            self._asked = None if asked is None else compose_id(asked)
            self._open = connection
            self._life.ready = True
            self._metrics.connected.set(1)
            # An idle stream is normal: its reconnects are no news.
            log.log(
                logging.DEBUG if self._idle else logging.INFO,
                "connected to %s%s",
                self._upstream.address,
                "" if asked is None else ", resuming",
            )
            # Makes the start durable before the first event comes, perhaps hours later.
            self._send(b"", b"")
            reason = self._read(connection, asked)
        finally:
            self._open = None
            connection.close()
            self._metrics.unread_bytes.set(0)
            self._life.ready = False
            self._metrics.connected.set(0)
        self._metrics.reconnects.labels(reason).inc()
        self._idle = reason == "idle"
        useful = self._pauses.ended(
            self._course.position, self._last_event_id, time.monotonic(), self._idle
        )
        if self._idle:
            log.debug("silent for %.0f s: reconnecting", self._settings.idle_timeout_seconds)
        elif reason == PAST_END:
            log.info(
                "the first event of a topic came: reconnecting, to miss none that came before it"
            )
        elif not useful:
            raise Transient(f"the connection ended ({reason}) without anything new", "empty")
        else:
            log.info("the connection ended (%s): reconnecting", reason)

    def _connect(self, clock_ms: int) -> tuple[Connection, dict[TopicPartition, int] | None]:
        """A new connection, and what it asked for; None: for all from the start on.

        Topics that the upstream does not have are left out of it.

        Raises:
            TopicsNotAvailable: it has none of them.
            RefusedByUpstream, Transient: see `Upstream.connect`.
        """
        course = self._course
        for _ in range(MAX_OMISSIONS):
            asked = course.request(clock_ms) if course.position else None
            self._life.beat()
            try:
                with self._life.interruptible():
                    connection = self._upstream.connect(
                        None if asked is None else compose_id(asked), course.started_ms
                    )
            except TopicsNotAvailable as error:
                if {topic for topic, _ in asked or ()} <= error.topics:
                    raise
                course.left_out |= error.topics
                self._tell_of_missing(error.topics - self._missing_topics)
                continue
            returned = self._missing_topics - course.left_out
            if returned:
                log.info("the upstream has %s again: going on where it was left", named(returned))
            self._missing_topics = set(course.left_out)
            self._metrics.topics_left_out.set(len(course.left_out))
            # The next connection asks for them again.
            course.left_out.clear()
            return connection, asked
        raise Transient(
            "the upstream names other topics that it does not have with every answer, "
            f"{len(course.left_out)} so far; nothing is lost while it keeps its history",
            "status_4xx",
        )

    def _tell_of_missing(self, topics: frozenset[str]) -> None:
        if not topics:
            return
        self._missing_topics |= topics
        log.warning(
            "the upstream does not have %s at present: left out, and the other topics go on. The "
            "position is kept, and every new connection asks again: if the topic returns, nothing is "
            "lost that the upstream still has then. If it was dropped for good, nothing is to be done",
            named(topics),
        )

    def _tell_of_crowding(self) -> None:
        crowded_out = self._course.crowded_out
        if len(crowded_out) == self._crowded_out:
            return
        self._crowded_out = len(crowded_out)
        log.warning(
            "a request of %d bytes has no room for all topic-partitions that have delivered events: %d "
            "of them are not asked for (%s), and their next events will be missing. Their stored "
            "positions are kept. If these are topics of yours, read fewer streams with one instance; if "
            "not, the upstream makes up names: check --upstream.url",
            MAX_LAST_EVENT_ID_BYTES,
            len(crowded_out),
            named({topic for topic, _ in crowded_out}),
        )

    def _start_lay_ahead(self, server_ms: int | None, now_ms: int) -> bool:
        """Whether the start was in the upstream's future, and is now set back: ask again.

        The future means "latest" to the upstream, at every reconnect anew: what came between would
        be lost. Once something was delivered the start stays, for upstream was asked by it.
        """
        if server_ms is None or self._since_ms is not None or any(self._course.position.values()):
            return False
        if abs(server_ms - now_ms) > MAX_CLOCK_DIFFERENCE_MS:
            log.warning(
                "the upstream's clock and this machine's are %.0f s apart: one of them is wrong. If "
                "it is this one's, events after a new start may be missing: set the clock",
                (now_ms - server_ms) / 1000,
            )
            return False
        # An HTTP date has whole seconds.
        if self._course.started_ms <= server_ms + 999:
            return False
        self._course.started_ms = max(server_ms - self._course.overlap_ms, 0)
        return True

    def _read(self, connection: Connection, asked: dict[TopicPartition, int] | None) -> str:
        """Read to the connection's end; returns why it ended."""
        course = self._course
        self._past_end.connected(asked, course.position, course.started_ms)
        self._landmarks = {
            source: Landmark(reached, course.started_ms, course.overlap_ms)
            for source in asked or ()
            if (reached := course.position[source])
        }
        received = frames(connection, self._past_end)
        while True:
            self._life.beat()
            try:
                with self._life.interruptible():
                    piece = next(received)
            except Ended as ended:
                return ended.reason
            self._metrics.recv_bytes.inc(piece.size_bytes)
            if piece.oversized:
                self._metrics.oversized_frames.inc(piece.oversized)
                log.warning("skipped an SSE frame of more than 8 MiB; it can't be an event")
                # Its id was skipped with it.
                self._last_id_here = b""
            if piece.content:
                self._take(piece)
            self._leave(piece.left, asked)
            self._watch("this machine is too busy for the reader: look at its CPU")

    def _watch(self, cause: str) -> None:
        """Say if the relay falls behind.

        Args:
            cause: the likely one, if it does.
        """
        now = time.monotonic()
        if self._open is None or now - self._watched_at < WATCH_SECONDS:
            return
        self._watched_at = now
        unread_bytes = self._open.unread_bytes()
        self._metrics.unread_bytes.set(unread_bytes)
        reached_ms = max(self._course.position.values(), default=0) or self._course.started_ms
        lag_seconds = self._now_ms() / 1000 - reached_ms / 1000
        if self._falling_behind.observe(now, lag_seconds, unread_bytes):
            log.warning(
                "falling behind: for the last %.0f s events came faster than they were relayed, and the "
                "newest one is %.0f s old. Nothing is lost while the upstream keeps its history. Likely "
                "cause: %s",
                PERIOD_SECONDS,
                lag_seconds,
                cause,
            )

    def _take(self, piece: Received) -> None:
        self._pauses.delivered(len(piece.ids), piece.retry_ms)
        self._look_for_gap(piece.told)
        self._course.observe(piece.told.greatest())
        self._tell_of_crowding()
        before = self._last_id_here
        if piece.ids:
            self._last_event_id = self._last_id_here = piece.ids[-1]
        self._send(piece.content, before)

    def _leave(self, left: ParsedIds, asked: dict[TopicPartition, int] | None) -> None:
        """Take note of events that are asked for again, on a connection of their own."""
        if not left.timestamps_ms:
            return
        # Their topics are known from now on. Where they are is not: they have delivered nothing.
        self._course.observe(dict.fromkeys(left.timestamps_ms, 0))
        if asked is not None:
            return
        oldest_ms = self._course.started_ms - self._course.overlap_ms
        columns = [[time for time in column if time] for column in left.timestamps_ms.values()]
        old = [time for column in columns for time in column if time <= oldest_ms]
        # A later one may be dated back by years, and is rightly there: the first is the one that is
        # found.
        if any(column and column[0] <= oldest_ms for column in columns):
            self._metrics.before_start_dropped.inc(len(old))
            log.warning(
                "the upstream was asked for events from %s on and sent older ones, from %s: they are "
                "dropped. Asking again by topic",
                iso_time(self._course.started_ms),
                iso_time(min(old)),
            )

    def _look_for_gap(self, told: ParsedIds) -> None:
        if not self._landmarks:
            return
        for source, column in told.timestamps_ms.items():
            landmark = self._landmarks.get(source)
            if landmark is None:
                continue
            for timestamp_ms in column:
                if timestamp_ms is not None and landmark.is_missed(timestamp_ms):
                    self._tell_of_gap(source, timestamp_ms)
            if landmark.settled:
                del self._landmarks[source]

    def _tell_of_gap(self, source: TopicPartition, timestamp_ms: int) -> None:
        self._metrics.gaps.inc()
        log.warning(
            "%s/%d resumed %.0f s after the position: the upstream no longer has what "
            "lay between, those events are lost to this relay",
            *source,
            (timestamp_ms - self._course.position[source]) / 1000,
        )

    def _send(self, content: bytes | ColumnarFrames, last_event_id: bytes) -> None:
        sequence = next(self._sequence)
        frames = Frames(
            sequence,
            self._connection,
            content,
            last_event_id,
            self._course.started_ms,
            self._now_ms(),
            asked=self._asked,
        )
        channel = self._parsers[sequence % len(self._parsers)]
        channel.put(frames, self._alive)
        self._metrics.queue_depth.labels(channel.name).set(channel.depth())

    def _alive(self) -> None:
        """Called while a queue is full."""
        self._life.beat()
        self._watch(
            "the parser or the destination is slower than the upstream: look at the commit time and "
            "the queues in the metrics, or give --parsers more processes"
        )
        self._life.check()
