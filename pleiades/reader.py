"""Process 1: reads the stream, and asks for `position − overlap` after every connection.

The only stage that knows the network, and the only one whose clock matters: the publisher's window is
measured by `Frames.clock_ms`, so that both always mean the same time.
"""

from __future__ import annotations

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from typing import Any

from pleiades.config.settings import Settings
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import Delivered, End, Frames, PositionRequest
from pleiades.core.falling_behind import PERIOD_SECONDS, FallingBehind
from pleiades.core.framing import last_id_in
from pleiades.core.position import Position, join
from pleiades.core.resume_cursor import ResumeCursor
from pleiades.core.sse_id import MalformedId, parse_id
from pleiades.runtime.channel import POLL_SECONDS, Channel
from pleiades.runtime.child import ChildContext
from pleiades.runtime.errors import Stopped
from pleiades.runtime.metrics import Metrics
from pleiades.upstream.frames import NOTHING, Closed, Received
from pleiades.upstream.http import CONNECT_TIMEOUT_SECONDS, Upstream
from pleiades.upstream.session import EMPTY, Failed, Finished, Item, Opened, Session

log = logging.getLogger(__name__)

WATCH_SECONDS = 1.0
"""The interval of the check for falling behind."""
MAX_CLOCK_DIFFERENCE_MS = 3_600_000
"""A clock further from ours is not believed: it is that of a proxy, or of a device after a reset."""


class BaseReader(ABC):
    """Both kinds of readers: a checkpoint comes in, frames go out, round the parsers."""

    def __init__(
        self,
        child: ChildContext,
        metrics: Metrics,
        settings: Settings,
        resume: Channel[Checkpoint],
        parsers: list[Channel[Frames | PositionRequest | End]],
        delivered: list[Channel[Delivered]],
    ) -> None:
        self._child = child
        self._metrics = metrics
        self._settings = settings
        self._resume = resume
        self._parsers = parsers
        self._answers = delivered
        self._sequence = count()

    def run(self) -> None:
        """Read to the end, or until a stop is requested; then send the end marker to every parser."""
        try:
            checkpoint = None
            while checkpoint is None:
                self._alive()
                checkpoint = self._resume.get(POLL_SECONDS)
            self._read(checkpoint)
        except Stopped:
            log.debug("stopped reading")
        self._show_open(0)
        for channel in self._parsers:
            channel.put(End(), self._child.beat)

    @abstractmethod
    def _read(self, checkpoint: Checkpoint) -> None:
        """Read from a checkpoint on; `Stopped` ends it."""

    def _alive(self) -> None:
        """Called again and again while this process waits."""
        self._child.beat()
        self._child.check()

    def _show_open(self, connections: int) -> None:
        self._child.ready = connections > 0
        self._metrics.connected.set(connections)

    def _send(self, frames: Frames) -> None:
        channel = self._parsers[frames.sequence % len(self._parsers)]
        channel.put(frames, self._alive)
        self._metrics.queue_depth.labels(channel.name).set(channel.untaken())

    def _count(self, item: Item | Finished) -> None:
        """Count in the metrics what happened."""
        if isinstance(item, Received):
            self._metrics.recv_bytes.inc(item.size_bytes)
            if item.oversized:
                self._metrics.oversized_frames.inc(item.oversized)
            if item.gaps:
                self._metrics.gaps.inc(len(item.gaps))
        elif isinstance(item, Closed):
            self._metrics.reconnects.labels(item.reason).inc()
        elif isinstance(item, Finished):
            self._metrics.gaps.inc(item.gap)
        elif isinstance(item, Failed):
            self._metrics.recv_errors.labels(item.kind).inc()


