"""The settings of the local upstream, each declared once together with its flag.

A default is that of the real service where the service has the property, and off where it is a fault.
"""

from __future__ import annotations

import argparse
import re
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from pleiades.core.units import parse_duration

DATA_CENTRES = ("eqiad", "codfw")
"""Each has its own Kafka cluster, which also mirrors the other's topics."""

NOMINAL_RATE = 100.0
"""Events per second that date a history where no rate is set."""

DEFAULT_EVENTS = 100_000
"""Length of the history with `--rate 0` and no other limit."""

MAX_RECORD_BYTES = 16_384
"""Of TLS (RFC 8446, section 5.1)."""

_STREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


class Cut(Enum):
    """How a connection ends early."""

    RESET = "reset"
    """TCP reset: data in flight is lost."""
    CLOSE = "close"
    """Closed without the final chunk, possibly inside a chunk."""
    CLEAN = "clean"
    """A well-formed end of the HTTP answer, still possibly inside an event."""


def _number(
    convert: Callable[[str], float], meaning: str, top: float, low: float = 0
) -> Callable[[str], Any]:
    def read(text: str) -> float:
        try:
            number = convert(text)
        except ValueError:
            number = -1
        if not low <= number <= top:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no {meaning}")
        return number

    return read


_count = _number(int, "whole number from 0 on", 2**62)
_positive = _number(int, "whole number from 1 on", 2**62, low=1)
_record = _number(int, f"whole number from 0 to {MAX_RECORD_BYTES}", MAX_RECORD_BYTES)
_part = _number(float, "number from 0 to 1", 1)
_factor = _number(float, "number from 0 to 5", 5)
_events_per_second = _number(float, "number of events per second", 1e6)


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _streams(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if not all(map(_STREAM.fullmatch, names)):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no comma-separated list of streams")
    return names


_METAVARS = {_duration: "DURATION", _streams: "NAME,...", _part: "0-1", Path: "FILE"}


def flag(
    name: str,
    default: str | bool,
    read: Callable[[str], Any] | None,
    meaning: str,
    metavar: str | None = None,
    in_code: Any = ...,
) -> Any:
    """A field of the settings that has a flag.

    Args:
        name: of the flag, without the dashes.
        default: as typed on the command line, "" for None; a bool: the flag has no value, inverts it.
        read: parses the flag's value; raises `ArgumentTypeError` or `ValueError`.
        meaning: the help text.
        metavar: shown in place of the value; None: follows from `read`.
        in_code: the default of the field, where it differs from that of the flag.
    """
    if in_code is ...:
        in_code = default if read is None or isinstance(default, bool) else None
        if read is not None and default:
            in_code = read(str(default))
    return field(default=in_code, metadata={"flag": (f"--{name}", default, read, meaning, metavar)})


@dataclass(frozen=True, slots=True)
class Disorder:
    """How Kafka timestamps within one topic-partition deviate from the order of the offsets.

    The rates are probabilities per event; `--disorder` scales the first four.
    """

    collide_rate: float = 0.15
    """The same millisecond as the event before."""
    back_rate: float = 0.02
    """Earlier by up to 50 ms."""
    back_seconds_rate: float = 0.002
    """Earlier by 1 to 10 s."""
    back_years_rate: float = 0.00005
    """Earlier by up to ten years, like an imported edit."""
    ahead_rate: float = flag("aheadRate", "0", _part, "events dated in the future")
    ahead_seconds: float = flag("ahead", "1h", _duration, "by how much at most")
    resolution_ms: int = flag(
        "timestampResolution",
        "1ms",
        lambda text: max(round(_duration(text) * 1000), 1),
        "of Kafka's timestamps; recordings up to 2024 have 1s",
        "DURATION",
    )


NO_DISORDER = Disorder(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong on purpose, and how a connection behaves. Rates are probabilities."""

    cut_every_seconds: float = flag(
        "cutEvery", "15m", _duration, "a connection's life; 0: no limit"
    )
    cut_bytes: int = flag("cutBytes", "0", _count, "body bytes until a cut; 0: no limit")
    cut_jitter: float = flag("cutJitter", "0.5", _part, "relative variation of both")
    cuts: tuple[Cut, ...] = flag(
        "cut",
        "any",
        lambda text: tuple(Cut) if text == "any" else (Cut(text),),
        "TCP reset, close without the final chunk, clean end, or any of them",
        "reset|close|clean|any",
    )
    max_connections: int = flag(
        "maxConnections",
        "0",
        _count,
        "open streams; 429 for more; 0: no limit; the real service: ~2",
    )
    retry_after_seconds: int = flag(
        "retryAfter",
        "1s",
        lambda text: round(_duration(text)),
        "whole seconds, sent with 429 and 503",
        "DURATION",
    )
    error_rate: float = flag("errorRate", "0", _part, "requests that start a burst of 500 and 503")
    error_burst: int = flag("errorBurst", "3", _positive, "requests in a burst")
    hang_rate: float = flag("hangRate", "0", _part, "requests without an answer")
    silence_rate: float = flag("silenceRate", "0", _part, "connections without events")
    stall_rate: float = flag("stallRate", "0", _part, "writes that a stall precedes")
    stall_seconds: float = flag("stall", "5s", _duration, "length of a stall")
    error_event_rate: float = flag(
        "errorEventRate", "0", _part, "writes after which an `error` event ends the stream"
    )
    other_cluster_rate: float = flag(
        "otherClusterRate",
        "0.5",
        _part,
        "connections served by the other cluster, with its offsets",
    )
    # Measured at the real service: 0.46 to 0.53 s.
    deaf_seconds: float = flag(
        "deaf",
        "500ms",
        _duration,
        "time in which a connection misses what is produced to a topic that was requested from past "
        "its end, as the real service does",
    )
    mirror_lag_seconds: float = flag("mirrorLag", "0", _duration, "delay of the other's topics")
    chunk_bytes: int = flag("chunk", "0", _count, "body bytes written at a time; 0: whole events")
    gzip: bool = flag("gzip", False, None, "compress where the client accepts it")
    check_user_agent: bool = flag("anyUserAgent", True, None, "do not answer libraries with 403")
    missing_topics: frozenset[str] = frozenset()
    """Topics of the streams that Kafka does not have, or no longer has: 404."""


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """Everything a local upstream needs to know."""

    host: str = flag("host", "127.0.0.1", str, "address to listen on")
    port: int = flag("port", "8080", _count, "TCP port; 0: any free one", in_code=0)
    seed: int = flag("seed", "1", int, "same seed, same events and faults")
    streams: tuple[str, ...] = flag("streams", "recentchange", _streams, "streams that are served")
    partitions: int = flag("partitions", "1", _positive, "per topic")
    rate: float = flag(
        "rate",
        "50",
        lambda text: 0.0 if text == "max" else _events_per_second(text),
        "events appended per second; 0 or max: none, only a history, read as fast as the client can",
        in_code=0.0,
    )
    second_share: float = flag(
        "codfwShare", "0.15", _part, "share of the second data centre's events"
    )
    canary_every_seconds: float = flag(
        "canaryEvery", "1m", _duration, "event time between two canaries of a topic; 0: none"
    )
    file: Path | None = flag(  # noqa: RUF009
        "file",
        "",
        Path,
        "recorded events instead of generated ones, .ndjson (one JSON a line) or .sse (a capture), "
        "passed on byte for byte",
    )
    shift_timestamps: bool = flag("shiftTimestamps", False, None, "date recorded events as if new")
    journal: Path | None = flag("journal", "", Path, "write one JSON line per appended event")  # noqa: RUF009
    retention_bytes: int = flag(
        "retentionBytes", "536870912", _positive, "data kept in memory; the oldest events expire"
    )
    history_events: int = 0
    """Events in the log at the start."""
    history_seconds: float | None = None
    """Time that the history covers; None: as long as `rate`, else `NOMINAL_RATE`, needs for it."""
    max_events: int | None = None
    """Nothing is appended after this many, history included; None: no end."""
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
class _CommandOnly:
    """Flags that settings are computed from."""

    events: int | None = flag(
        "events", "", _count, "append no more, history included; --rate 0 implies 100000", "N"
    )
    history: float = flag(
        "history",
        "0",
        lambda text: _count(text) if text.isdigit() else _duration(text),
        "events from before the start: for a time like 10m at the rate, or a number; with --rate 0 "
        "the time that --events are spread over",
        "DURATION|N",
    )
    factor: float = flag(
        "disorder", "1", _factor, "scales how often timestamps collide or run backwards; 0: never"
    )
    tls: bool = flag("tls", False, None, "serve over HTTPS, with a certificate made at each start")
    tls_ca: Path = flag(  # noqa: RUF009
        "tlsCa", "simulator-ca.pem", Path, "where to write its authority, for --upstream.ca"
    )

    tls_record: int = flag(
        "tlsRecord", "0", _record, "implies --tls: most bytes in one TLS record; 0: no limit"
    )


_GROUPS = {
    SimulatorSettings: "what is served",
    _CommandOnly: "what else is served",
    Disorder: "its timestamps",
    Faults: "what goes wrong",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of the local upstream to a parser."""
    for settings, title in _GROUPS.items():
        group = parser.add_argument_group(title)
        for name, declared in _flags(settings):
            option, default, read, meaning, metavar = declared
            if isinstance(default, bool):
                action = "store_false" if default else "store_true"
                group.add_argument(option, action=action, dest=name, help=meaning)
            else:
                group.add_argument(
                    option,
                    type=read,
                    default=default or None,
                    dest=name,
                    metavar=metavar or _METAVARS.get(read, "N"),
                    help=f"{meaning} (default: {default})" if default else meaning,
                )


def settings_from(arguments: argparse.Namespace) -> SimulatorSettings:
    """The settings that parsed flags stand for, without TLS."""
    given = {
        settings: {name: getattr(arguments, name) for name, _ in _flags(settings)}
        for settings in _GROUPS
    }
    usual, factor = Disorder(), arguments.factor
    rates = ("collide_rate", "back_rate", "back_seconds_rate", "back_years_rate")
    scaled = {rate: getattr(usual, rate) * factor for rate in rates}
    rate, limit = arguments.rate, arguments.events
    history, seconds = arguments.history, None
    if isinstance(history, float):
        history, seconds = int(history * rate), history
    if rate == 0:
        history = limit = limit or history or DEFAULT_EVENTS
    return SimulatorSettings(
        history_events=history,
        history_seconds=seconds,
        max_events=limit,
        disorder=Disorder(**scaled, **given[Disorder]),
        faults=Faults(**given[Faults]),
        **given[SimulatorSettings],
    )


def _flags(settings: type) -> Iterator[tuple[str, Any]]:
    """The fields that have a flag, with what `flag` says about each."""
    for declared in fields(settings):
        if "flag" in declared.metadata:
            yield declared.name, declared.metadata["flag"]


def topics_of(stream: str) -> tuple[str, ...]:
    """The Kafka topics behind a stream's public name, e.g. `eqiad.mediawiki.recentchange`."""
    name = stream if "." in stream else f"mediawiki.{stream}"
    return tuple(f"{data_centre}.{name}" for data_centre in DATA_CENTRES)


def stream_of(topic: str) -> str:
    """The public name of the stream that a topic belongs to."""
    data_centre, _, name = topic.partition(".")
    return (name if data_centre in DATA_CENTRES else topic).removeprefix("mediawiki.")
