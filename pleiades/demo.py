"""`pleiades demo`: a local upstream and the real relay together, on this machine alone."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pleiades.config.flags import Flag
from pleiades.config.settings import settings_from
from pleiades.config.values import duration, integer
from pleiades.core.units import plural
from pleiades.runtime import logs
from pleiades.runtime.errors import UsageError
from pleiades.simulator.log import JournalEntry
from pleiades.sinks.checkpoints import CheckpointFile
from pleiades.sinks.files.destination import FilesDestination
from pleiades.sinks.files.names import identity_in
from pleiades.sinks.registry import relay_parser

log = logging.getLogger(__name__)

FLAGS = (
    Flag(
        "demo.rate", "50", "its events per second", integer(1, 100_000), group="the local upstream"
    ),
    Flag("demo.cutEvery", "10s", "how long it lets a connection live", duration(0.1)),
)


def run(arguments: Sequence[str], description: str) -> int:
    """Relay from a local upstream until stopped; returns the exit status.

    Raises:
        UsageError: the flags contradict each other, or the directory is used by others.
    """
    parser = relay_parser("demo", description, FLAGS, [FilesDestination])
    chosen = vars(parser.parse_args(arguments))
    # The real service must not be asked for the position in a demo's upstream.
    files = FilesDestination.from_flags(chosen, "demo")
    _refuse_others_events(files)
    settings = settings_from(chosen, files)
    logs.configure(settings.log_level, settings.log_format, "parent")

    from pleiades.pipeline import relay
    from pleiades.simulator.settings import Faults, SimulatorSettings
    from pleiades.simulator.simulator import Simulator

    simulated = SimulatorSettings(
        # Another one each time: the same events again would be taken for repeats of the last demo's.
        seed=time.time_ns(),
        rate=chosen["demo.rate"],
        faults=Faults(cut_every_seconds=chosen["demo.cutEvery"]),
    )
    with Simulator(simulated) as upstream:
        log.info(
            "demo: a local upstream at %s makes %d events/s and cuts each connection after about %g s",
            upstream.url,
            chosen["demo.rate"],
            chosen["demo.cutEvery"],
        )
        settings = replace(settings, upstream=replace(settings.upstream, url=upstream.url))
        status = relay(settings)
        journal = upstream.journal()
        log.info(
            "demo: the upstream made %s, %d of them canaries, and cut %s",
            plural(len(journal), "event"),
            sum(entry.canary for entry in journal),
            plural(upstream.stats().cuts_total, "connection"),
        )
    _compare(files.publish_dir, journal)
    return status


def _refuse_others_events(files: FilesDestination) -> None:
    own = CheckpointFile(files.own_folder, files.position_name, synced=False).path
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        used = next(files.publish_dir.iterdir(), None) is not None
        if used and {*files.own_folder.glob("checkpoint-*")} != {own}:
            raise UsageError(
                f"{files.publish_dir} holds something else than the events of demos, which are made up: "
                "choose another --file.publishDir for them"
            )


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
    log.info(
        "demo: compared %s: %d lost, %d doubled; %d came when the relay had stopped reading",
        plural(len(expected), "event"),
        sum(entry.identity not in names for entry in expected),
        sum(names[entry.identity] > 1 for entry in expected),
        sum(not entry.canary for entry in journal) - len(expected),
    )
