"""One topic-partition of a range, on a connection of its own until all of the range has come.

Law: when it is over is decided by what came on **one** connection, and by nothing that came before.

- Over is a range when the events past it say so (`core.range.Ending`), or when there are none: after two
  connections in a row on which all that came was known, and then nothing for the idle timeout. One alone
  would not do: when the upstream's own Kafka fails, an open connection just falls silent. The second one
  answers, and brings again what the topic-partition delivered last: so somebody is there.
  Known is what ends as that ended which came before (`Tail`).
- The upstream no longer has all of it if something later than the last known event comes before that
  event (`core.landmark`), or if the topic itself is gone.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import NamedTuple, TypeAlias

from pleiades.core.framing import ColumnarFrames
from pleiades.core.ids import ParsedIds
from pleiades.core.landmark import Landmark
from pleiades.core.past_end import PastEnd
from pleiades.core.pauses import Pauses
from pleiades.core.position import ResumeCursor
from pleiades.core.range import Ending
from pleiades.core.units import iso_time
from pleiades.core.wire import TopicPartition, compose_id
from pleiades.runtime.errors import HistoryMissing, Transient
from pleiades.runtime.logs import Seldom
from pleiades.upstream.http import CONNECT_TIMEOUT_SECONDS, Connection, Upstream
from pleiades.upstream.refusals import TopicsNotAvailable
from pleiades.upstream.retrying import retrying
from pleiades.upstream.session import PAST_END, Ended, frames

log = logging.getLogger(__name__)

OVER = "over"
"""Why a connection ended: all of the range had come."""
SILENT_CONNECTIONS = 2
"""So many in a row say that there is nothing more."""
QUIET_SECONDS = 30.0
"""So long without an id, and a connection that somebody else ends counts as silent."""
WARNING_SECONDS = 300.0


class Received(NamedTuple):
    """What one read of the socket gave."""

    source: TopicPartition
    connection: int
    content: bytes | ColumnarFrames
    """Whole frames, as in `Frames`; may be empty."""
    last_event_id: bytes
    """Valid for frames of it without an id."""
    events: int
    size_bytes: int
    oversized: int
    """Frames that were skipped."""
    gap: bool
    asked: str | None = None
    """As in `Frames`; None: nothing came with it."""


class Opened(NamedTuple):
    """A connection was opened."""


class Closed(NamedTuple):
    """It ended, for this reason."""

    reason: str


class Refused(NamedTuple):
    """It could not be opened, or was of no use; `kind` as in `Transient`."""

    kind: str


class Finished(NamedTuple):
    """All of the range has come from it."""

    source: TopicPartition


Message: TypeAlias = Received | Opened | Closed | Refused | Finished


class Plan(NamedTuple):
    """What is wanted from one topic-partition."""

    source: TopicPartition
    begin_ms: int
    end_ms: int
    reached_ms: int
    """The greatest timestamp that it has delivered; 0: nothing yet."""
    first_ms: int | None
    """The timestamp in the id of its first event in the range, if it was found before."""
    overlap_ms: int
    """Also how far its timestamps may run backwards."""
    clock_ms: int
    """What is asked for never lies further ahead than this, less the overlap."""
    allow_gap: bool
    floor_ms: int = 0
    """See `ResumeCursor.floors`."""


class Tail(NamedTuple):
    """How what was delivered ends: what is repeated later ends with the same, and what goes on does not.

    The position alone does not tell: it stands still behind an event that is dated ahead.
    """

    reached_ms: int
    last_event_id: bytes
    run: int
    """So many ids in a row, at the end, are equal to the last one."""


class Lane:
    """Reads one topic-partition; in a thread of its own.

    Args:
        tell: takes each message, and waits while there are too many.
        connections: numbers them; shared by all lanes of a generation.
    """

    def __init__(
        self,
        plan: Plan,
        upstream: Upstream,
        idle_seconds: float,
        tell: Callable[[Message], None],
        connections: Iterator[int],
    ) -> None:
        self._plan = plan
        self._name = "{}/{}".format(*plan.source)
        self._upstream = upstream
        self._idle_seconds = idle_seconds
        self._tell = tell
        self._connections = connections
        self._course = ResumeCursor(
            plan.begin_ms, plan.overlap_ms, floors={plan.source: plan.floor_ms}
        )
        if plan.reached_ms:
            self._course.position[plan.source] = plan.reached_ms
        self._pauses = Pauses()
        self._past_end = PastEnd()
        self._last_event_id = b""
        self._events = 0
        """Ids that came on this connection."""
        self._run = 0
        """How many of them, at the end, were equal to the last one."""
        self._landmark: Landmark | None = None
        """Of this connection; None: nothing is known of it yet."""
        self._silent = 0
        """Connections in a row that ended in silence and brought nothing new."""
        self._unanswered = 0
        """Of those, the ones that did not even bring what is known."""
        self._warnings = Seldom(WARNING_SECONDS)
        self._quiet_since = 0.0
        """Monotonic time of the last id on this connection, or of its begin."""
        self._over = False
        self.due_at = math.inf
        """Monotonic time at which it should have shown that it lives."""

    def run(self) -> None:
        """Read until the range is over.

        Raises:
            RefusedByUpstream: the request will never be served.
            HistoryMissing: the upstream no longer has all of it, and that is not allowed.
        """
        insist = retrying(self._pauses, self._announce, self._rest)
        while not self._over:
            insist(self._one_connection)
            if not self._over:
                # Jitter spreads out instances that failed together; it guards no secret.
                self._rest(self._pauses.after_end(random.random()))  # noqa: S311
        self._send(Finished(self._plan.source))

    def _announce(self, error: Transient, pause_seconds: float) -> None:
        self._silent = 0
        self._send(Refused(error.kind))
        log.warning("%s: %s; trying again in %.1f s", self._name, error, pause_seconds)

    def _rest(self, seconds: float) -> None:
        self._busy(seconds)
        time.sleep(seconds)

    def _busy(self, seconds: float) -> None:
        """From now on it may be silent for so long."""
        self.due_at = time.monotonic() + seconds

    def _send(self, message: Message) -> None:
        # That nobody takes it is not this lane's fault.
        self.due_at = math.inf
        self._tell(message)

    def _one_connection(self) -> None:
        """Connect and read to the connection's end; returns if that end is a normal one.

        Raises:
            Transient: it could not be opened, or ended soon and brought nothing new: back off.
            HistoryMissing: see `run`.
        """
        plan, course = self._plan, self._course
        before = self._tail
        self._pauses.opened(course.position, self._last_event_id, time.monotonic())
        asked_ms = course.asked_from(plan.source, plan.clock_ms)
        self._busy(2 * CONNECT_TIMEOUT_SECONDS + self._idle_seconds)
        try:
            asked = compose_id({plan.source: asked_ms})
            connection = self._upstream.connect(asked, asked_ms)
        except TopicsNotAvailable as error:
            self._take_absence(error)
            return
        self._events = 0
        known_ms = self._reached_ms or plan.first_ms
        self._landmark = None if known_ms is None else Landmark(known_ms, plan.begin_ms)
        self._send(Opened())
        try:
            log.log(
                logging.DEBUG if self._silent else logging.INFO,
                "%s: connected to %s, from %s on",
                self._name,
                self._upstream.address,
                iso_time(asked_ms),
            )
            reason = self._read(connection, next(self._connections), asked, asked_ms)
        finally:
            connection.close()
        # Others end silent connections, too, proxies above all, and perhaps sooner than we.
        quiet_seconds = time.monotonic() - self._quiet_since
        self._send(Closed(reason))
        idle = reason == "idle" or (
            reason not in (OVER, PAST_END)
            and quiet_seconds >= min(self._idle_seconds, QUIET_SECONDS)
        )
        useful = self._pauses.ended(course.position, self._last_event_id, time.monotonic(), idle)
        if reason == OVER:
            self._look_back()
            self._over = True
            log.info("%s: complete", self._name)
        elif idle:
            self._take_silence(before)
        elif reason == PAST_END:
            self._silent = 0
            log.info("%s: its first event came: reconnecting, to miss none before it", self._name)
        else:
            self._silent = 0
            if not useful:
                raise Transient(f"the connection ended ({reason}) without anything new", "empty")
            log.info("%s: the connection ended (%s): reconnecting", self._name, reason)

    @property
    def _reached_ms(self) -> int:
        return self._course.position.get(self._plan.source, 0)

    @property
    def _tail(self) -> Tail:
        return Tail(self._reached_ms, self._last_event_id, self._run)

    def _take_silence(self, before: Tail) -> None:
        """Judge a connection that ended in silence; `before`: what was known at its begin."""
        before_ms = before.reached_ms
        known = self._tail == before
        # What it delivered before, or was found to have, must come again: or nobody is there.
        answered = self._events > 0 or not (before_ms or self._plan.first_ms)
        self._silent = self._silent + 1 if known and answered else 1
        self._unanswered = 0 if answered else self._unanswered + 1
        if self._unanswered > 1 and self._warnings.due():
            log.warning(
                "%s: the upstream sends nothing of it, not even what it has sent before: asking again "
                "until it does",
                self._name,
            )
        self._over = self._silent >= SILENT_CONNECTIONS
        if self._over:
            self._look_back()
            log.info(
                "%s: complete, there is nothing more: silent for %.0f s, twice in a row",
                self._name,
                self._idle_seconds,
            )

    def _read(self, connection: Connection, number: int, asked: str, asked_ms: int) -> str:
        """Read to the connection's end; returns why it ended."""
        plan = self._plan
        ending = Ending(plan.end_ms, plan.overlap_ms)
        self._past_end.connected(
            {plan.source: asked_ms}, {plan.source: self._reached_ms or plan.first_ms or 0}, 0
        )
        received = frames(connection, self._past_end, f"{self._name}: ")
        last_id_here = b""
        self._quiet_since = time.monotonic()
        while True:
            self._busy(CONNECT_TIMEOUT_SECONDS + self._idle_seconds)
            try:
                piece = next(received)
            except Ended as ended:
                return ended.reason
            # That of a frame that was skipped is not known.
            before = b"" if piece.oversized else last_id_here
            self._pauses.delivered(len(piece.ids), piece.retry_ms)
            if piece.ids:
                self._quiet_since = time.monotonic()
                self._note(piece.ids)
                last_id_here = piece.ids[-1]
            gap, over = self._take(piece.told, ending)
            handed = time.monotonic()
            self._send(
                Received(
                    plan.source,
                    number,
                    piece.content,
                    before,
                    len(piece.ids),
                    piece.size_bytes,
                    piece.oversized,
                    gap,
                    asked,
                )
            )
            # That nobody took it for a while is no silence of the upstream's.
            self._quiet_since += time.monotonic() - handed
            if over:
                return OVER
            if time.monotonic() - self._quiet_since >= self._idle_seconds:
                # Comments keep a connection open, and are no events.
                return "idle"

    def _note(self, ids: list[bytes]) -> None:
        """Take note of how what came ends."""
        last = ids[-1]
        run = sum(1 for _ in takewhile(last.__eq__, reversed(ids)))
        goes_on = self._events and last == self._last_event_id and run == len(ids)
        self._run = self._run + run if goes_on else run
        self._events += len(ids)
        self._last_event_id = last

    def _take(self, told: ParsedIds, ending: Ending) -> tuple[bool, bool]:
        """Take note of ids; whether there is a gap before them, and whether the range is over."""
        gap = over = False
        source = self._plan.source
        for timestamp_ms in told.timestamps_ms.get(source, []):
            if timestamp_ms:
                gap = self._is_gap(timestamp_ms) or gap
                self._course.observe({source: timestamp_ms})
                over = ending.observe(timestamp_ms) or over
        return gap, over

    def _is_gap(self, timestamp_ms: int) -> bool:
        """Whether upstream lacks something before this id.

        Raises:
            HistoryMissing: it does, and that is not allowed.
        """
        plan, reached = self._plan, self._reached_ms
        if self._landmark is None or not self._landmark.is_missed(timestamp_ms):
            return False
        missing = (
            f"{self._name}: the upstream no longer has what lies between "
            f"{iso_time(reached or plan.begin_ms)} and {iso_time(timestamp_ms)}"
        )
        self._missing(missing)
        log.warning("%s: those events are missing", missing)
        return True

    def _look_back(self) -> None:
        """At the end of the range: what was known must have come again, also if it is dated ahead.

        Raises:
            HistoryMissing: it did not, and that is not allowed.
        """
        if self._landmark is None or self._landmark.settled:
            return
        at = iso_time(self._reached_ms or self._plan.begin_ms)
        missing = f"{self._name}: the upstream no longer has the event of {at}"
        self._missing(f"{missing}, nor perhaps what followed it")
        log.warning("%s: those events are missing", missing)
        self._send_gap()

    def _send_gap(self) -> None:
        self._send(
            Received(self._plan.source, next(self._connections), b"", b"", 0, 0, 0, gap=True)
        )

    def _missing(self, what: str) -> None:
        """Raises:
        HistoryMissing: that is not allowed.
        """
        if not self._plan.allow_gap:
            raise HistoryMissing(
                f"{what}. What was published before it is safe. To go on behind the gap, run the "
                "same command with --allow-gap"
            )

    def _take_absence(self, error: TopicsNotAvailable) -> None:
        """The upstream has the topic no more: what of the range was still to come is missing.

        Raises:
            HistoryMissing: that is not allowed.
        """
        reached = iso_time(self._reached_ms or self._plan.begin_ms)
        self._missing(
            f"{self._name}: {error.brief}: the upstream has nothing of it from {reached} on"
        )
        log.warning(
            "%s: the upstream no longer has this topic: what it had from %s on is missing, the other "
            "topics are replayed. If it returns, replay from there on",
            self._name,
            reached,
        )
        self._send_gap()
        self._over = True
