"""The contract between the publisher and a destination, and the description of a destination.

Every sink passes the same suite, tests/contract/test_sinks.py. The publisher calls from one thread:

    open → (is_published | write)* → commit → … → finish → close

- `open` makes the destination ready, keeps other instances out, and says what is durable.
- `write` takes events in upstream order. They need not be durable or visible yet.
- `commit` returns when everything written **and** the checkpoint are durable: the events first or
  both together, never the checkpoint first. It does not give up: it retries whatever can pass.
- After a crash at any point, `open` gives a checkpoint that covers no event that is not published, and
  in `Opened.window` every event that is published and may come again. A destination forgets an event
  only if `Checkpoint.known_from` says so. Neither clocks nor users who move events change that.
- `close` is safe at any time, also twice; it commits nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from pleiades.config.flags import Flag, flags_of, values_of
from pleiades.config.settings import Settings
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import Event
from pleiades.core.sse_id import TopicPartition
from pleiades.runtime.child import ChildContext
from pleiades.runtime.findings import Finding
from pleiades.runtime.metrics import Metrics

MAX_BYTES_IN_FLIGHT = 20 * 1024 * 1024
BACKLOG_COMMIT_SECONDS = 1.0
LEAST_COMMIT_BYTES = 512 * 1024
"""A commit is of whole batches, and a batch of history is about so long."""
SLOW_COMMIT_SECONDS, FAST_COMMIT_SECONDS = 30.0, 5.0


class Remembered(NamedTuple):
    """A published event, as the window remembers it."""

    source: TopicPartition
    reached_ms: int
    """The greatest timestamp that `source` had delivered when it was published, dropped events
    included. A greater one, such as the stored position's, only keeps it longer."""
    fingerprint: bytes
    """See `core.fingerprint`."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The state of a destination when it was opened."""

    checkpoint: Checkpoint | None
    """The stored checkpoint; None: nothing is stored."""
    window: Iterable[Remembered] = ()
    """The published events that may be repeated, for each source in the order of delivery. It may be
    iterated only once, before any other call of the sink."""
    window_complete: bool = True
    """False: of an event that is not in the window the sink must be asked (`is_published`)."""


class Committed(NamedTuple):
    """The result of a commit."""

    dead_letters: list[Event]
    """The dead letters written, and the events that the destination refused for their size."""
    repeated: int = 0
    """The number of events that the destination had already and left unchanged."""


class Sink(Protocol):
    """A destination of events."""

    def open(self, resume: bool) -> Opened:
        """Prepare the destination.

        Args:
            resume: false: a new start is wanted. The stored checkpoint is returned all the same, because
                it knows of published events; damage need not be repaired.

        Raises:
            Fatal: it can't be used, and waiting would not help.
            DestinationHeld: another instance publishes there.
        """

    def is_published(self, event: Event) -> bool:
        """True if the destination has an event that is not in `Opened.window`.

        The answer matters only if `Opened.window_complete` is false.
        """

    def write(self, events: Sequence[Event]) -> None:
        """Take events and dead letters (see `Event.reason`), to be published with the next commit.

        Usually they are `Columns`, of which a sink may take the columns it needs.
        """

    def commit(self, checkpoint: Checkpoint) -> Committed:
        """Make everything written and the checkpoint durable, however long that takes.

        Raises:
            Fatal: it is impossible, and waiting would not help.
            DestinationHeld: another instance has taken over.
            GenerationLost: only a new process can do it.
        """

    def poll(self) -> None:
        """Called at least every half second while there is nothing to write."""

    def finish(self) -> None:
        """Called after the last commit of a run that ends by itself or is stopped.

        Raises:
            Stopped: a stop was requested; what is left is done after the next start.
        """

    def close(self) -> None:
        """Release the destination and drop what is not committed."""


# ---- the description of a destination ----


