"""The only loop that connects to the upstream; `upstream.frames` reads each connection.

The live reader and a replay's partition readers consume the items of a `Session`. The survey and `check`
need one connection only, and read it without a session.

Laws:
- Every connection asks for what the `ResumeCursor` says, and the cursor has seen every id handed on.
- A topic that the upstream does not have is left out of that request only; its position is kept.
- An event later than the last known one that arrives before it is a gap (`core.landmark`).
- The pause before the next connection depends on what the last one brought (`upstream.reconnect`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import NamedTuple, TypeAlias

from pleiades.core.event import Delivered
from pleiades.core.ids import ParsedIds
from pleiades.core.landmark import Landmark
from pleiades.core.past_end import PastEnd
from pleiades.core.resume_cursor import MAX_LAST_EVENT_ID_BYTES, ResumeCursor
from pleiades.core.sse_id import TopicPartition, compose_id
from pleiades.core.units import iso_time
from pleiades.runtime.errors import Transient
from pleiades.upstream.body import Connection
from pleiades.upstream.frames import PAST_END, Closed, Gap, Received, Waiting, read
from pleiades.upstream.http import CONNECT_TIMEOUT_SECONDS, Upstream
from pleiades.upstream.reconnect import Reconnect
from pleiades.upstream.refusals import TopicsNotAvailable, named

log = logging.getLogger(__name__)

EMPTY = "empty"
"""The kind of a failure that only new events disprove, and no new connection."""
MAX_OMISSIONS = 5
"""Requests in a row, each without the topics that the previous refusal named. The service names all of
them at once. After a pause the next try starts with what is known by then."""


class Opened(NamedTuple):
    """The upstream accepted a connection."""

    asked: str | None
    """The `Last-Event-ID` that it sent; None: it asked for all topics from the start on."""
    server_ms: int | None
    left_out: int
    """Topics that the upstream does not have."""


class Failed(NamedTuple):
    """The upstream could not be asked, or a connection was useless; `kind` is that of `Transient`."""

    kind: str
    why: str


class Finished(NamedTuple):
    """Nothing more of a range is to come."""

    gap: bool
    """The upstream no longer had its end."""


Item: TypeAlias = Opened | Received | Closed | Failed


class Session:
    """A sequence of connections, each opened after the end of the one before.

    Args:
        clock_ms: no request asks for times further ahead than this, less the overlap.
        pause: waits so many seconds; may raise to end the session.
        only: the only topic-partition that is asked for; None: all of the stream.
        delivered: tells what the frames have brought whose ids were not read here. None: all are read.
    """

    def __init__(  # noqa: PLR0913  # both kinds of readers make one, by name
        self,
        upstream: Upstream,
        cursor: ResumeCursor,
        idle_seconds: float,
        clock_ms: Callable[[], int],
        waiting: Waiting,
        pause: Callable[[float], None],
        *,
        only: TopicPartition | None = None,
        delivered: Callable[[], Delivered] | None = None,
    ) -> None:
        self.cursor = cursor
        self.landmarks: dict[TopicPartition, Landmark] = {}
        """The landmarks of this connection whose known event has not come again yet."""
        self._upstream = upstream
        self._idle_seconds = idle_seconds
        self._clock_ms = clock_ms
        self._waiting = waiting
        self._pause = pause
        self._only = only
        self._delivered = delivered
        self.name = "" if only is None else "{}/{}: ".format(*only)
        """Begins every log line."""
        # A replay's own positions are exact. Another program may have stored an ingest's.
        self._slack_ms = cursor.overlap_ms if only is None else 0
        self._reconnect = Reconnect()
        self._past_end = PastEnd()
        self._connection: Connection | None = None
        self._connects_quietly = False
        """The next connection is no news: the last one was silent, or brought nothing new."""
        self._missing: frozenset[str] = frozenset()
        """Topics that were reported as missing."""
        self._crowded_out = 0
        """Topic-partitions that were reported as not asked for."""

    def items(self) -> Generator[Item, None, None]:
        """Yield what happens, in order, without end. Moving the start at an `Opened` makes it ask again.

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
                log.warning("%s%s; trying again in %.1f s", self.name, error, seconds)
                yield Failed(error.kind, str(error))
            else:
                seconds = self._reconnect.after_end()
            if seconds:
                self._pause(seconds)

    def unread_bytes(self) -> int:
        """Bytes of the current connection that wait to be read."""
        return 0 if self._connection is None else self._connection.unread_bytes()

    def _one_connection(self) -> Iterator[Item]:
        cursor, reconnect = self.cursor, self._reconnect
        started_ms = cursor.started_ms
        reconnect.opened(cursor.position, time.monotonic())
        connection, asked = self._connect()
        self._connection = connection
        with closing(connection):
            last_event_id = None if asked is None else compose_id(asked)
            yield Opened(last_event_id, connection.server_ms, len(self._missing))
            if cursor.started_ms != started_ms:
                return
            begin = "" if asked is None else ", resuming"
            if asked and self._only in asked:
                begin = f", from {iso_time(asked[self._only])} on"
            log.log(
                logging.DEBUG if self._connects_quietly else logging.INFO,
                "%sconnected to %s%s",
                self.name,
                self._upstream.address,
                begin,
            )
            known = {
                source: max(cursor.position.get(source, 0), cursor.found.get(source, 0))
                for source in asked or ()
            }
            self._past_end.connected(asked, known, started_ms)
            self.landmarks = {
                source: Landmark(known_ms, started_ms, self._slack_ms)
                for source, known_ms in known.items()
                if known_ms
            }
            has_unread_ids = False
            for item in read(
                connection,
                self._idle_seconds,
                self._past_end,
                self._needs_ids,
                self._waiting,
                self.name,
            ):
                if isinstance(item, Received):
                    has_unread_ids = has_unread_ids or item.ids is None
                    yield self._noted(item, asked is None)
                    continue
                ended = time.monotonic()
                connection.close()
                if has_unread_ids and self._delivered is not None:
                    # It may take as long as the destination stands still. Until then the relay counts
                    # as connected: the upstream is not what it waits for.
                    found = self._delivered()
                    cursor.observe(found.timestamps_ms)
                    reconnect.asked_to_wait(found.retry[1] if found.retry else None)
                    self._report_crowding()
                brought_new = reconnect.ended(cursor.position, ended, item.is_silent)
                yield item._replace(brought_new=brought_new, had_events=reconnect.had_events)
                self._report_end(item, brought_new or not reconnect.was_short)

    def _report_end(self, closed: Closed, is_useful: bool) -> None:
        was_quiet, self._connects_quietly = self._connects_quietly, closed.is_silent
        if closed.is_silent:
            log.log(
                logging.DEBUG if was_quiet else logging.INFO,
                "%sthe upstream sends no events: reconnecting until it does. An idle stream is normal",
                self.name,
            )
        elif closed.reason == PAST_END:
            log.info(
                "%sreceived the first event of a topic: reconnecting, to miss none before it",
                self.name,
            )
        elif is_useful:
            log.info("%sthe connection ended (%s): reconnecting", self.name, closed.reason)
        else:
            self._connects_quietly = True
            raise Transient(
                f"the connection ended ({closed.reason}) and brought nothing new. Nothing is lost while "
                "the upstream keeps its history. If it goes on, the service's Kafka may be away, or a "
                "proxy ends connections",
                EMPTY,
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
                    self.name,
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

    def _needs_ids(self) -> bool:
        """True while the ids of this connection decide what is taken or reported."""
        return self._delivered is None or bool(self.landmarks) or not self._past_end.is_over

    def _noted(self, received: Received, is_start: bool) -> Received:
        """Take note of what came; returns it with what is to be said about it."""
        cursor = self.cursor
        self._reconnect.received(received.blob)
        if received.ids is None:
            return received
        self._reconnect.asked_to_wait(received.retry_ms)
        gaps = self._gaps_in(received.ids)
        cursor.observe(self._own(received.ids.greatest()))
        before_start = 0
        if received.left is not None:
            # The topics of what is left are known from now on. Their positions are not.
            cursor.observe(self._own(dict.fromkeys(received.left.timestamps_ms, 0)))
            before_start = self._before_start(received.left) if is_start else 0
        self._report_crowding()
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
        """The number of events that show that the upstream ignored `since`, and are asked for again."""
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
                self.name,
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
