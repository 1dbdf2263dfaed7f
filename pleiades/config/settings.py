# ruff: noqa: RUF009  # `flag` declares fields of dataclasses
"""The settings of a relay, each declared once together with its flag.

They are plain frozen values, checked once and handed to every process.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pleiades import PROJECT_URL
from pleiades.config import values
from pleiades.config.flags import BOOLEAN, flag, flags_of, values_of
from pleiades.config.values import Reader, choice, duration, integer
from pleiades.core.range import Range
from pleiades.core.sse_id import TopicPartition
from pleiades.runtime.errors import UsageError

MAX_PARSERS = 64
MIN_OVERLAP_SECONDS = 0.001
"""An id carries its event's timestamp plus 1 ms; with less, a reconnect could skip events."""
MIN_HANG_TIMEOUT_SECONDS = 2.0
"""A healthy process may be silent for almost a second: it looks up every half second."""
REDIRECTS_ANY = "any"
URL_FLAG = "--upstream.url"


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """The settings of requests to the upstream."""

    url: str = flag(
        "https://stream.wikimedia.org/v2/stream",
        "base URL of the EventStreams service. One with user and password is refused on the command "
        "line, where everybody can see it",
        Reader("url", values.base_url),
        without=("demo",),
        group="upstream",
    )
    streams: tuple[str, ...] = flag(
        "recentchange",
        "one stream or several, joined by commas",
        Reader("names", values.streams),
        name="upstream.stream",
        without=("demo",),
    )
    contact: str = flag(
        PROJECT_URL,
        "a URL or mail address for the upstream's operators to reach you, sent as User-Agent",
        Reader("text", values.contact),
        without=("demo",),
    )
    overlap_seconds: float = flag(
        "60s", "how far before the position a reconnect begins", duration(MIN_OVERLAP_SECONDS)
    )
    idle_timeout_seconds: float = flag(
        "60s", "silence after which the relay reconnects", duration(0.1), aliases=("--idleTimeout",)
    )
    keep_canaries: bool = flag("false", "publish canary events instead of dropping them", BOOLEAN)
    ca: Path | None = flag(
        "",
        "PEM file of the certificate authorities to trust instead of the usual ones",
        Reader("file", values.certificates),
    )
    redirects: str = flag(
        "same-host",
        "redirects to follow: same-host: to the same host, and never from https to http; any: all",
        choice("same-host", REDIRECTS_ANY),
    )


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """Which piece of history is relayed, and how."""

    range: Range
    resolved_ms: int
    """The meaning of `now` in the range, ms since 1970."""
    first_ms: Mapping[TopicPartition, int | None]
    """All topic-partitions of the streams, with the timestamp in the id of the first event at or after
    the begin, as it was found before; None: there was none, or it was not looked for."""
    connections: int
    rate: float
    until_total: int | None
    """The run ends when so many events are published in all runs together."""
    allow_gap: bool
    incomplete: bool
    """It is known already that the upstream no longer has all."""
    skip_existing: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a relay."""

    upstream: UpstreamSettings
    destination: object
    """See `sinks.base.destination_of`."""
    replay: ReplaySettings | None = None
    """None: relay new events until stopped."""
    resume: bool = flag(
        "true",
        "go on after the stored position; false: ignore it and start at --since",
        BOOLEAN,
        aliases=("-r",),
        without=("replay",),
        # Every demo has an upstream of its own, which knows nothing of an earlier one's position.
        defaults={"demo": "false"},
        group="where to start",
    )
    since_ms: int | None = flag(
        "now",
        "where to start without a stored position: ISO 8601, -2h, ms since 1970, or now: "
        "--upstream.overlap before now, so that no event is skipped that the upstream gets late",
        Reader("time", values.since),
        without=("replay",),
    )
    parsers: int = flag(
        "1", "parser processes; the order is kept", integer(1, MAX_PARSERS), group="processing"
    )
    window_seconds: float = flag(
        "10m",
        "how far behind the position identities are remembered; never less than the overlap",
        duration(),
        name="dedup.window",
    )
    max_entries: int = flag(
        "500000",
        "most identities to remember; a warning tells when it is reached",
        integer(1000, 50_000_000),
        name="dedup.maxEntries",
    )
    metrics_host: str = flag(
        "", "address of /metrics; empty: all", Reader("address", str), group="operation"
    )
    metrics_port: int = flag(
        "9000",
        "port of /metrics, /healthz and /readyz; 0: any free one, the log says which",
        integer(0, values.MAX_PORT, "port"),
        # Several replays at once on one machine are usual.
        defaults={"replay": "0"},
    )
    hang_timeout_seconds: float = flag(
        "30s", "silence of a process that counts as hung", duration(MIN_HANG_TIMEOUT_SECONDS)
    )
    quiet: bool = flag("false", "log errors only", BOOLEAN, aliases=("-q",))
    verbose: bool = flag("false", "log everything", BOOLEAN, aliases=("-v",))
    log_format: str = flag(
        "text", "text, or json: one object a line", choice("text", "json"), name="log.format"
    )

    @property
    def log_level(self) -> int:
        """A level of `logging`."""
        if self.quiet:
            return logging.ERROR
        return logging.DEBUG if self.verbose else logging.INFO


RELAY_FLAGS = (*flags_of(Settings), *flags_of(UpstreamSettings, "upstream."))


def refused_argument(words: Sequence[str]) -> str | None:
    """Why a command line must not be used: `ps` shows a password to everybody; None: it may."""
    given = [word.removeprefix(f"{URL_FLAG}=") for word in words if word.startswith(URL_FLAG)]
    given += [word for flag, word in pairwise(words) if flag == URL_FLAG]
    if not any(map(values.has_credentials, given)):
        return None
    return (
        f"{URL_FLAG} holds a user or a password, and everybody can read a command line (ps): give it in "
        "the environment as $PLEIADES_UPSTREAM_URL, or in the file of --config"
    )


def settings_from(given: Mapping[str, Any], destination: object) -> Settings:
    """The settings behind the values of `RELAY_FLAGS`.

    Raises:
        UsageError: the flags contradict each other.
    """
    if given["quiet"] and given["verbose"]:
        raise UsageError("-q (errors only) and -v (everything) exclude each other: give one")
    upstream = UpstreamSettings(**values_of(UpstreamSettings, given, "upstream."))
    return Settings(upstream, destination, **values_of(Settings, given))
