# ruff: noqa: RUF009  # `flag` makes fields of dataclasses
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
from typing import Annotated, Any, get_type_hints

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
    """The ways in which a connection ends early."""

    RESET = "reset"
    """TCP reset: data in flight is lost."""
    CLOSE = "close"
    """Closed without the final chunk, possibly inside a chunk."""
    CLEAN = "clean"
    """A well-formed end of the HTTP answer, still possibly inside an event."""


def _number(convert: Callable[[str], float], meaning: str, top: float, low: float = 0) -> Any:
    def read(text: str) -> float:
        try:
            number = convert(text)
        except ValueError:
            number = -1
        if not low <= number <= top:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no {meaning}")
        return number

    return read


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


def _rate(text: str) -> Any:
    return 0.0 if text == "max" else _number(float, "number of events per second", 1e6)(text)


def _history(text: str) -> Any:
    return _COUNT(text) if text.isdigit() else _duration(text)


def _cuts(text: str) -> tuple[Cut, ...]:
    return tuple(Cut) if text == "any" else (Cut(text),)


# Types of settings that have a flag: the reader of its value, and the value's name in the help.
_COUNT = _number(int, "whole number from 0 on", 2**62)
Count = Annotated[int, _COUNT, "N"]
Positive = Annotated[int, _number(int, "whole number from 1 on", 2**62, low=1), "N"]
Part = Annotated[float, _number(float, "number from 0 to 1", 1), "0-1"]
Factor = Annotated[float, _number(float, "number from 0 to 5", 5), "0-5"]
RecordBytes = Annotated[
    int, _number(int, f"whole number from 0 to {MAX_RECORD_BYTES}", MAX_RECORD_BYTES), "BYTES"
]
Seconds = Annotated[float, _duration, "DURATION"]
WholeSeconds = Annotated[int, lambda text: round(_duration(text)), "DURATION"]
Milliseconds = Annotated[int, lambda text: max(round(_duration(text) * 1000), 1), "DURATION"]
Rate = Annotated[float, _rate, "N|max"]
History = Annotated[float, _history, "DURATION|N"]
Streams = Annotated[tuple[str, ...], _streams, "NAME,..."]
Cuts = Annotated[tuple[Cut, ...], _cuts, "reset|close|clean|any"]
Integer = Annotated[int, int, "N"]
Text = Annotated[str, str, "ADDRESS"]
File = Annotated[Path | None, Path, "FILE"]
Switch = Annotated[bool, None, None]


def flag(default: Any, meaning: str, name: str | None = None, unless_given: Any = ...) -> Any:
    """A field of the settings that has a flag.

    Args:
        default: a Switch has no value: its flag inverts this.
        meaning: the help text.
        name: of the flag; None: the field's name in camel case, without `_seconds`.
        unless_given: the command's default, where it differs from the field's.
    """
    if unless_given is ...:
        unless_given = default
    return field(default=default, metadata={"flag": (name, meaning, unless_given)})


