# ruff: noqa: RUF009  # `flag` makes fields of dataclasses
"""The settings of the local upstream, each declared once together with its flag.

A default is that of the real service where the service has the property, and off where it is a fault.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from pleiades.config import values
from pleiades.config.flags import BOOLEAN, flag, flags_of, values_of
from pleiades.config.values import Reader, duration, integer, optional

COMMAND = "simulate"
DATA_CENTRES = ("eqiad", "codfw")
"""Each has its own Kafka cluster, which also mirrors the other's topics."""
NOMINAL_RATE = 100.0
"""Events per second that date a history where no rate is set."""
DEFAULT_EVENTS = 100_000
"""Length of the history with `--rate 0` and no other limit."""


class Cut(Enum):
    """The ways in which a connection ends early."""

    RESET = "reset"
    """TCP reset: data in flight is lost."""
    CLOSE = "close"
    """Closed without the final chunk, possibly inside a chunk."""
    CLEAN = "clean"
    """A well-formed end of the HTTP answer, still possibly inside an event."""


def _number(most: float) -> Reader:
    def read(text: str) -> float:
        number = float(text)
        if not 0 <= number <= most:
            raise ValueError(f"{text!r} is not between 0 and {most:g}")
        return number

    return Reader(f"0-{most:g}", read)


COUNT, POSITIVE = integer(0, 2**62), integer(1, 2**62)
PORT = integer(0, values.MAX_PORT)
# Of TLS: RFC 8446, section 5.1.
RECORD = integer(0, 16_384, "bytes")
SHARE, FACTOR, EVENT_RATE = _number(1), _number(5), _number(1e6)
SECONDS = duration()
MILLISECONDS = Reader("duration", lambda text: max(round(SECONDS(text) * 1000), 1))
FILE = optional(Reader("file", values.path))
STREAMS = Reader("name,...", lambda text: values.streams(",".join(dict.fromkeys(text.split(",")))))
CUTS = Reader("reset|close|clean|any", lambda text: tuple(Cut) if text == "any" else (Cut(text),))
RATE = Reader("number|max", lambda text: 0.0 if text == "max" else EVENT_RATE(text))
HISTORY = Reader("duration|number", lambda text: (COUNT if text.isdigit() else SECONDS)(text))


@dataclass(frozen=True, slots=True)
class Disorder:
    """The deviations of Kafka timestamps within a topic-partition from the order of the offsets.

    The rates are probabilities per event.
    """

    collide_rate: float = 0.15
    """The same millisecond as the event before."""
    back_rate: float = 0.02
    """Earlier by up to 50 ms."""
    back_seconds_rate: float = 0.002
    """Earlier by 1 to 10 s."""
    back_years_rate: float = 0.00005
    """Earlier by up to ten years, like an imported edit."""
    factor: float = flag(
        "1", "scales how often they are out of order", FACTOR, name="disorder", group="timestamps"
    )
    ahead_rate: float = flag("0", "events dated in the future", SHARE)
    ahead_seconds: float = flag("1h", "by how much at most", SECONDS)
    resolution_ms: int = flag("1ms", "until 2024: 1s", MILLISECONDS, name="timestampResolution")


