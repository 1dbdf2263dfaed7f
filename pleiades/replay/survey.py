"""What the upstream has of a range, asked before anything is written.

- Which topic-partitions a stream has stands in the id of its very first event.
- For each topic-partition, alone: its first event at or after the begin, **then** where its history
  begins. History only ever goes away at its old end. So if it reaches back to the begin afterwards, it
  did when that first event was found, and whoever reads later must find it again.

A timestamp alone may be years off: where a history begins is the median of its first few.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from statistics import median_low
from typing import NamedTuple, TypeVar

import orjson

from pleiades.config.settings import UpstreamSettings
from pleiades.core.framing import Framer
from pleiades.core.pauses import Pauses
from pleiades.core.range import Range
from pleiades.core.sse import sse_events
from pleiades.core.wire import MalformedId, TopicPartition, compose_id, parse_id
from pleiades.runtime.errors import Fatal, Transient
from pleiades.upstream.http import Upstream
from pleiades.upstream.refusals import TopicsNotAvailable
from pleiades.upstream.retrying import retrying

log = logging.getLogger(__name__)

T = TypeVar("T")

SILENCE_SECONDS = 5.0
"""How long a first event may take. Upstream sends what it has at once."""
FIRST_EVENTS = 5
"""So many are looked at where a history begins."""
EARLIEST_MS = 1
"""Asks for all there is."""


class Found(NamedTuple):
    """What the upstream has of one topic-partition."""

    first_ms: int | None
    """The timestamp in the id of the first event at or after the begin; None: there is none."""
    missing_until_ms: int | None
    """Where its history begins, if that is after the begin."""
    gone: bool = False
    """The upstream does not have the topic at all."""


class First(NamedTuple):
    """One of the first events on a connection."""

    timestamps_ms: dict[TopicPartition, int]
    """What its id says, 0 where it has no time."""
    offset: object
    """`meta.offset`, if it has one."""


class Survey:
    """Asks, with pauses where it must ask again."""

    def __init__(self, settings: UpstreamSettings) -> None:
        patient = min(settings.idle_timeout_seconds, SILENCE_SECONDS)
        self._upstream = Upstream(replace(settings, idle_timeout_seconds=patient))
        self._insist = retrying(Pauses(), _announce, time.sleep)

    def sources(self) -> list[TopicPartition]:
        """All topic-partitions of the streams.

        Raises:
            RefusedByUpstream: the upstream knows no such stream.
            Fatal: there is no event by which to know them.
        """
        found = self._insist(lambda: list(self._first(None, EARLIEST_MS, 1)))
        if not found or not found[0].timestamps_ms:
            raise Fatal(
                f"{self._upstream.address} sent no event with an id within {SILENCE_SECONDS:.0f} s, "
                "though it was asked for all that it has: there is nothing to replay. Nothing was "
                "written. Check --upstream.stream, and --upstream.url"
            )
        return sorted(found[0].timestamps_ms)

    def look(self, source: TopicPartition, begin_ms: int) -> Found:
        """What there is of one topic-partition from a time on."""
        try:
            first = self._surely(lambda: self._own(source, begin_ms, 1))
            history = self._surely(lambda: self._own(source, EARLIEST_MS, FIRST_EVENTS))
        except TopicsNotAvailable:
            return Found(None, None, gone=True)
        begins_ms = _begin_of(source, history)
        return Found(
            first[0].timestamps_ms[source] if first else None,
            begins_ms if begins_ms is not None and begins_ms > begin_ms else None,
        )

    def _surely(self, ask: Callable[[], list[First]]) -> list[First]:
        """Ask twice before nothing is taken for an answer: when its own Kafka is away, the upstream's
        connections just fall silent.
        """
        return self._insist(ask) or self._insist(ask)

    def _own(self, source: TopicPartition, from_ms: int, count: int) -> list[First]:
        asked = compose_id({source: max(from_ms, EARLIEST_MS)})
        return [
            first for first in self._first(asked, from_ms, count) if first.timestamps_ms.get(source)
        ]

    def _first(self, last_event_id: str | None, since_ms: int, count: int) -> Iterator[First]:
        """The first events from a time on, fewer where there are no more."""
        connection = self._upstream.connect(last_event_id, since_ms)
        try:
            framer = Framer()
            for chunk in _until_silent(connection.chunks()):
                for event in sse_events(framer.feed(chunk), b""):
                    first = _first_of(event.id, event.data)
                    if first is not None:
                        yield first
                        count -= 1
                    if not count:
                        return
        finally:
            connection.close()


def _announce(error: Transient, pause_seconds: float) -> None:
    log.warning("%s; trying again in %.1f s", error, pause_seconds)


def _until_silent(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Chunks for as long as they come at once.

    Raises:
        Transient: the connection was cut.
    """
    deadline = time.monotonic() + SILENCE_SECONDS
    try:
        for chunk in chunks:
            yield chunk
            if time.monotonic() > deadline:
                return
    except Transient as error:
        if error.kind != "idle":
            raise


def _first_of(sse_id: bytes, data: bytes) -> First | None:
    try:
        assignments = parse_id(sse_id)
    except MalformedId:
        return None
    try:
        offset = orjson.loads(data)["meta"]["offset"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        offset = None
    return First({source: timestamp_ms or 0 for source, timestamp_ms in assignments}, offset)


def _begin_of(source: TopicPartition, history: list[First]) -> int | None:
    """Where a history begins, ms since 1970; None if it has no event, or never lost one."""
    if not history or history[0].offset == 0:
        return None
    # Less the millisecond that an id adds.
    return median_low(first.timestamps_ms[source] for first in history) - 1


def look_at_all(
    survey: Survey, sources: Iterable[TopicPartition], span: Range
) -> dict[TopicPartition, Found]:
    """What there is of each; an empty part of the range needs nothing."""
    return {
        source: Found(None, None)
        if span.is_empty(source)
        else survey.look(source, span.begin.of(source))
        for source in sources
    }
