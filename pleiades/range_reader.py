"""Process 1 of a replay: reads a range, each topic-partition by a `PartitionReader`.

Those are threads, because they wait for sockets most of the time. Only the main thread touches channels,
metrics and the heartbeat; one bounded inbox brings it what the others read.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, TypeAlias

from pleiades.config.settings import ReplaySettings
from pleiades.core.checkpoint import Checkpoint, ReplayProgress
from pleiades.core.resume_cursor import ResumeCursor
from pleiades.core.sse_id import TopicPartition
from pleiades.reader import BaseReader
from pleiades.runtime.channel import POLL_SECONDS
from pleiades.upstream.frames import NOTHING, Received
from pleiades.upstream.http import Upstream
from pleiades.upstream.partition import PartitionReader
from pleiades.upstream.session import Finished, Item, Opened

INBOX = 4
"""Reads of a socket that wait for the main thread: about 1 MiB."""

Message: TypeAlias = tuple[TopicPartition, Item | Finished | BaseException]


class RateLimiter:
    """Computes the pause before events are passed on, so that a rate is never exceeded.

    Time that was not used is not saved up.

    Args:
        per_second: events; 0: no limit.
    """

    def __init__(self, per_second: float) -> None:
        self._seconds_each = 1.0 / per_second if per_second else 0.0
        self._free_at = 0.0

    def pause_seconds(self, events: int, now: float) -> float:
        """The wait before so many events; `now` is monotonic, in seconds."""
        pause = max(self._free_at - now, 0.0)
        self._free_at = now + pause + events * self._seconds_each
        return pause


class RangeReader(BaseReader):
    """Reads a range for one generation."""

    _readers: tuple[PartitionReader, ...] = ()

    def _read(self, checkpoint: Checkpoint) -> None:
        replay = self._settings.replay
        if replay is None:
            raise AssertionError("only a replay has a range")  # a bug
        done = checkpoint.done or ReplayProgress()
        unfinished = set(checkpoint.position) - done.finished
        self._readers = tuple(
            self._partition_reader(source, checkpoint, replay) for source in sorted(unfinished)
        )
        inbox: queue.Queue[Message] = queue.Queue(INBOX)
        # Nobody waits for its threads: the process leaves by `os._exit`.
        pool = ThreadPoolExecutor(replay.connections, "partition")
        for reader in self._readers:
            pool.submit(_bring, reader, replay.range.is_empty(reader.source), inbox.put)
        limiter = RateLimiter(replay.rate)
        connections = count(1)
        opened: dict[TopicPartition, tuple[int, str | None]] = {}
        while unfinished:
            self._alive()
            try:
                source, item = inbox.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                raise item
            self._count(item)
            if isinstance(item, Received):
                if item.blob:
                    events = item.blob.count(b"\n\n") if replay.rate else 0
                    pause_seconds = limiter.pause_seconds(events, time.monotonic())
                    if pause_seconds:
                        self._child.pause(pause_seconds)
                    sequence, connection = next(self._sequence), opened[source]
                    self._send(item.frames(sequence, connection, 0, replay.resolved_ms, source))
                continue
            opened.pop(source, None)
            if isinstance(item, Opened):
                opened[source] = next(connections), item.asked
            elif isinstance(item, Finished):
                unfinished.discard(source)
                end = NOTHING.frames(next(self._sequence), (0, None), 0, replay.resolved_ms, source)
                self._send(end._replace(finished=True, gap=item.gap))
            self._show_open(len(opened))

    def _partition_reader(
        self, source: TopicPartition, checkpoint: Checkpoint, replay: ReplaySettings
    ) -> PartitionReader:
        upstream = self._settings.upstream
        cursor = ResumeCursor(
            replay.range.begin.of(source),
            int(upstream.overlap_seconds * 1000),
            {source: checkpoint.position[source]},
            {source: checkpoint.known_from.get(source, 0)},
            {source: replay.first_ms.get(source) or 0},
        )
        return PartitionReader(
            source,
            cursor,
            replay.range.end.of(source),
            checkpoint.clock_ms,
            replay.allow_gap,
            Upstream(upstream),
            upstream.idle_timeout_seconds,
        )

    def _alive(self) -> None:
        now = time.monotonic()
        # If one of them hangs this process falls silent, and the parent starts all of them again.
        if all(now <= reader.due_at for reader in self._readers):
            self._child.beat()
        self._child.check()


def _bring(reader: PartitionReader, is_empty: bool, put: Callable[[Message], None]) -> None:
    """Read one topic-partition, in its thread."""
    try:
        if is_empty:
            put((reader.source, Finished(gap=False)))
            return
        for item in reader.items():
            put((reader.source, item))
    except BaseException as error:  # raised again in the main thread
        put((reader.source, error))


def run(*arguments: Any) -> None:
    """Read a range in this process; the arguments are those of `RangeReader`."""
    RangeReader(*arguments).run()
