"""The flags of `pleiades simulate`, each with its default and unit."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from pleiades.core.units import parse_duration
from pleiades.simulator.settings import RETENTION_BYTES, Cut, Faults

DEFAULT_RATE = 50.0
"""Events per second; the real stream has tens."""
DEFAULT_EVENTS = 100_000
"""Of a history without a rate."""

MAX_RECORD_BYTES = 16_384
"""Of TLS (RFC 8446, section 5.1)."""

_STREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all flags of the local upstream to a parser."""
    add = parser.add_argument_group("what is served").add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=_count, default=8080, help="TCP port; 0: any free one (default: 8080)")
    add(
        "--tls",
        action="store_true",
        help="serve over HTTPS, with a certificate of its own that is made at each start",
    )
    add(
        "--tlsCa",
        type=Path,
        metavar="FILE",
        default=Path("simulator-ca.pem"),
        help="where the authority of that certificate is written to, for --upstream.ca (default: "
        "%(default)s)",
    )
    add(
        "--tlsRecord",
        type=_record,
        metavar="BYTES",
        default=0,
        help="implies --tls: most bytes in one TLS record; 0: each write is one record, up to "
        f"{MAX_RECORD_BYTES} bytes (default: 0)",
    )
    add("--seed", type=int, default=1, help="same seed, same events and faults (default: 1)")
    add(
        "--streams",
        type=_streams,
        default=("recentchange",),
        metavar="NAME,...",
        help="streams that can be asked for (default: recentchange)",
    )
    add("--partitions", type=_positive, default=1, help="per topic (default: 1)")
    add(
        "--rate",
        type=_rate,
        default=DEFAULT_RATE,
        help="events appended per second; 0 or max: none, there is only a history, read as fast "
        f"as the client can (default: {DEFAULT_RATE:.0f})",
    )
    add(
        "--events",
        type=_count,
        metavar="N",
        help="append no more than N events, the history included (default: no end; "
        f"with --rate 0: {DEFAULT_EVENTS})",
    )
    add(
        "--history",
        type=_history,
        default=0,
        metavar="DURATION|N",
        help="events from before the start: for a time like 10m at the rate, or a number; with "
        "--rate 0 the time over which --events are spread (default: 0)",
    )
    add(
        "--file",
        type=Path,
        help="recorded events instead of made-up ones: .ndjson (one JSON a line) or .sse "
        "(a capture), passed on byte for byte",
    )
    add(
        "--shiftTimestamps",
        action="store_true",
        help="date recorded events as if they were new (default: as recorded)",
    )
    add("--journal", type=Path, metavar="FILE", help="write one JSON line per appended event")
    add(
        "--retentionBytes",
        type=_positive,
        default=RETENTION_BYTES,
        help="data kept in memory; the oldest expire (default: %(default)s)",
    )
    _add_nature(parser)
    _add_faults(parser)


