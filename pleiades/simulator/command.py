"""`pleiades simulate`: serves until a signal comes."""

from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pleiades.config.flags import BOOLEAN, flags_of
from pleiades.config.values import Reader
from pleiades.runtime.errors import EXIT_STOPPED, UsageError
from pleiades.simulator.settings import COMMAND, GROUPS, settings_from
from pleiades.simulator.simulator import Simulator
from pleiades.simulator.tls import server_context

log = logging.getLogger(__name__)


def simulator_parser(description: str = "") -> argparse.ArgumentParser:
    """The parser of the command line.

    Not the relay's: its environment and its TOML file are not for the local upstream.
    """
    parser = argparse.ArgumentParser(
        prog=f"pleiades {COMMAND}", description=description, allow_abbrev=False
    )
    for title, holder in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags_of(holder):
            add = partial(group.add_argument, f"--{flag.name}", dest=flag.name)
            if flag.reads is BOOLEAN:
                add(action="store_true", help=flag.meaning)
                continue
            default = flag.default_of(COMMAND)
            shown = f"{flag.meaning} (default: {default})" if default else flag.meaning
            add(type=_typed(flag.reads), default=default, metavar=flag.unit, help=shown)
    return parser


def _typed(reads: Reader) -> Callable[[str], object]:
    def typed(text: str) -> object:
        try:
            return reads(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return typed


def run(given: Mapping[str, Any]) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Args:
        given: the values of all flags.

    Raises:
        UsageError: a file can't be used, the address is taken, or TLS needs what is not installed.
    """
    settings = settings_from(given)
    if given["tls"] or given["tlsRecord"]:
        context = server_context(settings.host, given["tlsCa"], given["tlsRecord"])
        settings = replace(settings, tls=context)
        log.info("its certificate: give the relay --upstream.ca=%s", given["tlsCa"])
    stopping = {signal.SIGTERM, signal.SIGINT}
    # Blocked in the threads to come as well, so that sigwait gets them.
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    simulator = Simulator(settings)
    if any(partition.start for partition in simulator.log.partitions.values()):
        log.warning(
            "the history is larger than --retentionBytes %d: its oldest events have already expired "
            "and will not be served; raise the limit to serve them",
            settings.retention_bytes,
        )
    try:
        url = simulator.start()
    except OSError as error:
        raise UsageError(
            f"can't listen on {settings.host}:{settings.port}: {error}; choose another --port"
        ) from None
    log.info(
        "simulating %s/%s seed %d, %d events so far; journal and counters: "
        "/simulator/journal and /simulator/stats there",
        url,
        ",".join(simulator.streams),
        settings.seed,
        simulator.stats().events_appended_total,
    )
    signal.sigwait(stopping)
    simulator.stop()
    log.info("stopped: %s", simulator.stats())
    return EXIT_STOPPED
