"""What the local upstream is to be like.

Law: frozen values. The defaults are those of the real service where it has the property at all, and off
where it is a fault.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

DATA_CENTRES = ("eqiad", "codfw")
"""Each has its own Kafka cluster, which holds the topics of both (the other's by mirroring)."""

NOMINAL_RATE = 100.0
"""Events per second that a history is dated with where no rate is set."""

RETENTION_BYTES = 512 * 1024 * 1024
"""Data kept in the log, about 400,000 events of 1.25 kB; the oldest expire, as upstream's do."""


class Cut(Enum):
    """How a connection ends before its time."""

    RESET = "reset"
    """TCP reset: what is under way is thrown away."""
    CLOSE = "close"
    """Closed without the final chunk, perhaps inside a chunk."""
    CLEAN = "clean"
    """A well-formed HTTP end; all the same perhaps inside an event."""


@dataclass(frozen=True, slots=True)
class Disorder:
    """How Kafka timestamps within one topic-partition depart from the order of the offsets.

    The rates are probabilities per event; 0 switches a kind off.
    """

    collide_rate: float = 0.15
    """The same millisecond as the event before."""
    back_rate: float = 0.02
    """Earlier by up to 50 ms."""
    back_seconds_rate: float = 0.002
    """Earlier by 1 to 10 s."""
    back_years_rate: float = 0.00005
    """Earlier by up to ten years, like an imported edit."""
    ahead_rate: float = 0.0
    """Later by up to `ahead_seconds`."""
    ahead_seconds: float = 3600.0
    resolution_ms: int = 1
    """1000: whole seconds, as in recordings up to 2024."""


NO_DISORDER = Disorder(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong on purpose. Rates are probabilities per request unless they say otherwise."""

    cut_every_seconds: float = 900.0
    """A connection's life; 0: no limit. The real service ends each after 15 minutes."""
    cut_bytes: int = 0
    """Body bytes after which a connection is cut; 0: no limit."""
    cut_jitter: float = 0.5
    """Part of both that varies, from 0 to 1: life × (1 ± jitter)."""
    cuts: tuple[Cut, ...] = tuple(Cut)
    """The ways of cutting to choose from."""
    max_connections: int = 0
    """Open streams beyond which 429 is answered; 0: no limit. The real service allows about 2."""
    retry_after_seconds: int = 1
    """Sent with 429 and 503."""
    error_rate: float = 0.0
    """Starts a burst of 500 and 503."""
    error_burst: int = 3
    """Requests that one burst refuses."""
    hang_rate: float = 0.0
    """No answer, not even headers, until the client gives up (Kafka is away)."""
    silence_rate: float = 0.0
    """`:ok` and nothing more, though there are events."""
    stall_rate: float = 0.0
    """Probability per write of a pause in mid-stream."""
    stall_seconds: float = 5.0
    error_event_rate: float = 0.0
    """Probability per write of an `error` event, after which the stream ends."""
    other_cluster_rate: float = 0.5
    """A connection is served by the second data centre's cluster, where offsets differ."""
    deaf_seconds: float = 0.5
    """For so long a connection sends nothing of a topic-partition that was asked for from past its end:
    what is produced meanwhile is never sent on it. Measured: 0.46 to 0.53 s."""
    mirror_lag_seconds: float = 0.0
    """By how much a topic is late in the cluster that is not its home."""
    chunk_bytes: int = 0
    """Write the body in pieces of this size; 0: as many whole events as there are."""
    gzip: bool = False
    """Compress for clients that accept it."""
    missing_topics: frozenset[str] = frozenset()
    """Topics of the streams that its Kafka does not have, or no more: 404 for who asks for one."""
    check_user_agent: bool = True
    """403 for libraries' default agents without contact details."""


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """Everything a local upstream needs to know."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free port."""
    seed: int = 1
    streams: tuple[str, ...] = ("recentchange",)
    partitions: int = 1
    """Per topic."""
    rate: float = 0.0
    """Events appended per second from the start on; 0: none, only the history."""
    history_events: int = 0
    """Events already in the log at the start."""
    history_seconds: float | None = None
    """The time the history covers; None: what `rate`, else `NOMINAL_RATE`, makes of it."""
    max_events: int | None = None
    """Nothing is appended after this many, the history included; None: go on."""
    second_share: float = 0.15
    """Part of the events that come from the second data centre."""
    canary_every_seconds: float = 60.0
    """Of event time, in each topic, from the first event on; 0: no canaries."""
    disorder: Disorder = field(default_factory=Disorder)
    file: Path | None = None
    """Recorded events (.ndjson or .sse) instead of generated ones."""
    shift_timestamps: bool = False
    """Date recorded events as if they were new, keeping their disorder."""
    journal: Path | None = None
    """Where the truth is written to; None: only served at /simulator/journal."""
    retention_bytes: int = RETENTION_BYTES
    tls: ssl.SSLContext | None = None
    """Serve over TLS, as `tls.server_context` makes it; None: plain HTTP."""
    faults: Faults = field(default_factory=Faults)

    @property
    def scheme(self) -> str:
        """Of its URL."""
        return "http" if self.tls is None else "https"

    def period_ms(self) -> float:
        """The mean distance between two events."""
        if self.rate > 0:
            return 1000.0 / self.rate
        if self.history_seconds is not None and self.history_events > 0:
            return self.history_seconds * 1000.0 / self.history_events
        return 1000.0 / NOMINAL_RATE


def topics_of(stream: str) -> tuple[str, ...]:
    """The Kafka topics behind a stream's public name, e.g. `eqiad.mediawiki.recentchange`."""
    name = stream if "." in stream else f"mediawiki.{stream}"
    return tuple(f"{data_centre}.{name}" for data_centre in DATA_CENTRES)


def stream_of(topic: str) -> str:
    """The public name of the stream that a topic belongs to."""
    data_centre, _, name = topic.partition(".")
    return (name if data_centre in DATA_CENTRES else topic).removeprefix("mediawiki.")
