"""One connection: bytes in, whole frames with their ids out.

Laws:
- Frames are handed on whole and in order, and none that may have missed others (`core.past_end`).
- Comments are no events: without events for the idle timeout, a connection ends as `idle`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeAlias

from pleiades.core.event import Frames
from pleiades.core.framing import (
    Framer,
    before_id,
    has_data,
    ids_in,
    last_id_in,
    retry_in,
)
from pleiades.core.ids import ParsedIds, read_ids
from pleiades.core.past_end import PastEnd
from pleiades.core.sse_id import TopicPartition
from pleiades.core.units import iso_time
from pleiades.core.usual import usual_frames
from pleiades.runtime.errors import Transient
from pleiades.upstream.body import Connection
from pleiades.upstream.http import CONNECT_TIMEOUT_SECONDS

log = logging.getLogger(__name__)

IDLE = "idle"
PAST_END = "past_end"
QUIET_SECONDS = 30.0
"""A connection that the other side ends after so long without an event counts as silent."""

Waiting: TypeAlias = Callable[[float], AbstractContextManager[object]]
"""Encloses a call that may block for so many seconds."""


class Gap(NamedTuple):
    """The upstream no longer has the events of a topic-partition between two times, ms since 1970."""

    source: TopicPartition
    after_ms: int
    before_ms: int

    def __str__(self) -> str:
        topic, partition = self.source
        return (
            f"{topic}/{partition}: the upstream no longer has the events between "
            f"{iso_time(self.after_ms)} and {iso_time(self.before_ms)}"
        )


class Received(NamedTuple):
    """The result of one read of the socket."""

    blob: bytes = b""
    """Whole frames, as in `Frames`; may be empty."""
    last_event_id: bytes = b""
    """The last id on this connection before these frames; empty where it is not known."""
    ids: ParsedIds | None = None
    """The parsed ids of the frames; None: they were not read."""
    left: ParsedIds | None = None
    """Those of frames that are not taken, because the connection ends before them."""
    has_events: bool = False
    size_bytes: int = 0
    oversized: int = 0
    """Frames that were skipped."""
    retry_ms: int | None = None
    """The last `retry` field, if the ids were read."""
    gaps: tuple[Gap, ...] = ()
    before_start: int = 0
    """Events older than the start that the upstream sent all the same."""

    def frames(
        self,
        sequence: int,
        connection: tuple[int, str | None],
        started_ms: int,
        clock_ms: int,
        source: TopicPartition | None = None,
    ) -> Frames:
        """For the parser; `connection` is its number and what it asked for."""
        number, asked = connection
        return Frames(
            sequence,
            number,
            self.blob,
            self.last_event_id,
            started_ms,
            clock_ms,
            source,
            gap=source is not None and bool(self.gaps),
            asked=asked,
        )


NOTHING = Received()


class Closed(NamedTuple):
    """A connection ended."""

    reason: str
    """One of `RECONNECT_REASONS`."""
    is_silent: bool = False
    """No events came for a while before it ended."""
    error: Transient | None = None
    """The cause of the end."""
    had_events: bool = False
    brought_new: bool = False
    """Not all of them were repeated ones."""


def read(
    connection: Connection,
    idle_seconds: float,
    past_end: PastEnd | None = None,
    needs_ids: Callable[[], bool] = lambda: True,
    waiting: Waiting = nullcontext,
    name: str = "",
) -> Iterator[Received | Closed]:
    """Everything that comes on a connection; a `Closed` is the last item.

    Args:
        past_end: knows what this connection asked for; without it no frame is left.
        needs_ids: asked for each read of the socket; if false, the ids are left to the parser.
        name: begins every log line.
    """
    framer = Framer()
    chunks = connection.chunks()
    last_event_id = b""
    quiet_since = time.monotonic()
    error = None
    reason = ""
    while not reason:
        try:
            with waiting(CONNECT_TIMEOUT_SECONDS + idle_seconds):
                chunk = next(chunks, None)
        except Transient as ended:
            reason = ended.kind
            error = None if reason == IDLE else ended
            break
        if chunk is None:
            reason = "closed"
            break
        oversized = framer.oversized_total
        blob = framer.feed(chunk)
        oversized = framer.oversized_total - oversized
        received = Received(blob, size_bytes=len(chunk), oversized=oversized)
        if needs_ids():
            received = _with_ids(received, past_end)
            reason = "" if received.left is None else PAST_END
        if oversized:
            log.warning("%sskipped an SSE frame of more than 8 MiB; no event is that large", name)
            # Its id was skipped with it.
            last_event_id = b""
        has_events = has_data(received.blob)
        now = time.monotonic()
        if has_events:
            quiet_since = now
        yield received._replace(last_event_id=last_event_id, has_events=has_events)
        found = last_id_in(received.blob)
        last_event_id = last_event_id if found is None else found
        # Time that the consumer takes is no silence of the upstream's.
        quiet_since += time.monotonic() - now
        if not reason and time.monotonic() - quiet_since >= idle_seconds:
            reason = IDLE
    if reason == "decode":
        log.warning("%s%s; the events in it are fetched again", name, error)
    # Others end silent connections too, proxies above all, and perhaps sooner than we do.
    quiet_seconds = time.monotonic() - quiet_since
    is_silent = reason == IDLE or (
        reason != PAST_END and quiet_seconds >= min(idle_seconds, QUIET_SECONDS)
    )
    yield Closed(reason, is_silent, error)


def _with_ids(received: Received, past_end: PastEnd | None) -> Received:
    """Read the ids, and leave the frames that may have missed others."""
    blob = received.blob
    usual = usual_frames(blob)
    ids, retry_ms = [] if usual else ids_in(blob), None if usual else retry_in(blob)
    parsed = usual.ids if usual else read_ids(ids)
    place = None if past_end is None else past_end.first_left(parsed)
    if place is None:
        return received._replace(ids=parsed, retry_ms=retry_ms)
    ids = ids or ids_in(blob)
    return received._replace(
        blob=before_id(blob, place),
        ids=read_ids(ids[:place]),
        left=read_ids(ids[place:]),
        retry_ms=retry_ms,
    )
