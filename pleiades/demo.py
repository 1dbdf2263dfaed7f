"""`pleiades demo`: a local upstream and the real relay together, on this machine alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from pleiades.runtime import logs
from pleiades.runtime.arguments import ingest_parser, settings_from
from pleiades.runtime.flags import Flags, joined_negatives
from pleiades.runtime.settings import duration, integer

log = logging.getLogger(__name__)

RATE = "50"
"""Events per second: about what the public service sends."""
CUT_EVERY = "10s"


def run(arguments: Sequence[str], description: str) -> int:
    """Relay from a local upstream until stopped, or for a while; returns the exit status.

    Raises:
        UsageError: the flags contradict each other, or aiohttp is not installed.
    """
    parser = ingest_parser("demo", description)
    flags = Flags(parser, "the local upstream")
    flags.add(
        "--demo.rate",
        default=RATE,
        reads=integer(1, 100_000),
        meaning="events per second that it makes",
        unit="number",
    )
    flags.add(
        "--demo.cutEvery",
        default=CUT_EVERY,
        reads=duration(0.1),
        meaning="how long it leaves a connection alone before it cuts it",
        unit="duration",
    )
    # Only a default: --kafka.enable, or another directory, can still be asked for.
    parser.set_defaults(**{"file.enable": True})
    parsed = parser.parse_args(joined_negatives(arguments))
    if vars(parsed)["kafka.enable"]:
        vars(parsed)["file.enable"] = False
    settings = settings_from(parsed)
    logs.configure(settings.log_level, settings.log_format, "parent")

    from pleiades.pipeline import ingest
    from pleiades.simulator.settings import Faults, SimulatorSettings
    from pleiades.simulator.simulator import Simulator

    chosen = vars(parsed)
    faults = Faults(cut_every_seconds=chosen["demo.cutEvery"])
    with Simulator(SimulatorSettings(rate=chosen["demo.rate"], faults=faults)) as upstream:
        log.info(
            "demo: a local upstream at %s makes %d events/s and cuts each connection after about "
            "%g s",
            upstream.url,
            chosen["demo.rate"],
            chosen["demo.cutEvery"],
        )
        settings = replace(settings, upstream=replace(settings.upstream, url=upstream.url))
        status = ingest(settings)
        journal = upstream.journal()
        log.info(
            "demo: the upstream made %d events, %d of them canaries, and cut %d connections",
            len(journal),
            sum(entry.canary for entry in journal),
            upstream.stats().cuts_total,
        )
    return status
