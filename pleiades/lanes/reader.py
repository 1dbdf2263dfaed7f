"""The lanes of one generation, and what passes from them to the parsers.

The lanes are threads: they wait for sockets most of the time. Only the main one touches channels,
metrics and the heartbeat; it takes what the lanes bring through one bounded inbox.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from itertools import count
from typing import NamedTuple

from pleiades.config.settings import ReplaySettings, Settings
from pleiades.core.framing import ColumnarFrames
from pleiades.core.pace import Pace
from pleiades.core.position import Checkpoint, Done
from pleiades.core.wire import End, Frames, TopicPartition
from pleiades.lanes.lane import Closed, Finished, Lane, Message, Opened, Plan, Received, Refused
from pleiades.runtime.channel import POLL_SECONDS, Channel
from pleiades.runtime.child import Life
from pleiades.runtime.errors import Stopped
from pleiades.runtime.metrics import RECONNECT_REASONS, Metrics
from pleiades.upstream.http import Upstream

log = logging.getLogger(__name__)

INBOX = 4
"""Reads of a socket that wait for the main thread: about 1 MiB."""


class Failed(NamedTuple):
    """A lane ended with this error."""

    error: BaseException


class RangeReader:
    """Reads a range for one generation."""

    def __init__(
        self,
        life: Life,
        metrics: Metrics,
        settings: Settings,
        replay: ReplaySettings,
        resume: Channel[Checkpoint],
        parsers: list[Channel[Frames | End]],
    ) -> None:
        self._life = life
        self._metrics = metrics
        self._settings = settings.upstream
        self._replay = replay
        self._resume = resume
        self._parsers = parsers
        self._sequence = count()
        self._connections = count(1)
        self._open = 0
        self._pace = Pace(replay.rate)
        self._inbox: queue.Queue[Message | Failed] = queue.Queue(INBOX)
        self._lanes: dict[TopicPartition, Lane] = {}
        """Those that are at work."""

    def run(self) -> None:
        """Read until all of the range has come, or a stop is requested; then send the end marker."""
        try:
            self._read(self._checkpoint())
        except Stopped:
            log.debug("stopped reading")
        self._life.ready = False
        self._metrics.connected.set(0)
        for channel in self._parsers:
            channel.put(End(), self._life.beat)
        for channel in self._parsers:
            channel.flush(self._life.beat)

    def _checkpoint(self) -> Checkpoint:
        while True:
            self._alive()
            checkpoint = self._resume.get(POLL_SECONDS)
            if checkpoint is not None:
                return checkpoint

    def _read(self, checkpoint: Checkpoint) -> None:
        done = checkpoint.done or Done()
        missing = [source for source in sorted(checkpoint.position) if source not in done.finished]
        unfinished = set(missing)
        work = deque(self._plan(source, checkpoint) for source in missing)
        for number in range(min(self._replay.connections, len(work))):
            # Daemons: one that waits for a socket must not keep the process from ending.
            name = f"lane-{number}"
            threading.Thread(target=self._work, args=(work,), name=name, daemon=True).start()
        while unfinished:
            self._alive()
            try:
                message = self._inbox.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(message, Failed):
                raise message.error
            if isinstance(message, Finished):
                unfinished.discard(message.source)
            self._take(message)

    def _plan(self, source: TopicPartition, checkpoint: Checkpoint) -> Plan:
        replay = self._replay
        return Plan(
            source,
            replay.range.begin.of(source),
            replay.range.end.of(source),
            checkpoint.position[source],
            replay.first_ms.get(source),
            int(self._settings.overlap_seconds * 1000),
            checkpoint.clock_ms,
            replay.allow_gap,
            checkpoint.known_from.get(source, 0),
        )

    def _work(self, work: deque[Plan]) -> None:
        """What a thread does: one lane after the other."""
        try:
            while (plan := _next(work)) is not None:
                lane = Lane(
                    plan,
                    Upstream(self._settings),
                    self._settings.idle_timeout_seconds,
                    self._inbox.put,
                    self._connections,
                )
                self._lanes[plan.source] = lane
                if self._replay.range.is_empty(plan.source):
                    self._inbox.put(Finished(plan.source))
                else:
                    lane.run()
                del self._lanes[plan.source]
        except BaseException as error:  # raised again in the main thread
            self._inbox.put(Failed(error))

    def _take(self, message: Message) -> None:
        metrics = self._metrics
        if isinstance(message, Received):
            metrics.recv_bytes.inc(message.size_bytes)
            if message.oversized:
                metrics.oversized_frames.inc(message.oversized)
                log.warning("skipped an SSE frame of more than 8 MiB; it can't be an event")
            if message.gap:
                metrics.gaps.inc()
            if message.content or message.gap:
                self._forward(message)
            return
        if isinstance(message, Finished):
            self._send(message.source, 0, b"", b"", finished=True, gap=False)
        elif isinstance(message, Refused):
            metrics.recv_errors.labels(message.kind).inc()
        elif isinstance(message, Closed):
            self._open -= 1
            if message.reason in RECONNECT_REASONS:
                metrics.reconnects.labels(message.reason).inc()
        elif isinstance(message, Opened):
            self._open += 1
        self._life.ready = self._open > 0
        metrics.connected.set(self._open)

    def _forward(self, received: Received) -> None:
        pause_seconds = self._pace.pause_seconds(received.events, time.monotonic())
        if pause_seconds:
            self._life.pause(pause_seconds)
        self._send(
            received.source,
            received.connection,
            received.content,
            received.last_event_id,
            finished=False,
            gap=received.gap,
            asked=received.asked,
        )

    def _send(
        self,
        source: TopicPartition,
        connection: int,
        content: bytes | ColumnarFrames,
        last_event_id: bytes,
        *,
        finished: bool,
        gap: bool,
        asked: str | None = None,
    ) -> None:
        sequence = next(self._sequence)
        frames = Frames(
            sequence,
            connection,
            content,
            last_event_id,
            0,
            self._replay.resolved_ms,
            source,
            finished,
            gap,
            asked,
        )
        channel = self._parsers[sequence % len(self._parsers)]
        channel.put(frames, self._alive)
        self._metrics.queue_depth.labels(channel.name).set(channel.depth())

    def _alive(self) -> None:
        now = time.monotonic()
        # A lane that hangs makes this process fall silent, and the parent start all of them again.
        if all(now <= lane.due_at for lane in list(self._lanes.values())):
            self._life.beat()
        self._life.check()


def _next(work: deque[Plan]) -> Plan | None:
    try:
        return work.popleft()
    except IndexError:
        return None