class Reader(BaseReader):
    """Reads the live stream for one generation."""

    _session: Session | None = None
    _watched_at = 0.0
    _latest_id = b""
    _reached_ms = 0

    def _read(self, checkpoint: Checkpoint) -> None:
        upstream = self._settings.upstream
        self._child.allowed_seconds = CONNECT_TIMEOUT_SECONDS + upstream.idle_timeout_seconds
        self._clock_ms = checkpoint.clock_ms
        self._falling_behind = FallingBehind()
        overlap_ms = int(upstream.overlap_seconds * 1000)
        floors = dict(checkpoint.known_from)
        cursor = self._cursor = ResumeCursor(checkpoint.started_ms, overlap_ms, floors=floors)
        cursor.resume(checkpoint.position)
        self._reached_ms = max(checkpoint.position.values(), default=0)
        self._session = session = Session(
            Upstream(upstream),
            cursor,
            upstream.idle_timeout_seconds,
            self._now_ms,
            self._waiting,
            self._child.pause,
            delivered=self._delivered,
        )
        connection: tuple[int, str | None] = 0, None
        known: Position = {}
        needs_new = False
        with closing(session.items()) as items:
            for item in items:
                self._count(item)
                if isinstance(item, Failed):
                    self._child.report_problem(item.why)
                    needs_new = item.kind == EMPTY
                elif isinstance(item, Opened) and not self._set_start_back(item.server_ms):
                    if not needs_new:
                        self._note_recovery()
                    known = dict(cursor.position)
                    connection = connection[0] + 1, item.asked
                    self._show_open(1)
                    self._metrics.topics_left_out.set(item.left_out)
                    # Makes the start durable before the first event comes, perhaps hours later.
                    self._relay(NOTHING, connection)
                elif isinstance(item, Received):
                    # Ids are left unread only after the known events have come again.
                    if item.has_events and (item.ids is None or cursor.position != known):
                        self._note_recovery()
                    for gap in item.gaps:
                        log.warning("%s: they are lost to this relay", gap)
                    if item.before_start:
                        self._metrics.before_start_dropped.inc(item.before_start)
                    if item.blob:
                        self._relay(item, connection)
                        self._latest_id = last_id_in(item.blob) or self._latest_id
                    self._watch("this machine is too busy for the reader: look at its CPU")
                elif isinstance(item, Closed):
                    if item.is_silent or item.brought_new:
                        self._note_recovery()
                    self._show_open(0)
                    self._metrics.unread_bytes.set(0)

    def _note_recovery(self) -> None:
        seconds = self._child.clear_problem()
        if seconds is not None:
            log.info("the upstream serves again, after %.1f s", seconds)

    def _relay(self, received: Received, connection: tuple[int, str | None]) -> None:
        sequence, started_ms = next(self._sequence), self._cursor.started_ms
        self._send(received.frames(sequence, connection, started_ms, self._now_ms()))

    def _delivered(self) -> Delivered:
        """Ask the parsers what the frames since the last call have brought."""
        timestamps_ms: Position = {}
        retry = None
        for channel in self._parsers:
            channel.put(PositionRequest(), self._alive)
        for answers in self._answers:
            found = None
            while found is None:
                self._alive()
                found = answers.get(POLL_SECONDS)
            timestamps_ms = join(timestamps_ms, found.timestamps_ms)
            retry = max(filter(None, (retry, found.retry)), default=None)
        return Delivered(timestamps_ms, retry)

    def _now_ms(self) -> int:
        """The wall clock, which never goes back."""
        self._clock_ms = max(self._clock_ms, time.time_ns() // 1_000_000)
        return self._clock_ms

    @contextlib.contextmanager
    def _waiting(self, _seconds: float) -> Iterator[None]:
        self._child.beat()
        with self._child.interruptible():
            yield

    def _set_start_back(self, server_ms: int | None) -> bool:
        """Move a start that lies in the upstream's future before its clock; return whether it did.

        To the upstream the future means "latest", at every reconnect anew: events in between would be
        lost. Once something was delivered the start stays, because requests were made by it.
        """
        cursor = self._cursor
        if (
            server_ms is None
            or self._settings.since_ms is not None
            or any(cursor.position.values())
        ):
            return False
        ahead_ms = self._now_ms() - server_ms
        if abs(ahead_ms) > MAX_CLOCK_DIFFERENCE_MS:
            log.warning(
                "the upstream's clock and this machine's are %.0f s apart: one of them is wrong. If it "
                "is this one's, events after a new start may be missing: set the clock",
                ahead_ms / 1000,
            )
            return False
        # An HTTP date has whole seconds.
        if cursor.started_ms <= server_ms + 999:
            return False
        cursor.started_ms = max(server_ms - cursor.overlap_ms, 0)
        return True

    def _alive(self) -> None:
        super()._alive()
        self._watch(
            "the parser or the destination is slower than the upstream: look at the commit time and "
            "the queues in the metrics, or give --parsers more processes"
        )

    def _watch(self, cause: str) -> None:
        """Warn if the relay falls behind; `cause` is the likely one."""
        now = time.monotonic()
        if self._session is None or now - self._watched_at < WATCH_SECONDS:
            return
        unread_bytes = self._session.unread_bytes()
        self._watched_at = now
        self._metrics.unread_bytes.set(unread_bytes)
        with contextlib.suppress(MalformedId):
            times = [time for _, time in parse_id(self._latest_id) if time]
            self._reached_ms = max([self._reached_ms, *times])
        lag_seconds = self._now_ms() / 1000 - (self._reached_ms or self._cursor.started_ms) / 1000
        if self._falling_behind.observe(now, lag_seconds, unread_bytes):
            log.warning(
                "falling behind: for the last %.0f s events came faster than they were relayed, and the "
                "newest one is %.0f s old. Nothing is lost while the upstream keeps its history. Likely "
                "cause: %s",
                PERIOD_SECONDS,
                lag_seconds,
                cause,
            )


def run(*arguments: Any) -> None:
    """Read the live stream in this process; the arguments are those of `Reader`."""
    Reader(*arguments).run()