NO_DISORDER = Disorder(factor=0.0)


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults to inject, and the behaviour of a connection. Rates are probabilities."""

    cut_every_seconds: float = flag(
        "900s", "life of a connection; 0: no limit", SECONDS, group="connections"
    )
    cut_bytes: int = flag("0", "body bytes until a cut; 0: no limit", COUNT)
    cut_jitter: float = flag("0.5", "relative variation of both", SHARE)
    cuts: tuple[Cut, ...] = flag("any", "TCP reset, no final chunk, clean end", CUTS, name="cut")
    max_connections: int = flag("0", "open streams; 429 for more (the service: 2); 0: any", COUNT)
    retry_after_seconds: float = flag("1s", "sent with 429 and 503, in whole seconds", SECONDS)
    error_rate: float = flag("0", "requests that start a burst of 500 and 503", SHARE)
    error_burst: int = flag("3", "requests in a burst", POSITIVE)
    hang_rate: float = flag("0", "requests without an answer", SHARE)
    silence_rate: float = flag("0", "connections without events", SHARE)
    stall_rate: float = flag("0", "writes that a stall precedes", SHARE)
    stall_seconds: float = flag("5s", "length of a stall", SECONDS)
    error_event_rate: float = flag("0", "writes followed by an `error` event", SHARE)
    other_cluster_rate: float = flag(
        "0.5", "connections to the other Kafka, with its offsets", SHARE
    )
    # Measured at the real service: 0.46 to 0.53 s.
    deaf_seconds: float = flag("0.5s", "how long a topic past its end misses new events", SECONDS)
    mirror_lag_seconds: float = flag("0s", "delay of the other data centre's topics", SECONDS)
    chunk_bytes: int = flag("0", "body bytes in a write; 0: whole events", COUNT, name="chunk")
    gzip: bool = flag("false", "compress where the client accepts it", BOOLEAN)
    any_user_agent: bool = flag("false", "serve libraries' default user agents", BOOLEAN)
    missing_topics: frozenset[str] = frozenset()
    """Topics of the streams that Kafka does not have, or no longer has: 404."""


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """Everything a local upstream needs to know."""

    host: str = flag("127.0.0.1", "address to listen on", group="what is served")
    port: int = flag("0", "TCP port; 0: any free one", PORT, defaults={COMMAND: "8080"})
    seed: int = flag("1", "same seed, same events and faults", integer(-(2**63), 2**63 - 1))
    streams: tuple[str, ...] = flag("recentchange", "streams that are served", STREAMS)
    partitions: int = flag("1", "per topic", POSITIVE)
    rate: float = flag("0", "events/s; 0 or max: only a history", RATE, defaults={COMMAND: "50"})
    max_events: int | None = flag(
        "", "at most, history included; --rate 0 implies 100000", optional(COUNT), name="events"
    )
    """Nothing is appended after this many; None: no end."""
    second_share: float = flag("0.15", "events of the second data centre", SHARE, name="codfwShare")
    canary_every_seconds: float = flag("60s", "between a topic's canaries; 0: none", SECONDS)
    file: Path | None = flag("", "recorded events, served as they are; .ndjson or .sse", FILE)
    shift_timestamps: bool = flag("false", "date recorded events as if they were new", BOOLEAN)
    journal: Path | None = flag("", "write one JSON line per appended event", FILE)
    retention_bytes: int = flag("536870912", "data kept; the oldest events expire", POSITIVE)
    history_events: int = 0
    """Events in the log at the start."""
    history_seconds: float | None = None
    """Time that the history covers; None: as long as `rate`, else `NOMINAL_RATE`, needs for it."""
    disorder: Disorder = field(default_factory=Disorder)
    tls: ssl.SSLContext | None = None
    """Serve over TLS, as `tls.server_context` makes it; None: plain HTTP."""
    faults: Faults = field(default_factory=Faults)

    def period_ms(self) -> float:
        """The mean distance between two events."""
        if self.rate > 0:
            return 1000.0 / self.rate
        if self.history_seconds is not None and self.history_events > 0:
            return self.history_seconds * 1000.0 / self.history_events
        return 1000.0 / NOMINAL_RATE


@dataclass(frozen=True, slots=True)
class Arguments:
    """The flags of the command that are not settings themselves."""

    history: int | float = flag(
        "0", "before the start; a time is at --rate, or --events are spread over it", HISTORY
    )
    tls: bool = flag("false", "serve over HTTPS, with a certificate made at each start", BOOLEAN)
    tls_ca: Path = flag("simulator-ca.pem", "where to write its authority, for --upstream.ca", FILE)
    tls_record: int = flag("0", "implies --tls: most bytes in one TLS record; 0: no limit", RECORD)


FLAGS = (
    *flags_of(SimulatorSettings),
    *flags_of(Arguments),
    *flags_of(Disorder),
    *flags_of(Faults),
)


def settings_from(given: Mapping[str, Any]) -> SimulatorSettings:
    """The settings that the values of all flags stand for, without TLS."""
    settings = SimulatorSettings(
        disorder=Disorder(**values_of(Disorder, given)),
        faults=Faults(**values_of(Faults, given)),
        **values_of(SimulatorSettings, given),
    )
    events, seconds = given["history"], None
    if isinstance(events, float):
        events, seconds = int(events * settings.rate), events
    if settings.rate == 0:
        events = settings.max_events or events or DEFAULT_EVENTS
        settings = replace(settings, max_events=events)
    return replace(settings, history_events=events, history_seconds=seconds)


def topics_of(stream: str) -> tuple[str, ...]:
    """The Kafka topics behind a stream's public name, e.g. `eqiad.mediawiki.recentchange`."""
    name = stream if "." in stream else f"mediawiki.{stream}"
    return tuple(f"{data_centre}.{name}" for data_centre in DATA_CENTRES)


def stream_of(topic: str) -> str:
    """The public name of the stream that a topic belongs to."""
    data_centre, _, name = topic.partition(".")
    return (name if data_centre in DATA_CENTRES else topic).removeprefix("mediawiki.")
