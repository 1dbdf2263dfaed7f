"""The settings of a relay: plain frozen values, checked once and handed to every process."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pleiades.config.flags import REDIRECTS_SAME_HOST
from pleiades.core.range import Range
from pleiades.core.wire import TopicPartition
from pleiades.runtime.errors import UsageError


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
class ReplaySettings:
    """Which piece of history is relayed, and how."""

    range: Range
    resolved_ms: int
    """The meaning of `now` in the range, ms since 1970."""
    first_ms: Mapping[TopicPartition, int | None]
    """All topic-partitions of the streams, with the timestamp in the id of the first event at or after
    the begin, as it was found before; None: there was none, or it was not looked for."""
    connections: int
    """Most connections to the upstream at once."""
    rate: float
    """Most events per second to read; 0: no limit."""
    until_total: int | None
    """The run ends when so many events are published in all runs together."""
    allow_gap: bool
    """Go on where the upstream no longer has all."""
    incomplete: bool
    """It is known already that the upstream no longer has all."""
    skip_existing: bool
    """Publish only what the destination does not have."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a relay."""

    upstream: UpstreamSettings
    destination: object
    """See `sinks.base.destination_of`."""
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
    """None: relay new events until stopped."""


def settings_from(flag: Mapping[str, Any], destination: object) -> Settings:
    """The settings behind the values of `RELAY_FLAGS`.

    Raises:
        UsageError: the flags contradict each other.
    """
    if flag["quiet"] and flag["verbose"]:
        raise UsageError("-q (errors only) and -v (everything) exclude each other: give one")
    level = logging.DEBUG if flag["verbose"] else logging.INFO
    return Settings(
        upstream=UpstreamSettings(
            url=flag["upstream.url"],
            streams=flag["upstream.stream"],
            contact=flag["upstream.contact"],
            overlap_seconds=flag["upstream.overlap"],
            idle_timeout_seconds=flag["upstream.idleTimeout"],
            keep_canaries=flag["upstream.keepCanaries"],
            ca=flag["upstream.ca"],
            redirects=flag["upstream.redirects"],
        ),
        destination=destination,
        resume=flag["resume"],
        since_ms=flag["since"],
        parsers=flag["parsers"],
        window_seconds=flag["dedup.window"],
        max_entries=flag["dedup.maxEntries"],
        metrics_host=flag["metricsHost"],
        metrics_port=flag["metricsPort"],
        hang_timeout_seconds=flag["hangTimeout"],
        log_level=logging.ERROR if flag["quiet"] else level,
        log_format=flag["log.format"],
    )
