"""argv → settings → pipeline → exit status."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from pleiades import __version__
from pleiades.runtime import logs, startup
from pleiades.runtime.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    EXIT_USAGE,
    Fatal,
    UsageError,
)

log = logging.getLogger(__name__)


class Command(NamedTuple):
    """One word after `pleiades`."""

    module: str
    """Its function `run` gets the arguments after the command, and the meaning for the help, and returns
    the exit status. It is imported for this command only."""
    meaning: str
    stopped: int = EXIT_STOPPED
    """The exit status after a signal that comes before there is anything to stop."""


COMMANDS = {
    "ingest": Command(
        "pleiades.pipeline", "Relay EventStreams into files or Kafka, every event exactly once."
    ),
    "replay": Command(
        "pleiades.replay.command",
        "Relay a range of history to its end; run again, it goes on.",
        EXIT_INTERRUPTED,
    ),
    "check": Command(
        "pleiades.check",
        "Try what ingest would use with the same flags; writes nothing.",
        # Not all was looked at, so not all is well.
        EXIT_FAILED,
    ),
    "demo": Command(
        "pleiades.demo", "Relay from a local upstream into ./events: no internet, no Kafka."
    ),
    "simulate": Command(
        "pleiades.simulator.command",
        "Serve a local upstream that speaks the EventStreams protocol.",
    ),
    "help": Command("pleiades.cli", "Show this, or the flags of a command."),
}


def run(arguments: Sequence[str], _meaning: str = "") -> int:
    """`pleiades help`: print the help of a command, or the list of commands."""
    if arguments and arguments[0] not in ("help", "-h", "--help"):
        return _run(arguments[0], ["--help"])
    commands = "\n".join(f"  {name:10} {command.meaning}" for name, command in COMMANDS.items())
    print(  # noqa: T201  # the help
        "usage: pleiades <command> [flags]\n\n"
        f"Relays Wikimedia EventStreams: every event exactly once, in order.\n\n{commands}\n\n"
        "pleiades help <command> lists its flags; pleiades --version tells the version.\n"
        "Begin with: pleiades demo"
    )
    return EXIT_STOPPED


def _run(name: str, arguments: Sequence[str]) -> int:
    if name not in COMMANDS:
        shown = logs.printable(name, 40)
        raise UsageError(f"there is no command {shown!r}; there are {', '.join(COMMANDS)}")
    module, meaning, _ = COMMANDS[name]
    status: int = import_module(module).run(arguments, meaning)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv`; returns the exit status (see `runtime.errors`)."""
    startup.take_nothing_over()
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = COMMANDS.get(arguments[0]) if arguments else None
    # Nothing has begun yet. As PID 1, and only there, a signal without a handler has no effect.
    stopped = EXIT_STOPPED if known is None else known.stopped
    startup.on_stop_signals(lambda _number, _frame: os._exit(stopped))
    try:
        if not arguments:
            raise UsageError(f"a command is missing; there are {', '.join(COMMANDS)}")
        if arguments[0] in ("-h", "--help"):
            return run([])
        if arguments[0] in ("-V", "--version"):
            print(f"pleiades {__version__}")  # noqa: T201  # the version
            return EXIT_STOPPED
        return _run(arguments[0], arguments[1:])
    except Fatal as error:
        if logs.configured():
            log.error("%s", error)
            return error.exit_status
        about = f" {arguments[0]}" if known and arguments[0] != "help" else ""
        hint = f"\nTry: pleiades help{about}" if error.exit_status == EXIT_USAGE else ""
        print(f"pleiades: {error}{hint}", file=sys.stderr)  # noqa: T201  # before there are logs
        return error.exit_status
