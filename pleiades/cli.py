"""argv → settings → pipeline → exit status."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

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

    run: Callable[[Sequence[str], str], int]
    """Gets the arguments after the command, and its meaning for the help; returns the exit status."""
    meaning: str
    stopped: int = EXIT_STOPPED
    """The exit status after a signal that comes before there is anything to stop."""


# Each command imports what it needs, for children import this file, too.


def ingest(arguments: Sequence[str], meaning: str) -> int:
    """Relay until stopped."""
    from pleiades.sinks.registry import relay_parser, relay_settings

    settings = relay_settings(vars(relay_parser("ingest", meaning).parse_args(arguments)))
    logs.configure(settings.log_level, settings.log_format, "parent")

    from pleiades.pipeline import relay

    return relay(settings)


def explain(arguments: Sequence[str], _meaning: str = "") -> int:
    """Print the help of a command, or the list of commands."""
    if arguments and arguments[0] not in ("help", "-h", "--help"):
        command = _command(arguments[0])
        return command.run(["--help"], command.meaning)
    commands = "\n".join(f"  {name:10} {command.meaning}" for name, command in COMMANDS.items())
    print(  # noqa: T201  # the help
        "usage: pleiades <command> [flags]\n\n"
        f"Relays Wikimedia EventStreams: every event exactly once, in order.\n\n{commands}\n\n"
        "pleiades help <command> lists its flags; pleiades --version tells the version.\n"
        "Begin with: pleiades demo"
    )
    return EXIT_STOPPED


def _module(name: str) -> Callable[[Sequence[str], str], Any]:
    """The command that is the function `run` of a module."""
    return lambda arguments, meaning: import_module(name).run(arguments, meaning)


COMMANDS = {
    "ingest": Command(ingest, "Relay EventStreams into files or Kafka, every event exactly once."),
    "replay": Command(
        _module("pleiades.replay.command"),
        "Relay a range of history to its end; run again, it goes on.",
        EXIT_INTERRUPTED,
    ),
    "check": Command(
        _module("pleiades.check"),
        "Try what ingest would use with the same flags; writes nothing.",
        # Not all was looked at, so not all is well.
        EXIT_FAILED,
    ),
    "demo": Command(
        _module("pleiades.demo"),
        "Relay from a local upstream into ./events: no internet, no Kafka.",
    ),
    "simulate": Command(
        _module("pleiades.simulator.command"),
        "Serve a local upstream that speaks the EventStreams protocol.",
    ),
    "help": Command(explain, "Show this, or the flags of a command."),
}


def _command(name: str) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    shown = logs.printable(name, 40)
    raise UsageError(f"there is no command {shown!r}; there are {', '.join(COMMANDS)}")


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
            return explain([])
        if arguments[0] in ("-V", "--version"):
            print(f"pleiades {__version__}")  # noqa: T201  # the version
            return EXIT_STOPPED
        command = _command(arguments[0])
        return command.run(arguments[1:], command.meaning)
    except Fatal as error:
        if logs.configured():
            log.error("%s", error)
            return error.exit_status
        about = f" {arguments[0]}" if known and known.run != explain else ""
        hint = f"\nTry: pleiades help{about}" if error.exit_status == EXIT_USAGE else ""
        print(f"pleiades: {error}{hint}", file=sys.stderr)  # noqa: T201  # before there are logs
        return error.exit_status