@dataclass(frozen=True, slots=True)
class Disorder:
    """The deviations of Kafka timestamps within a topic-partition from the order of the offsets.

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
    ahead_rate: Part = flag(0.0, "events dated in the future")
    ahead_seconds: Seconds = flag(3600.0, "by how much at most")
    resolution_ms: Milliseconds = flag(
        1, "of Kafka's timestamps; until 2024: 1s", "timestampResolution"
    )


NO_DISORDER = Disorder(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults to inject, and the behaviour of a connection. Rates are probabilities."""

    cut_every_seconds: Seconds = flag(900.0, "life of a connection; 0: no limit")
    cut_bytes: Count = flag(0, "body bytes until a cut; 0: no limit")
    cut_jitter: Part = flag(0.5, "relative variation of both")
    cuts: Cuts = flag(tuple(Cut), "TCP reset, close without a final chunk, clean end", "cut", "any")
    max_connections: Count = flag(
        0, "open streams, 429 for more; 0: no limit (the service: about 2)"
    )
    retry_after_seconds: WholeSeconds = flag(1, "sent with 429 and 503")
    error_rate: Part = flag(0.0, "requests that start a burst of 500 and 503")
    error_burst: Positive = flag(3, "requests in a burst")
    hang_rate: Part = flag(0.0, "requests without an answer")
    silence_rate: Part = flag(0.0, "connections without events")
    stall_rate: Part = flag(0.0, "writes that a stall precedes")
    stall_seconds: Seconds = flag(5.0, "length of a stall")
    error_event_rate: Part = flag(0.0, "writes after which an `error` event ends the stream")
    other_cluster_rate: Part = flag(0.5, "connections served by the second Kafka, with its offsets")
    # Measured at the real service: 0.46 to 0.53 s.
    deaf_seconds: Seconds = flag(0.5, "time in which new events of a topic past its end are missed")
    mirror_lag_seconds: Seconds = flag(0.0, "delay of a Kafka's topics from the other data centre")
    chunk_bytes: Count = flag(0, "body bytes written at a time; 0: whole events", "chunk")
    gzip: Switch = flag(False, "compress where the client accepts it")
    check_user_agent: Switch = flag(True, "serve libraries' default user agents", "anyUserAgent")
    missing_topics: frozenset[str] = frozenset()
    """Topics of the streams that Kafka does not have, or no longer has: 404."""


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """Everything a local upstream needs to know."""

    host: Text = flag("127.0.0.1", "address to listen on")
    port: Count = flag(0, "TCP port; 0: any free one", unless_given=8080)
    seed: Integer = flag(1, "same seed, same events and faults")
    streams: Streams = flag(("recentchange",), "streams that are served")
    partitions: Positive = flag(1, "per topic")
    rate: Rate = flag(
        0.0, "events appended per second; 0 or max: only a history", unless_given=50.0
    )
    second_share: Part = flag(0.15, "events of the second data centre", "codfwShare")
    canary_every_seconds: Seconds = flag(
        60.0, "event time between two canaries of a topic; 0: none"
    )
    file: File = flag(None, "recorded events, served byte for byte; .ndjson, or a capture in .sse")
    shift_timestamps: Switch = flag(False, "date recorded events as if they were new")
    journal: File = flag(None, "write one JSON line per appended event")
    retention_bytes: Positive = flag(512 * 1024 * 1024, "data kept; the oldest events expire")
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

    events: Annotated[int | None, _COUNT, "N"] = flag(
        None, "at most, history included; --rate 0 implies 100000"
    )
    history: History = flag(
        0, "before the start; a time is at --rate, or --events are spread over it"
    )
    factor: Factor = flag(1.0, "scales how often timestamps are out of order; 0: never", "disorder")
    tls: Switch = flag(False, "serve over HTTPS, with a certificate made at each start")
    tls_ca: File = flag(Path("simulator-ca.pem"), "where to write its authority, for --upstream.ca")
    tls_record: RecordBytes = flag(0, "implies --tls: most bytes in one TLS record; 0: no limit")


_GROUPS = {
    SimulatorSettings: "what is served",
    _CommandOnly: "how much of it, and how",
    Disorder: "timestamps",
    Faults: "connections",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of the local upstream to a parser."""
    for settings, title in _GROUPS.items():
        add = parser.add_argument_group(title).add_argument
        for name, (read, metavar), (own_name, meaning, default) in _flags(settings):
            first, *words = name.removesuffix("_seconds").split("_")
            option = "--" + (own_name or first + "".join(map(str.capitalize, words)))
            if read is None:
                action = "store_false" if default else "store_true"
                add(option, action=action, dest=name, help=meaning)
                continue
            shown = ",".join(default) if isinstance(default, tuple) else default
            shown = f"{shown:g}" if isinstance(shown, float) else shown
            unit = ("ms" if name.endswith("_ms") else "s") if metavar == "DURATION" else ""
            shown = meaning if default is None else f"{meaning} (default: {shown}{unit})"
            add(option, type=read, default=default, dest=name, metavar=metavar, help=shown)


def settings_from(arguments: argparse.Namespace) -> SimulatorSettings:
    """The settings that parsed flags stand for, without TLS."""
    given = {
        settings: {name: getattr(arguments, name) for name, _, _ in _flags(settings)}
        for settings in _GROUPS
    }
    usual = Disorder()
    rates = ("collide_rate", "back_rate", "back_seconds_rate", "back_years_rate")
    scaled = {rate: getattr(usual, rate) * arguments.factor for rate in rates}
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


def _flags(settings: type) -> Iterator[tuple[str, tuple[Any, Any], Any]]:
    """Name, annotations and declaration of each field that has a flag."""
    types = get_type_hints(settings, include_extras=True)
    for declared in fields(settings):
        if "flag" in declared.metadata:
            yield declared.name, types[declared.name].__metadata__, declared.metadata["flag"]


def topics_of(stream: str) -> tuple[str, ...]:
    """The Kafka topics behind a stream's public name, e.g. `eqiad.mediawiki.recentchange`."""
    name = stream if "." in stream else f"mediawiki.{stream}"
    return tuple(f"{data_centre}.{name}" for data_centre in DATA_CENTRES)


def stream_of(topic: str) -> str:
    """The public name of the stream that a topic belongs to."""
    data_centre, _, name = topic.partition(".")
    return (name if data_centre in DATA_CENTRES else topic).removeprefix("mediawiki.")
