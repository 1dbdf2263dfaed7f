"""`pleiades demo`: a local upstream and the real relay together, on this machine alone."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pleiades import PROJECT_URL
from pleiades.core.units import plural
from pleiades.runtime import logs
from pleiades.runtime.arguments import ingest_parser, settings_from
from pleiades.runtime.flags import Flags, Variation, joined_negatives
from pleiades.runtime.settings import duration, integer
from pleiades.simulator.journal import JournalEntry
from pleiades.sinks.files.names import identity_in

log = logging.getLogger(__name__)

RATE = "50"
"""Events per second: about what the public service sends."""
CUT_EVERY = "10s"

_AS_INGEST_BUT = Variation(
    # Every demo has an upstream of its own, which knows nothing of an earlier one's position.
    defaults={"resume": False},
    fixed={
        "file.enable": True,
        "kafka.enable": False,
        "upstream.url": "",
        "upstream.stream": ("recentchange",),
        "upstream.contact": PROJECT_URL,
    },
    without=("kafka.",),
)


def run(arguments: Sequence[str], description: str) -> int:
    """Relay from a local upstream until stopped; returns the exit status.

    Raises:
        UsageError: the flags contradict each other.
    """
    parser = ingest_parser("demo", description, _AS_INGEST_BUT)
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
    parsed = parser.parse_args(joined_negatives(arguments))
    settings = settings_from(parsed)
    logs.configure(settings.log_level, settings.log_format, "parent")

    from pleiades.pipeline import ingest
    from pleiades.simulator.settings import Faults, SimulatorSettings
    from pleiades.simulator.simulator import Simulator

    chosen = vars(parsed)
    simulated = SimulatorSettings(
        # Another one each time: the same events again would be taken for repeats of the last demo's.
        seed=time.time_ns(),
        rate=chosen["demo.rate"],
        faults=Faults(cut_every_seconds=chosen["demo.cutEvery"]),
    )
    with Simulator(simulated) as upstream:
        log.info(
            "demo: a local upstream at %s makes %d events/s and cuts each connection after about "
            "%g s",
            upstream.url,
            chosen["demo.rate"],
            chosen["demo.cutEvery"],
        )
        settings = replace(settings, upstream=replace(settings.upstream, url=upstream.url))
        if settings.files is not None:
            # The real service must not be asked for the position in a demo's upstream.
            files = replace(settings.files, position_name="demo")
            settings = replace(settings, files=files)
        status = ingest(settings)
        journal = upstream.journal()
        log.info(
            "demo: the upstream made %s, %d of them canaries, and cut %s",
            plural(len(journal), "event"),
            sum(entry.canary for entry in journal),
            plural(upstream.stats().cuts_total, "connection"),
        )
    if settings.files is not None:
        _compare(settings.files.publish_dir, journal)
    return status


def _compare(publish_dir: Path, journal: list[JournalEntry]) -> None:
    """Say how the files compare with what the upstream made, up to each topic's last file."""
    names = Counter(identity_in(path.name) for path in publish_dir.glob("*/*.json"))
    expected: list[JournalEntry] = []
    reached = set()
    for entry in reversed(journal):
        if entry.identity in names:
            reached.add(entry.source)
        if entry.source in reached and not entry.canary:
            expected.append(entry)
    lost = sum(entry.identity not in names for entry in expected)
    doubled = sum(names[entry.identity] > 1 for entry in expected)
    later = sum(not entry.canary for entry in journal) - len(expected)
    log.info(
        "demo: compared %s: %d lost, %d doubled; %d came when the relay had stopped reading",
        plural(len(expected), "event"),
        lost,
        doubled,
        later,
    )
