"""`pleiades simulate`: serves until a signal comes."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from dataclasses import replace

from pleiades.config.sources import Parser
from pleiades.runtime import logs
from pleiades.runtime.errors import EXIT_STOPPED, Fatal
from pleiades.simulator.settings import COMMAND, FLAGS, settings_from
from pleiades.simulator.simulator import Simulator
from pleiades.simulator.tls import server_context

log = logging.getLogger(__name__)


def simulator_parser(description: str = "") -> Parser:
    """The parser of the command line.

    Environment and TOML files are the relay's: its `rate` is not the local upstream's.
    """
    return Parser(COMMAND, description, FLAGS, command_line_only=True)


def run(arguments: Sequence[str], description: str) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status.

    Raises:
        UsageError: a file can't be used, or TLS needs what is not installed.
        Fatal: the address is taken.
    """
    given = vars(simulator_parser(description).parse_args(arguments))
    logs.configure(logging.INFO, logs.TEXT, "simulator")
    settings = settings_from(given)
    if given["tls"] or given["tlsRecord"]:
        context = server_context(settings.host, given["tlsCa"], given["tlsRecord"])
        settings = replace(settings, tls=context)
        log.info(
            "serving over HTTPS: give the relay --upstream.ca=%s",
            given["tlsCa"],
        )
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
        raise Fatal(
            f"can't listen on {settings.host}:{settings.port}: {error.strerror}; choose another --port"
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
    simulator.close()
    log.info("stopped: %s", simulator.stats())
    return EXIT_STOPPED
