"""One topic-partition of a range, on connections of its own until all of the range has arrived.

Law: only what **one** connection delivered decides when the range is complete.

- A range is complete once enough later events have arrived (`core.range.Ending`). If there are none, it
  is complete after two silent connections in a row that brought only known events. One is not enough:
  when the upstream's own Kafka fails, an open connection just falls silent. The second one answers and
  repeats the topic-partition's last events, so somebody is there. Events are known if they end as
  everything before them ended (`upstream.reconnect`).
- The upstream no longer has all of the range if something later than the last known event arrives before
  that event (`core.landmark`), or if the topic itself is gone.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing

from pleiades.core.range import Ending
from pleiades.core.resume_cursor import ResumeCursor
from pleiades.core.sse_id import TopicPartition
from pleiades.core.units import iso_time
from pleiades.runtime.errors import HistoryMissing
from pleiades.runtime.logs import Throttle
from pleiades.upstream.frames import Closed, Received
from pleiades.upstream.http import Upstream
from pleiades.upstream.refusals import TopicsNotAvailable
from pleiades.upstream.session import Finished, Item, Opened, Session

log = logging.getLogger(__name__)

SILENT_CONNECTIONS = 2
"""This many in a row mean that there is nothing more."""
WARNING_SECONDS = 300.0


class PartitionReader:
    """Reads one topic-partition, in a thread of its own.

    Args:
        cursor: where the range begins and how far it was read; its overlap is also how far timestamps
            may run backwards.
        end_ms: where the range ends, ms since 1970.
        clock_ms: no request asks for times further ahead than this, less the overlap.
    """

    def __init__(
        self,
        source: TopicPartition,
        cursor: ResumeCursor,
        end_ms: int,
        clock_ms: int,
        allow_gap: bool,
        upstream: Upstream,
        idle_seconds: float,
    ) -> None:
        self.source = source
        self.due_at = math.inf
        """Monotonic time by which its blocking call must have returned."""
        self._cursor = cursor
        self._end_ms = end_ms
        self._allow_gap = allow_gap
        self._idle_seconds = idle_seconds
        self._session = Session(
            upstream,
            cursor,
            idle_seconds,
            lambda: clock_ms,
            self._waiting,
            self._pause,
            only=source,
        )
        self._name = self._session.name
        self._silent = 0
        """Silent connections in a row that brought nothing new."""
        self._unanswered = 0
        """The number of those that did not even deliver known events."""
        self._warnings = Throttle(WARNING_SECONDS)

    def items(self) -> Iterator[Item | Finished]:
        """Yield what happens, in order, until the range is complete; then `Finished`.

        Raises:
            RefusedByUpstream: the request will never be served.
            HistoryMissing: the upstream no longer has all of the range, and that is not allowed.
        """
        try:
            with closing(self._session.items()) as items:
                yield from self._until_complete(items)
            gap = self._known_is_missing()
        except TopicsNotAvailable as error:
            self._refuse_gap(
                f"{self._name}{error.brief}: the upstream has nothing of it from {self._reached} on"
            )
            log.warning(
                "%sthe upstream no longer has this topic: its events from %s on are missing, the other "
                "topics are replayed. If it returns, replay from there on",
                self._name,
                self._reached,
            )
            gap = True
        log.info("%scomplete", self._name)
        yield Finished(gap)

    def _until_complete(self, items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            is_complete = False
            if isinstance(item, Opened):
                ending = Ending(self._end_ms, self._cursor.overlap_ms)
            elif isinstance(item, Received) and item.ids is not None:
                for gap in item.gaps:
                    self._refuse_gap(str(gap))
                    log.warning("%s: those events are missing", gap)
                for timestamp_ms in filter(None, item.ids.timestamps_ms.get(self.source, ())):
                    is_complete = ending.observe(timestamp_ms) or is_complete
            elif isinstance(item, Closed) and item.is_silent:
                is_complete = self._is_silence_complete(item)
            else:
                self._silent = 0
            yield item
            if is_complete:
                return

    @property
    def _reached(self) -> str:
        return iso_time(self._cursor.position[self.source] or self._cursor.started_ms)

    def _is_silence_complete(self, closed: Closed) -> bool:
        """Return whether a silent connection was the last one."""
        # The last event that was delivered before, or was found, must come again.
        known_ms = self._cursor.position[self.source] or self._cursor.found[self.source]
        answered = closed.had_events or not known_ms
        self._silent = self._silent + 1 if answered and not closed.brought_new else 1
        self._unanswered = 0 if answered else self._unanswered + 1
        if self._unanswered > 1 and self._warnings.due():
            log.warning(
                "%sthe upstream sends nothing of it, not even events that it has sent before: asking "
                "again until it does",
                self._name,
            )
        if self._silent < SILENT_CONNECTIONS:
            return False
        log.info(
            "%sthere is nothing more: silent for %.0f s, twice in a row",
            self._name,
            self._idle_seconds,
        )
        return True

    def _known_is_missing(self) -> bool:
        """At the end of the range: the known event must have come again, also if it is dated ahead."""
        if self.source not in self._session.landmarks:
            return False
        missing = f"{self._name}the upstream no longer has the event of {self._reached}"
        self._refuse_gap(f"{missing}, nor perhaps those after it")
        log.warning("%s: those events are missing", missing)
        return True

    def _refuse_gap(self, missing: str) -> None:
        if not self._allow_gap:
            raise HistoryMissing(
                f"{missing}. Everything published before it is safe. To go on behind the gap, run the "
                "same command with --allow-gap"
            )

    @contextlib.contextmanager
    def _waiting(self, seconds: float) -> Iterator[None]:
        self.due_at = time.monotonic() + seconds
        try:
            yield
        finally:
            # That nobody takes an item is not this reader's fault.
            self.due_at = math.inf

    def _pause(self, seconds: float) -> None:
        with self._waiting(seconds):
            time.sleep(seconds)
