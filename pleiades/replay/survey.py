"""A replay's questions to the upstream before anything is written.

- The id of a stream's very first event names all topic-partitions that the stream has.
- For each topic-partition, alone: its first event at or after the begin, **then** where its history
  begins. History only ever goes away at its old end. So if it reaches back to the begin afterwards, it
  did when that first event was found, and whoever reads later must find it again.

A timestamp alone may be years off: where a history begins is the median of its first few.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from statistics import median_low
from typing import NamedTuple, TypeAlias

import orjson

from pleiades.config.settings import UpstreamSettings
from pleiades.core.range import Range
from pleiades.core.sse import SseEvent, sse_events
from pleiades.core.sse_id import MalformedId, TopicPartition, compose_id, parse_id
from pleiades.runtime.errors import Fatal
from pleiades.upstream.frames import Received, read
from pleiades.upstream.http import Upstream
from pleiades.upstream.reconnect import persist
from pleiades.upstream.refusals import TopicsNotAvailable

SILENCE_SECONDS = 5.0
"""The longest wait for a first event. The upstream sends its history at once."""
FIRST_EVENTS = 5  # the number of events that are looked at where a history begins
EARLIEST_MS = 1  # asks for all there is


class Found(NamedTuple):
    """The upstream's history of one topic-partition."""

    first_ms: int | None
    """The timestamp in the id of the first event at or after the begin; None: there is none."""
    missing_until_ms: int | None
    """The beginning of its history, if that is after the begin."""
    gone: bool = False
    """The upstream does not have the topic at all."""


First: TypeAlias = tuple[dict[TopicPartition, int], object]
"""One of the first events on a connection: the timestamps in its id (ms since 1970; 0: none), and its
`meta.offset`, if it has one."""


class Survey:
    """Asks, with pauses where it must ask again."""

    def __init__(self, settings: UpstreamSettings) -> None:
        self._idle_seconds = min(settings.idle_timeout_seconds, SILENCE_SECONDS)
        self._upstream = Upstream(replace(settings, idle_timeout_seconds=self._idle_seconds))

    def sources(self) -> list[TopicPartition]:
        """All topic-partitions of the streams.

        Raises:
            RefusedByUpstream: the upstream knows no such stream.
            Fatal: there is no event by which to know them.
        """
        found = persist(lambda: self._first(None, EARLIEST_MS, 1))
        if not found or not found[0][0]:
            raise Fatal(
                f"{self._upstream.address} sent no event with an id within {SILENCE_SECONDS:.0f} s, "
                "though it was asked for all of its history: there is nothing to replay. Nothing was "
                "written. Check --upstream.stream, and --upstream.url"
            )
        return sorted(found[0][0])

    def look(self, source: TopicPartition, span: Range) -> Found:
        """Survey one topic-partition; an empty part of the range needs no request."""
        if span.is_empty(source):
            return Found(None, None)
        begin_ms = span.begin.of(source)
        try:
            first = self._own(source, begin_ms, 1)
            history = self._own(source, EARLIEST_MS, FIRST_EVENTS)
        except TopicsNotAvailable:
            return Found(None, None, gone=True)
        missing_until_ms = None
        # At the offset 0 it never lost an event.
        if history and history[0][1] != 0:
            # Less the millisecond that an id adds.
            begins_ms = median_low(times[source] for times, _ in history) - 1
            missing_until_ms = begins_ms if begins_ms > begin_ms else None
        return Found(first[0][0][source] if first else None, missing_until_ms)

    def _own(self, source: TopicPartition, from_ms: int, count: int) -> list[First]:
        """The first events of one topic-partition from a time on."""

        def ask() -> list[First]:
            asked = compose_id({source: max(from_ms, EARLIEST_MS)})
            first = self._first(asked, from_ms, count)
            return [event for event in first if event[0].get(source)]

        # Twice before nothing is taken for an answer: when the upstream's own Kafka is away, its
        # connections just fall silent.
        return persist(ask) or persist(ask)

    def _first(self, last_event_id: str | None, since_ms: int, count: int) -> list[First]:
        """The first events from a time on, fewer where there are no more.

        Raises:
            Transient: the upstream can't be asked, or the connection was cut.
        """
        found: list[First] = []
        with closing(self._upstream.connect(last_event_id, since_ms)) as connection:
            for item in read(connection, self._idle_seconds):
                if isinstance(item, Received):
                    found += filter(None, map(_first_of, sse_events(item.blob, b"")))
                elif item.error is not None:
                    raise item.error
                if len(found) >= count:
                    break
        return found[:count]


def _first_of(event: SseEvent) -> First | None:
    try:
        times_ms = {source: time_ms or 0 for source, time_ms in parse_id(event.id)}
    except MalformedId:
        return None
    try:
        return times_ms, orjson.loads(event.data)["meta"]["offset"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return times_ms, None
