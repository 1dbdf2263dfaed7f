"""What a run of the relay is told: plain frozen values, checked once, handed to every process."""

from __future__ import annotations

import ipaddress
import math
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from pleiades.core.range import Range
from pleiades.core.units import parse_duration, parse_iso_time_ms
from pleiades.core.wire import MAX_TIMESTAMP_MS, TopicPartition

SYNC_BATCH = "batch"
SYNC_NONE = "none"
COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")

MAX_PORT = 65_535
DEFAULT_KAFKA_PORT = 9092
DEAD_LETTERS_SUFFIX = "-dead-letters"
"""Of the topic beside a topic, in which its dead letters lie."""

MAX_TOPIC_CHARACTERS = 249 - len(DEAD_LETTERS_SUFFIX)
"""Kafka's own bound (org.apache.kafka.common.internals.Topic), for both topics."""

MAX_PARTITIONS = 10_000
MAX_REPLICATION = 32_767
MIN_COMMIT_INTERVAL_SECONDS = 0.005
MAX_COMMIT_INTERVAL_SECONDS = 60.0

MAX_STREAMS = 64
MAX_PARSERS = 64
MIN_OVERLAP_SECONDS = 0.001
"""An id carries its event's timestamp plus 1 ms; with less, a reconnect could skip events."""

MIN_HANG_TIMEOUT_SECONDS = 2.0
"""A healthy process may be silent for almost a second: it looks up every half second."""

REDIRECTS_SAME_HOST = "same-host"
REDIRECTS_ANY = "any"

# A stream's name becomes part of a URL and of a file name.
_STREAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]+")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253}[A-Za-z0-9_.])?")


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """How to ask the upstream."""

    url: str
    """Base URL without a slash at its end; the streams follow it."""
    streams: tuple[str, ...]
    contact: str
    overlap_seconds: float
    idle_timeout_seconds: float
    keep_canaries: bool
    ca: Path | None = None
    """Certificates (PEM) of the authorities to trust instead of the usual ones."""
    redirects: str = REDIRECTS_SAME_HOST
    """`REDIRECTS_SAME_HOST` or `REDIRECTS_ANY`."""


@dataclass(frozen=True, slots=True)
class FilesSettings:
    """The file publisher."""

    publish_dir: Path
    sync: str
    """`SYNC_BATCH` or `SYNC_NONE`."""
    position_name: str
    """What the position is stored under."""


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """The Kafka publisher."""

    brokers: str
    """Where the cluster is found: `host:port[,host:port]`."""
    topic: str
    partitions: int
    """Of a topic that must be created."""
    replication: int
    """Copies of a topic that must be created; 0: as many as the cluster makes by default."""
    compression: str
    """One of `COMPRESSIONS`."""
    commit_interval_seconds: float
    key_field: tuple[str, ...]
    """Path into the event whose value is the message's key; empty: the key is the SSE id."""
    properties: tuple[tuple[str, str], ...] = field(repr=False)
    """The user's, for librdkafka, checked by `runtime.properties`. They may hold secrets."""
    position_name: str
    """What the position is stored under."""


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """Which piece of history is relayed, and how."""

    range: Range
    resolved_ms: int
    """What `now` meant when the range was made out, ms since 1970."""
    first_ms: Mapping[TopicPartition, int | None]
    """All topic-partitions of the streams, with the timestamp in the id of the first event at or after
    the begin, as it was found before; None: there was none, or it was not looked for."""
    connections: int
    """At most so many at once to the upstream."""
    rate: float
    """Events per second that are read at most; 0: no limit."""
    until_total: int | None
    """It ends for now when so many events are published in all its runs together."""
    allow_gap: bool
    """Go on where the upstream no longer has all."""
    incomplete: bool
    """It is known already that the upstream no longer has all."""
    skip_existing: bool
    """Publish only what the topic does not have."""
    dry_run: bool
    """Only count."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that `pleiades ingest` is told."""

    upstream: UpstreamSettings
    files: FilesSettings | None
    kafka: KafkaSettings | None
    resume: bool
    since_ms: int | None
    """Where to start without a stored position, ms since 1970; None: now."""
    parsers: int
    window_seconds: float
    max_entries: int
    metrics_host: str
    metrics_port: int
    hang_timeout_seconds: float
    log_level: int
    log_format: str
    """`text` or `json`."""
    replay: ReplaySettings | None = None
    """None: relay what comes, until stopped."""


# ---- from text: each raises ValueError with a sentence that follows the flag's name ----


