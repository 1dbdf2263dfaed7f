"""The only loop that connects to the upstream and cuts what it sends into frames.

`read` reads one connection; `Session` makes one connection after the other. The live reader, a replay's
partition readers, the survey and `check` consume the items they yield.

Laws:
- Frames are handed on whole and in order, and none that may have missed others (`core.past_end`).
- Every connection asks for what the `ResumeCursor` says, and the cursor has seen every id handed on.
- A topic that the upstream does not have is left out of that request only; its position is kept.
- An event later than the last known one that arrives before it is a gap (`core.landmark`).
- Comments are no events: without events for the idle timeout, a connection ends as `idle`.
- The pause before the next connection depends on what the last one brought (`upstream.reconnect`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import NamedTuple, TypeAlias

from pleiades.core.framing import ColumnarFrames, Framer, before_id, split_columns
from pleiades.core.ids import ParsedIds, read_ids
from pleiades.core.landmark import Landmark
from pleiades.core.past_end import PastEnd
from pleiades.core.position import MAX_LAST_EVENT_ID_BYTES, ResumeCursor
from pleiades.core.units import iso_time
from pleiades.core.wire import Frames, TopicPartition, compose_id
from pleiades.runtime.errors import Transient
from pleiades.upstream.body import Connection
from pleiades.upstream.http import CONNECT_TIMEOUT_SECONDS, Upstream
from pleiades.upstream.reconnect import Reconnect
from pleiades.upstream.refusals import TopicsNotAvailable, named

log = logging.getLogger(__name__)

IDLE = "idle"
PAST_END = "past_end"
QUIET_SECONDS = 30.0
"""A connection that the other side ends after so long without an event counts as silent."""
MAX_OMISSIONS = 5
"""Requests in a row, each without the topics that the previous refusal named. The service names all of
them at once. After a pause the next try starts with what is known by then."""

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


class Opened(NamedTuple):
    """The upstream accepted a connection."""

    asked: str | None
    """The `Last-Event-ID` that it sent; None: it asked for all topics from the start on."""
    server_ms: int | None
    left_out: int
    """Topics that the upstream does not have."""


class Received(NamedTuple):
    """What one read of the socket gave."""

    content: bytes | ColumnarFrames
    """Whole frames, as in `Frames`; may be empty."""
    ids: list[bytes]
    parsed: ParsedIds
    """What `ids` say."""
    last_event_id: bytes
    """The last id on this connection before these frames; empty where it is not known."""
    has_events: bool
    size_bytes: int
    oversized: int
    """Frames that were skipped."""
    retry_ms: int | None = None
    left: ParsedIds = ParsedIds({})
    """What the ids of frames say that are not taken, because the connection ends before them."""
    gaps: tuple[Gap, ...] = ()
    before_start: int = 0
    """Events older than the start that the upstream sent all the same."""

    @property
    def blob(self) -> bytes:
        """The frames one after the other."""
        return self.content if isinstance(self.content, bytes) else self.content.joined()

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
            self.content,
            self.last_event_id,
            started_ms,
            clock_ms,
            source,
            gap=source is not None and bool(self.gaps),
            asked=asked,
            parsed=None if isinstance(self.content, bytes) else self.parsed,
        )


NOTHING = Received(b"", [], ParsedIds({}), b"", has_events=False, size_bytes=0, oversized=0)


class Closed(NamedTuple):
    """A connection ended."""

    reason: str
    """One of `RECONNECT_REASONS`."""
    is_silent: bool = False
    """No events came for a while before it ended."""
    error: Transient | None = None
    """What cut it off."""
    events: int = 0
    brought_new: bool = False
    """Not all of them were repeated ones."""


class Failed(NamedTuple):
    """The upstream could not be asked, or a connection was useless; `kind` is that of `Transient`."""

    kind: str


class Finished(NamedTuple):
    """Nothing more of a range is to come."""

    gap: bool
    """The upstream no longer had its end."""


Item: TypeAlias = Opened | Received | Closed | Failed


def read(
    connection: Connection,
    idle_seconds: float,
    past_end: PastEnd | None = None,
    waiting: Waiting = nullcontext,
    name: str = "",
) -> Iterator[Received | Closed]:
    """Everything that comes on a connection; a `Closed` is the last item.

    Args:
        past_end: knows what this connection asked for; without it no frame is left.
        name: begins every log line.
    """
    framer = Framer()
    chunks = connection.chunks()
    last_event_id = b""
    quiet_since = time.monotonic()
    error = place = None
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
        content, ids, retry_ms = split_columns(framer.feed(chunk))
        oversized = framer.oversized_total - oversized
        parsed, left = read_ids(ids), ParsedIds({})
        place = None if past_end is None else past_end.first_left(parsed)
        if place is not None:
            content, left = before_id(content, place), read_ids(ids[place:])
            ids = ids[:place]
            parsed = read_ids(ids)
            reason = PAST_END
        if oversized:
            log.warning("%sskipped an SSE frame of more than 8 MiB; no event is that large", name)
            # Its id was skipped with it.
            last_event_id = b""
        has_events = bool(content) and (
            not isinstance(content, bytes) or b"\ndata" in b"\n" + content
        )
        now = time.monotonic()
        if has_events:
            quiet_since = now
        yield Received(
            content, ids, parsed, last_event_id, has_events, len(chunk), oversized, retry_ms, left
        )
        if ids:
            last_event_id = ids[-1]
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


class Session:
    """A sequence of connections, each opened after the end of the one before.

    Args:
        clock_ms: no request asks for times further ahead than this, less the overlap.
        pause: waits so many seconds; may raise to end the session.
        only: the only topic-partition that is asked for; None: all of the stream.
    """

    def __init__(
        self,
        upstream: Upstream,
        cursor: ResumeCursor,
        idle_seconds: float,
        clock_ms: Callable[[], int],
        waiting: Waiting,
        pause: Callable[[float], None],
        only: TopicPartition | None = None,
    ) -> None:
        self.cursor = cursor
        self.landmarks: dict[TopicPartition, Landmark] = {}
        """Of this connection: those of which the known event has not come again yet."""
        self._upstream = upstream
        self._idle_seconds = idle_seconds
        self._clock_ms = clock_ms
        self._waiting = waiting
        self._pause = pause
        self._only = only
        self._name = "" if only is None else "{}/{}: ".format(*only)
        # A replay's own positions are exact. Another program may have stored an ingest's.
        self._slack_ms = cursor.overlap_ms if only is None else 0
        self._reconnect = Reconnect()
        self._past_end = PastEnd()
        self._connection: Connection | None = None
        self._was_silent = False
        self._missing: frozenset[str] = frozenset()
        """Topics that were reported as missing."""
        self._crowded_out = 0
        """Topic-partitions that were reported as not asked for."""

    def items(self) -> Generator[Item, None, None]:
        """What happens, in its order, without an end. To move the start at an `Opened` asks again.

        Raises:
            TopicsNotAvailable: the upstream has none of the topics.
            RefusedByUpstream: the request will never be served.
        """
        self._report_crowding()
        while True:
            try:
                yield from self._one_connection()
            except Transient as error:
                seconds = self._reconnect.after_failure(error.retry_after_seconds)
                log.warning("%s%s; trying again in %.1f s", self._name, error, seconds)
                yield Failed(error.kind)
            else:
                seconds = self._reconnect.after_end()
            if seconds:
                self._pause(seconds)

    def unread_bytes(self) -> int | None:
        """Bytes of the open connection that wait to be read; None if there is none."""
        return None if self._connection is None else self._connection.unread_bytes()

    def _one_connection(self) -> Iterator[Item]:
        cursor = self.cursor
        started_ms = cursor.started_ms
        self._reconnect.opened(cursor.position, time.monotonic())
        connection, asked = self._connect()
        with closing(connection):
            last_event_id = None if asked is None else compose_id(asked)
            yield Opened(last_event_id, connection.server_ms, len(self._missing))
            if cursor.started_ms != started_ms:
                return
            # An idle stream is normal, and its reconnects are no news.
            log.log(
                logging.DEBUG if self._was_silent else logging.INFO,
                "%sconnected to %s%s",
                self._name,
                self._upstream.address,
                "" if asked is None else ", resuming",
            )
            self._connection = connection
            try:
                yield from self._read(connection, asked)
            finally:
                self._connection = None

    def _read(
        self, connection: Connection, asked: dict[TopicPartition, int] | None
    ) -> Iterator[Item]:
        cursor = self.cursor
        known = {
            source: cursor.position.get(source) or cursor.found.get(source, 0)
            for source in asked or ()
        }
        self._past_end.connected(asked, known, cursor.started_ms)
        self.landmarks = {
            source: Landmark(known_ms, cursor.started_ms, self._slack_ms)
            for source, known_ms in known.items()
            if known_ms
        }
        for item in read(connection, self._idle_seconds, self._past_end, self._waiting, self._name):
            if isinstance(item, Received):
                yield self._noted(item, asked is None)
                continue
            self._was_silent = item.is_silent
            brought_new = self._reconnect.ended(cursor.position, time.monotonic(), item.is_silent)
            yield item._replace(brought_new=brought_new, events=self._reconnect.events)
            self._report_end(item, brought_new or not self._reconnect.was_short)

    def _report_end(self, closed: Closed, is_useful: bool) -> None:
        if closed.is_silent:
            log.debug("%sno events for %.0f s: reconnecting", self._name, self._idle_seconds)
        elif closed.reason == PAST_END:
            log.info(
                "%sreceived the first event of a topic: reconnecting, to miss none before it",
                self._name,
            )
        elif is_useful:
            log.info("%sthe connection ended (%s): reconnecting", self._name, closed.reason)
        else:
            raise Transient(
                f"the connection ended ({closed.reason}) and brought nothing new", "empty"
            )

    def _connect(self) -> tuple[Connection, dict[TopicPartition, int] | None]:
        """A new connection, and what it asked for; None: for all topics from the start on."""
        cursor = self.cursor
        clock_ms = self._clock_ms()
        for _ in range(MAX_OMISSIONS):
            asked = cursor.request(clock_ms) if cursor.position else None
            try:
                with self._waiting(2 * CONNECT_TIMEOUT_SECONDS + self._idle_seconds):
                    connection = self._upstream.connect(
                        None if asked is None else compose_id(asked), cursor.started_ms
                    )
            except TopicsNotAvailable as error:
                if {topic for topic, _ in asked or ()} <= error.topics:
                    raise
                cursor.left_out |= error.topics
                self._report_missing(error.topics)
                continue
            returned = self._missing - cursor.left_out
            if returned:
                log.info(
                    "%sthe upstream has %s again: resuming from the position",
                    self._name,
                    named(returned),
                )
            self._missing = frozenset(cursor.left_out)
            # The next connection asks for them again.
            cursor.left_out.clear()
            return connection, asked
        raise Transient(
            "every answer of the upstream names other topics that it does not have, "
            f"{len(cursor.left_out)} so far; nothing is lost while it keeps its history",
            "status_4xx",
        )

    def _noted(self, received: Received, is_start: bool) -> Received:
        """Take note of what came; returns it with what is to be said about it."""
        cursor = self.cursor
        self._reconnect.received(received.ids, received.retry_ms)
        gaps = self._gaps_in(received.parsed)
        cursor.observe(self._own(received.parsed.greatest()))
        # The topics of what is left are known from now on. Their positions are not.
        cursor.observe(self._own(dict.fromkeys(received.left.timestamps_ms, 0)))
        self._report_crowding()
        before_start = self._before_start(received.left) if is_start else 0
        if gaps or before_start:
            return received._replace(gaps=gaps, before_start=before_start)
        return received

    def _own(self, position: dict[TopicPartition, int]) -> dict[TopicPartition, int]:
        if self._only is None:
            return position
        return {source: time for source, time in position.items() if source == self._only}

    def _gaps_in(self, parsed: ParsedIds) -> tuple[Gap, ...]:
        gaps = []
        for source in self.landmarks.keys() & parsed.timestamps_ms.keys():
            landmark = self.landmarks[source]
            for timestamp_ms in parsed.timestamps_ms[source]:
                if timestamp_ms is not None and landmark.is_missed(timestamp_ms):
                    reached_ms = self.cursor.position.get(source) or self.cursor.started_ms
                    gaps.append(Gap(source, reached_ms, timestamp_ms))
            if landmark.settled:
                del self.landmarks[source]
        return tuple(gaps)

    def _before_start(self, left: ParsedIds) -> int:
        """How many events show that the upstream ignored `since`. They are asked for again by topic."""
        oldest_ms = self.cursor.started_ms - self.cursor.overlap_ms
        columns = [[time for time in column if time] for column in left.timestamps_ms.values()]
        old = [time for column in columns for time in column if time <= oldest_ms]
        # A later event may rightly be dated back by years: the first one is the one that was found.
        if not any(column and column[0] <= oldest_ms for column in columns):
            return 0
        log.warning(
            "the upstream was asked for events from %s on and sent older ones, from %s: they are "
            "dropped. Asking again by topic",
            iso_time(self.cursor.started_ms),
            iso_time(min(old)),
        )
        return len(old)

    def _report_missing(self, topics: frozenset[str]) -> None:
        new = topics - self._missing
        self._missing |= new
        if new:
            log.warning(
                "%sthe upstream does not have %s at present: the other topics go on. Their positions "
                "are kept and every new connection asks again, so nothing is lost that the upstream "
                "still has when they return. If they were dropped for good, nothing is to be done",
                self._name,
                named(new),
            )

    def _report_crowding(self) -> None:
        crowded_out = self.cursor.crowded_out
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