def _add_nature(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how it is by nature").add_argument
    add(
        "--disorder",
        type=_factor,
        default=1.0,
        help="how often timestamps collide and run backwards, relative to what is usual; 0: never "
        "(default: 1)",
    )
    add("--aheadRate", type=_part, default=0.0, help="events dated in the future, 0-1 (default: 0)")
    add(
        "--ahead",
        type=_duration,
        default=3600.0,
        metavar="DURATION",
        help="by how much at most (default: 1h)",
    )
    add(
        "--timestampResolution",
        type=_duration,
        default=0.001,
        metavar="DURATION",
        help="of Kafka's timestamps, e.g. 1s (default: 1ms)",
    )
    add(
        "--codfwShare",
        type=_part,
        default=0.15,
        help="part of the events that come from the second data centre, 0-1 (default: 0.15)",
    )
    add(
        "--canaryEvery",
        type=_duration,
        default=60.0,
        metavar="DURATION",
        help="between two canaries in each topic; 0: none (default: 1m)",
    )
    add(
        "--otherClusterRate",
        type=_part,
        default=0.5,
        help="connections served by the second data centre's Kafka, with other offsets, 0-1 "
        "(default: 0.5)",
    )
    add(
        "--deaf",
        type=_duration,
        default=Faults().deaf_seconds,
        metavar="DURATION",
        help="time in which a connection misses what is produced to a topic that was asked for from "
        "past its end, as the real service does (default: 500ms)",
    )
    add(
        "--mirrorLag",
        type=_duration,
        default=0.0,
        metavar="DURATION",
        help="by how much a data centre shows the other's topics late (default: 0)",
    )
    add("--gzip", action="store_true", help="compress where the client accepts it (default: no)")
    add(
        "--anyUserAgent",
        action="store_true",
        help="serve libraries' default user agents too (default: 403 for them)",
    )


def _add_faults(parser: argparse.ArgumentParser) -> None:
    usual = Faults()
    add = parser.add_argument_group("what goes wrong").add_argument
    add(
        "--cutEvery",
        type=_duration,
        default=usual.cut_every_seconds,
        metavar="DURATION",
        help="life of a connection; 0: no limit (default: 15m)",
    )
    add("--cutBytes", type=_count, default=0, help="body bytes until a cut; 0: none (default: 0)")
    add(
        "--cutJitter",
        type=_part,
        default=usual.cut_jitter,
        help="by what part both vary up and down, 0-1 (default: 0.5)",
    )
    add(
        "--cut",
        choices=[*(cut.value for cut in Cut), "any"],
        default="any",
        help="TCP reset, close without the final chunk, or clean end (default: any of them)",
    )
    add(
        "--maxConnections",
        type=_count,
        default=0,
        help="open streams; 429 for more; 0: no limit (default: 0; the real service: about 2)",
    )
    add(
        "--retryAfter",
        type=_duration,
        default=float(usual.retry_after_seconds),
        metavar="DURATION",
        help="whole seconds, sent with 429 and 503 (default: 1s)",
    )
    add(
        "--errorRate",
        type=_part,
        default=0.0,
        help="requests that start a burst of 500 and 503, 0-1 (default: 0)",
    )
    add("--errorBurst", type=_positive, default=3, help="requests in a burst (default: 3)")
    add("--hangRate", type=_part, default=0.0, help="requests without an answer, 0-1 (default: 0)")
    add(
        "--silenceRate",
        type=_part,
        default=0.0,
        help="connections without events, 0-1 (default: 0)",
    )
    add(
        "--stallRate",
        type=_part,
        default=0.0,
        help="writes before which the stream stalls, 0-1 (default: 0)",
    )
    add("--stall", type=_duration, default=5.0, metavar="DURATION", help="how long (default: 5s)")
    add(
        "--errorEventRate",
        type=_part,
        default=0.0,
        help="writes after which an `error` event ends the stream, 0-1 (default: 0)",
    )
    add(
        "--chunk",
        type=_count,
        default=0,
        metavar="BYTES",
        help="write the body in pieces of this size; 0: whole events (default: 0)",
    )


def _typed(parse: Callable[[str], float], text: str, meaning: str, top: float) -> float:
    try:
        number = parse(text)
    except ValueError:
        number = -1
    if not 0 <= number <= top:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no {meaning}")
    return number


def _count(text: str) -> int:
    return int(_typed(int, text, "whole number from 0 on", 2**62))


def _record(text: str) -> int:
    return int(_typed(int, text, f"whole number from 0 to {MAX_RECORD_BYTES}", MAX_RECORD_BYTES))


def _positive(text: str) -> int:
    if _count(text) == 0:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return _count(text)


def _part(text: str) -> float:
    return _typed(float, text, "number from 0 to 1", 1.0)


def _factor(text: str) -> float:
    return _typed(float, text, "number from 0 to 5", 5.0)


def _rate(text: str) -> float:
    return 0.0 if text == "max" else _typed(float, text, "number of events per second", 1e6)


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _history(text: str) -> float:
    return _count(text) if text.isdigit() else _duration(text)


def _streams(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if not all(map(_STREAM.fullmatch, names)):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no comma-separated list of streams")
    return names