def boolean(text: str) -> bool:
    """`true` or `false`, also yes/no, on/off, 1/0."""
    known = {"true": True, "yes": True, "on": True, "1": True}
    known |= {"false": False, "no": False, "off": False, "0": False}
    try:
        return known[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{text!r} is neither true nor false") from None


def duration(
    at_least_seconds: float = 0.0, at_most_seconds: float = math.inf
) -> Callable[[str], float]:
    """Reads a duration such as `90s`, `10m`; the result is in seconds."""

    def read(text: str) -> float:
        seconds = parse_duration(text)
        if seconds < at_least_seconds:
            raise ValueError(f"{text!r} is too short: at least {at_least_seconds:g}s")
        if seconds > at_most_seconds:
            raise ValueError(f"{text!r} is too long: at most {at_most_seconds:g}s")
        return seconds

    return read


def integer(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number within bounds."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
        if not least <= number <= most:
            raise ValueError(f"{number} is not between {least} and {most}")
        return number

    return read


def choice(*allowed: str) -> Callable[[str], str]:
    """Reads one of a few words."""

    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is none of {', '.join(allowed)}")
        return text

    return read


def directory(text: str) -> Path:
    """Reads a path; whether it can be used is found out when it is opened."""
    if not text or "\0" in text:
        raise ValueError("needs the path of a directory")
    return Path(text)


def certificates(text: str) -> Path | None:
    """Reads the path of a PEM file of certificates, and the file; empty: none."""
    if not text:
        return None
    try:
        ssl.create_default_context(cafile=directory(text))
    except OSError as error:
        damaged = isinstance(error, ssl.SSLError)
        reason = "it holds no certificate in PEM form" if damaged else error.strerror
        raise ValueError(f"{text!r} can't be used: {reason}") from None
    return Path(text).absolute()


def streams(text: str) -> tuple[str, ...]:
    """Reads names of streams, joined by commas."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if _STREAM.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no name of a stream, such as recentchange")
    if len(set(names)) < len(names):
        raise ValueError(f"{text!r} names a stream twice")
    if len(names) > MAX_STREAMS:
        raise ValueError(f"names {len(names)} streams; at most {MAX_STREAMS} fit")
    return names


def base_url(text: str) -> str:
    """Reads an HTTP URL."""
    try:
        parts = urlsplit(text)
        readable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        readable = False
    if not readable:
        # Before the last @ there may be a password, with or without a scheme in front of it.
        shown = re.sub(r"^([a-zA-Z]*://)?.*@", r"\1…@", text, flags=re.DOTALL)
        raise ValueError(f"{shown!r} is no URL such as http://127.0.0.1:8080/v2/stream")
    if parts.query or parts.fragment:
        raise ValueError("must be a base URL without ? and #; the streams are put after it")
    return text.rstrip("/")


def contact(text: str) -> str:
    """Reads what goes into the parentheses of the User-Agent (RFC 9110 §10.1.5, comment)."""
    plain = text.isascii() and text.isprintable() and not set(text) & set("()\\")
    if not plain or not text.strip():
        raise ValueError(f"{text!r} can't stand in a User-Agent: plain ASCII without parentheses")
    if not ("@" in text or "://" in text):
        raise ValueError(f"{text!r} is no way to reach you: give a URL or a mail address")
    return text


def brokers(text: str) -> str:
    """Reads where a cluster is found, joined by commas; the result has a port for each."""
    return ",".join(_broker(part.strip()) for part in text.split(","))


def _broker(text: str) -> str:
    if "://" in text:
        raise ValueError(
            f"{text!r} must be host:port alone; how to talk to it is security.protocol"
        )
    # What is in brackets is an IPv6 address, the only host that may hold colons.
    match = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]+))?", text, re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is no broker such as kafka.example.org:9092 or [::1]:9092")
    host, port = match[1], int((match[2] or str(DEFAULT_KAFKA_PORT))[:6])
    if not (_is_ipv6(host[1:-1]) if host.startswith("[") else _HOST.fullmatch(host)):
        raise ValueError(f"{text!r} names no host; write host:port[,host:port]")
    if not 1 <= port <= MAX_PORT:
        raise ValueError(f"{text!r} has a port that is not between 1 and {MAX_PORT}")
    return f"{host}:{port}"


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def topic(text: str) -> str:
    """Reads the name of a Kafka topic, beside which there can be one for its dead letters."""
    if _TOPIC.fullmatch(text) is None or text in (".", ".."):
        raise ValueError(f"{text[:300]!r} is no topic's name: letters, digits, '.', '_' and '-'")
    if len(text) > MAX_TOPIC_CHARACTERS:
        raise ValueError(
            f"has {len(text)} characters; at most {MAX_TOPIC_CHARACTERS} leave room for the "
            f"{DEAD_LETTERS_SUFFIX} of the topic beside it"
        )
    return text


def key_field(text: str) -> tuple[str, ...]:
    """Reads the path of a field in an event, such as `meta.domain`; empty where there is none."""
    path = tuple(text.split(".")) if text else ()
    if not all(part and part == part.strip() and part.isprintable() for part in path):
        raise ValueError(f"{text[:300]!r} is no path of a field, such as wiki or meta.domain")
    return path


def moment(text: str, now: datetime) -> int | None:
    """Reads `now`, an ISO 8601 time (UTC where it names no zone), `-2h`, or ms since 1970.

    Returns ms since 1970; None for now.
    """
    text = text.strip()
    if text in ("now", ""):
        return None
    if text.isascii() and text.isdigit():
        milliseconds = int(text[:16])
    elif text.startswith("-"):
        milliseconds = int((now.timestamp() - parse_duration(text[1:])) * 1000)
    else:
        try:
            milliseconds = parse_iso_time_ms(text)
        except (ValueError, OverflowError):
            raise ValueError(
                f"{text!r} is no time: give ISO 8601 (2026-01-31T12:00:00Z), -2h, or ms since 1970"
            ) from None
    if not 0 <= milliseconds <= MAX_TIMESTAMP_MS:
        raise ValueError(f"{text!r} lies before 1970 or after 9999")
    return milliseconds


def since(text: str, now: datetime) -> int | None:
    """Reads a start, as `moment`; one in the future is refused."""
    milliseconds = moment(text, now)
    if milliseconds is not None and milliseconds > now.timestamp() * 1000:
        raise ValueError(
            f"{text.strip()!r} lies in the future: the upstream would skip what comes until then"
        )
    return milliseconds
