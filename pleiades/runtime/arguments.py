"""Which flags `pleiades ingest` has, and the `Settings` that they stand for."""

from __future__ import annotations

import argparse
import logging
from datetime import UTC, datetime

from pleiades import PROJECT_URL
from pleiades.core.units import parse_duration
from pleiades.runtime import settings as read
from pleiades.runtime.errors import UsageError
from pleiades.runtime.flags import Flags, Variation, parser_for
from pleiades.runtime.kafka_arguments import add_kafka_flags, kafka_settings
from pleiades.runtime.settings import FilesSettings, Settings, UpstreamSettings

PUBLIC_UPSTREAM = "https://stream.wikimedia.org/v2/stream"


def ingest_parser(
    command: str, description: str, variation: Variation | None = None
) -> argparse.ArgumentParser:
    """The parser of `pleiades ingest`, or of a command that varies it."""
    parser = parser_for(command, description)

    def group(title: str) -> Flags:
        return Flags(parser, title, variation)

    _add_publishers(group("publishers"))
    flags = group("where to start")
    flags.toggle(
        "-r",
        "--resume",
        default=True,
        meaning="go on after the stored position; false: ignore it and start at --since",
    )
    flags.add(
        "--since",
        default="now",
        reads=lambda text: read.since(text, datetime.now(UTC)),
        meaning="where to start without a stored position: ISO 8601, -2h, or ms since 1970",
        unit="time",
    )
    _add_upstream(group("upstream"))
    _add_processing(group("processing"))
    _add_operation(group("operation"))
    return parser


def _add_publishers(flags: Flags) -> None:
    flags.toggle(
        "--file.enable",
        default=False,
        meaning="publish to files, one per event (exactly one publisher must be enabled)",
    )
    flags.add(
        "--file.publishDir",
        default="./events",
        reads=read.directory,
        meaning="where the files go; created if missing",
        unit="dir",
    )
    flags.add(
        "--file.sync",
        default=read.SYNC_BATCH,
        reads=read.choice(read.SYNC_BATCH, read.SYNC_NONE),
        meaning="batch: each batch survives a power failure before its position is stored; "
        "none: faster, a power failure may lose what the system had not written",
        unit="batch|none",
    )
    add_kafka_flags(flags)


def _add_upstream(flags: Flags) -> None:
    flags.add(
        "--upstream.url",
        default=PUBLIC_UPSTREAM,
        reads=read.base_url,
        meaning="base URL of the EventStreams service",
        unit="url",
    )
    flags.add(
        "--upstream.stream",
        default="recentchange",
        reads=read.streams,
        meaning="one stream or several, joined by commas",
        unit="names",
    )
    flags.add(
        "--upstream.contact",
        default=PROJECT_URL,
        reads=read.contact,
        meaning="a URL or mail address by which the upstream's operators reach you; goes into the "
        "User-Agent as their policy asks",
    )
    flags.add(
        "--upstream.overlap",
        default="60s",
        reads=read.duration(read.MIN_OVERLAP_SECONDS),
        meaning="how far a reconnect goes back behind the position; what is repeated is dropped",
        unit="duration",
    )
    flags.add(
        "--idleTimeout",
        "--upstream.idleTimeout",
        default="60s",
        reads=read.duration(0.1),
        meaning="silence after which the connection is made anew",
        unit="duration",
    )
    flags.add(
        "--upstream.ca",
        default="",
        reads=read.certificates,
        meaning="PEM file of the certificate authorities to trust instead of the usual ones, for an "
        "upstream or a proxy with a private certificate",
        unit="file",
    )
    flags.add(
        "--upstream.redirects",
        default=read.REDIRECTS_SAME_HOST,
        reads=read.choice(read.REDIRECTS_SAME_HOST, read.REDIRECTS_ANY),
        meaning="redirects to follow: same-host: to the same host, and never from https to http; "
        "any: all",
        unit="same-host|any",
    )
    flags.toggle(
        "--upstream.keepCanaries",
        default=False,
        meaning="publish canary events instead of dropping them",
    )


def _add_processing(flags: Flags) -> None:
    flags.add(
        "--parsers",
        default="1",
        reads=read.integer(1, read.MAX_PARSERS),
        meaning="parser processes; the order of events is kept",
        unit="number",
    )
    flags.add(
        "--dedup.window",
        default="10m",
        reads=parse_duration,
        meaning="how far behind the position identities are remembered; never less than the overlap",
        unit="duration",
    )
    flags.add(
        "--dedup.maxEntries",
        default="500000",
        reads=read.integer(1000, 50_000_000),
        meaning="most identities to remember; a warning tells when it is reached",
        unit="number",
    )


def _add_operation(flags: Flags) -> None:
    flags.add(
        "--metricsHost", default="", meaning="address of /metrics; empty: all", unit="address"
    )
    flags.add(
        "--metricsPort",
        default="9000",
        reads=read.integer(0, read.MAX_PORT),
        meaning="port of /metrics, /healthz and /readyz; 0: any free one, the log says which",
        unit="port",
    )
    flags.add(
        "--hangTimeout",
        default="30s",
        reads=read.duration(read.MIN_HANG_TIMEOUT_SECONDS),
        meaning="silence of a process after which it counts as hung, and all are started again",
        unit="duration",
    )
    flags.toggle("-q", "--quiet", default=False, meaning="log errors only")
    flags.toggle("-v", "--verbose", default=False, meaning="log everything")
    flags.add(
        "--log.format",
        default="text",
        reads=read.choice("text", "json"),
        meaning="text, or json: one object a line",
        unit="text|json",
    )


def settings_from(parsed: argparse.Namespace, publishes: bool = True) -> Settings:
    """The settings behind parsed flags.

    Args:
        publishes: exactly one publisher must be enabled; else none is taken.

    Raises:
        UsageError: the flags contradict each other, or a property for Kafka is refused.
    """
    flag = vars(parsed)
    if publishes and flag["file.enable"] == flag["kafka.enable"]:
        raise UsageError(
            "both publishers are enabled: take away --file.enable or --kafka.enable"
            if flag["file.enable"]
            else "no publisher is enabled: add --file.enable (one file per event) or --kafka.enable"
        )
    position_name = "+".join(sorted(flag["upstream.stream"]))
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
        files=FilesSettings(flag["file.publishDir"], flag["file.sync"], position_name)
        if publishes and flag["file.enable"]
        else None,
        kafka=kafka_settings(flag, position_name) if publishes and flag["kafka.enable"] else None,
        resume=flag["resume"],
        since_ms=flag["since"],
        parsers=flag["parsers"],
        window_seconds=flag["dedup.window"],
        max_entries=flag["dedup.maxEntries"],
        metrics_host=flag["metricsHost"],
        metrics_port=flag["metricsPort"],
        hang_timeout_seconds=flag["hangTimeout"],
        log_level=log_level(parsed),
        log_format=flag["log.format"],
    )


def log_level(parsed: argparse.Namespace) -> int:
    """What `-q` and `-v` mean to `logging`.

    Raises:
        UsageError: both are given.
    """
    if parsed.quiet and parsed.verbose:
        raise UsageError("-q (errors only) and -v (everything) exclude each other: give one")
    if parsed.quiet:
        return logging.ERROR
    return logging.DEBUG if parsed.verbose else logging.INFO
