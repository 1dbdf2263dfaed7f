"""`pleiades simulate`: serves until a signal comes."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import time
from dataclasses import replace

from pleiades.runtime.errors import EXIT_STOPPED, UsageError
from pleiades.simulator.flags import DEFAULT_EVENTS, add_arguments
from pleiades.simulator.settings import Cut, Disorder, Faults, SimulatorSettings
from pleiades.simulator.tls import server_context

__all__ = ["add_arguments", "run", "settings_from"]

log = logging.getLogger(__name__)


def settings_from(arguments: argparse.Namespace) -> SimulatorSettings:
    """The settings that parsed flags stand for."""
    rate, limit = arguments.rate, arguments.events
    history, seconds = arguments.history, None
    if isinstance(history, float):
        history, seconds = int(history * rate), history
    if rate == 0:
        limit = limit or history or DEFAULT_EVENTS
        history = limit
    return SimulatorSettings(
        host=arguments.host,
        port=arguments.port,
        seed=arguments.seed,
        streams=arguments.streams,
        partitions=arguments.partitions,
        rate=rate,
        history_events=history,
        history_seconds=seconds,
        max_events=limit,
        second_share=arguments.codfwShare,
        canary_every_seconds=arguments.canaryEvery,
        disorder=_disorder_from(arguments),
        file=arguments.file,
        shift_timestamps=arguments.shiftTimestamps,
        journal=arguments.journal,
        retention_bytes=arguments.retentionBytes,
        faults=_faults_from(arguments),
    )


def _disorder_from(arguments: argparse.Namespace) -> Disorder:
    usual, factor = Disorder(), arguments.disorder
    return Disorder(
        collide_rate=usual.collide_rate * factor,
        back_rate=usual.back_rate * factor,
        back_seconds_rate=usual.back_seconds_rate * factor,
        back_years_rate=usual.back_years_rate * factor,
        ahead_rate=arguments.aheadRate,
        ahead_seconds=arguments.ahead,
        resolution_ms=max(round(arguments.timestampResolution * 1000), 1),
    )


def _faults_from(arguments: argparse.Namespace) -> Faults:
    return Faults(
        cut_every_seconds=arguments.cutEvery,
        cut_bytes=arguments.cutBytes,
        cut_jitter=arguments.cutJitter,
        cuts=tuple(Cut) if arguments.cut == "any" else (Cut(arguments.cut),),
        max_connections=arguments.maxConnections,
        retry_after_seconds=round(arguments.retryAfter),
        error_rate=arguments.errorRate,
        error_burst=arguments.errorBurst,
        hang_rate=arguments.hangRate,
        silence_rate=arguments.silenceRate,
        stall_rate=arguments.stallRate,
        stall_seconds=arguments.stall,
        error_event_rate=arguments.errorEventRate,
        deaf_seconds=arguments.deaf,
        other_cluster_rate=arguments.otherClusterRate,
        mirror_lag_seconds=arguments.mirrorLag,
        chunk_bytes=arguments.chunk,
        gzip=arguments.gzip,
        check_user_agent=not arguments.anyUserAgent,
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Raises:
        UsageError: aiohttp is not installed, a file can't be used, or the address is taken.
    """
    settings = settings_from(arguments)
    if arguments.tls or arguments.tlsRecord:
        context = server_context(settings.host, arguments.tlsCa, arguments.tlsRecord)
        settings = replace(settings, tls=context)
        log.info("its certificate: give the relay --upstream.ca=%s", arguments.tlsCa)
    asyncio.run(_serve(settings))
    return EXIT_STOPPED


async def _serve(settings: SimulatorSettings) -> None:
    # Here and not above: the flags are listed, and explained, where aiohttp is not installed.
    from pleiades.simulator.server import (
        STREAM_PATH,
        Server,
        monotonic_since,
    )
    from pleiades.simulator.upstream import LocalUpstream

    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    clock = monotonic_since(time.monotonic())
    upstream = LocalUpstream(settings, time.time_ns() // 1_000_000)
    upstream.append_history()
    if upstream.log.expired_segments_total:
        log.warning(
            "the history is larger than --retentionBytes %d: its oldest events have expired "
            "already and will not be served",
            settings.retention_bytes,
        )
    server = Server(upstream, clock)
    try:
        port = await server.start(settings.host, settings.port)
    except OSError as error:
        raise UsageError(
            f"can't listen on {settings.host}:{settings.port}: {error}; choose another --port"
        ) from None
    log.info(
        "simulating %s://%s:%d%s/%s seed %d, %d events so far; journal and counters: "
        "%s://%s:%d/simulator/journal and /simulator/stats",
        settings.scheme,
        settings.host,
        port,
        STREAM_PATH,
        ",".join(upstream.streams),
        settings.seed,
        upstream.log.appended_total,
        settings.scheme,
        settings.host,
        port,
    )
    await stopping.wait()
    await server.stop()
    log.info("stopped: %s", server.stats)
