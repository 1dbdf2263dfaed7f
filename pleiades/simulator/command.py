"""`pleiades simulate`: serves until a signal comes."""

from __future__ import annotations

import argparse
import logging
import signal
from dataclasses import replace

from pleiades.runtime.errors import EXIT_STOPPED, UsageError
from pleiades.simulator.settings import add_arguments, settings_from
from pleiades.simulator.simulator import Simulator
from pleiades.simulator.tls import server_context

__all__ = ["add_arguments", "run"]

log = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Raises:
        UsageError: a file can't be used, the address is taken, or TLS needs what is not installed.
    """
    settings = settings_from(arguments)
    if arguments.tls or arguments.tls_record:
        context = server_context(settings.host, arguments.tls_ca, arguments.tls_record)
        settings = replace(settings, tls=context)
        log.info("its certificate: give the relay --upstream.ca=%s", arguments.tls_ca)
    stopping = {signal.SIGTERM, signal.SIGINT}
    # Blocked in the threads to come as well, so that sigwait gets them.
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)
    simulator = Simulator(settings)
    if simulator.log.expired_segments_total:
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