@dataclass(frozen=True, slots=True)
class CommitPolicy:
    """When events in flight are committed: by time, number or size, whichever comes first.

    The time counts from the previous commit, not from the first event: after a pause an event is
    committed at once, and a steady flow needs no more commits. While the next events wait already the
    interval is longer: fewer commits relay a backlog sooner, and each of its events is late anyway.
    """

    interval_seconds: float = 0.2
    max_events: int = 5000
    max_bytes: int = MAX_BYTES_IN_FLIGHT
    most_bytes: int = MAX_BYTES_IN_FLIGHT
    """The limit of `max_bytes`, which a destination that commits fast reaches after some commits."""

    def after(self, commit_seconds: float) -> CommitPolicy:
        """The policy after a commit that took so long: of a slow destination each takes less.

        Otherwise a backlog would make a transaction that lasts longer than the broker allows.
        """
        if commit_seconds > SLOW_COMMIT_SECONDS:
            return replace(self, max_bytes=max(self.max_bytes // 2, LEAST_COMMIT_BYTES))
        if commit_seconds < FAST_COMMIT_SECONDS and self.max_bytes < self.most_bytes:
            return replace(self, max_bytes=min(self.max_bytes * 2, self.most_bytes))
        return self

    def due(self, since_last_seconds: float, events: int, size_bytes: int, backlog: bool) -> bool:
        """True if it is time to commit; `backlog`: more events are waiting."""
        interval_seconds = self.interval_seconds
        if backlog:
            interval_seconds = max(interval_seconds, BACKLOG_COMMIT_SECONDS)
        return (
            since_last_seconds >= interval_seconds
            or events >= self.max_events
            or size_bytes >= self.max_bytes
        )


class SinkContext(NamedTuple):
    """The process around a sink."""

    child: ChildContext
    metrics: Metrics
    settings: Settings
    reached: bool
    """An earlier process of this program had the destination open."""


@dataclass(frozen=True)
class Destination(ABC):
    """A destination as the command line configured it: everything that others know of it.

    A subclass adds its settings as fields and stands in `sinks.registry`. It is pickled to child
    processes, so its module is imported in each of them: it imports its sink only in `make_sink`.
    """

    position_name: str
    """The name under which the position is stored."""

    enable: ClassVar[Flag]
    """The boolean flag that chooses it."""
    prefix: ClassVar[str] = ""
    """The beginning of the names of its other flags, which its fields declare."""
    outranks: ClassVar[bool] = False
    """Its flag also wins beside that of another destination."""
    skip_existing_refusal: ClassVar[str] = ""
    """Why a replay has no --skipExisting here; empty: it has."""
    modules: ClassVar[tuple[str, ...]] = ()
    """The modules that `make_sink` imports. They are imported once, before processes are forked."""

    @classmethod
    def flags(cls) -> Sequence[Flag]:
        """All its flags."""
        return (cls.enable, *flags_of(cls, cls.prefix))

    @classmethod
    def from_flags(cls, given: Mapping[str, Any], position_name: str) -> Self:
        """Take the settings from the values of all flags, by name.

        Raises:
            UsageError: they contradict each other.
        """
        return cls(position_name, **values_of(cls, given, cls.prefix))

    @staticmethod
    def refused_argument(_words: Sequence[str]) -> str | None:
        """Why this command line must not be used, whichever destination it chooses; None: it may."""
        return None

    @property
    @abstractmethod
    def place(self) -> str:
        """The place of the events in words, such as "files in /srv/events"."""

    @abstractmethod
    def make_sink(self, context: SinkContext) -> Sink:
        """Make the sink in the publisher's process; does not open it."""

    @property
    def commit_policy(self) -> CommitPolicy:
        """When the publisher commits."""
        return CommitPolicy()

    def record_commit(  # noqa: B027  # a hook
        self, metrics: Metrics, published: int, reached_ms: int
    ) -> None:
        """Count a commit in metrics of the destination's own.

        Args:
            published: how many events it published.
            reached_ms: the greatest upstream timestamp so far, ms since 1970; 0: none, or a replay's.
        """

    def inspect(self, settings: Settings) -> Iterator[Finding]:
        """Look at the destination for `pleiades check`; leaves nothing behind.

        Raises:
            Fatal: a start would fail in the same way.
        """
        yield from ()

    def clock_refusal(self, _ahead_seconds: float) -> str:
        """Why nothing could be published while this machine's clock is so far ahead; negative: behind.

        Empty: events could be published, or `inspect` tells more. Asked about large differences only.
        """
        return ""

    def stored_checkpoint(self, is_replay: bool = True) -> Checkpoint | None:
        """Look for the checkpoint that an earlier run of a replay, or an ingest, left; changes nothing.

        Raises:
            Fatal: the destination can't be read.
        """
        return None

    def refuse_if_held(self) -> None:  # noqa: B027  # a hook
        """Find out, without opening it, whether another instance publishes here.

        Raises:
            DestinationHeld: it does.
        """


def destination_of(settings: Settings) -> Destination:
    """The destination of a relay."""
    if not isinstance(settings.destination, Destination):
        raise TypeError("Settings.destination is no Destination")
    return settings.destination
