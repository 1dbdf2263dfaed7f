"""argv → settings → pipeline → exit status."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from pleiades import __version__
from pleiades.config.flags import PREFIX, Flag, flags_of
from pleiades.config.settings import RELAY_FLAGS
from pleiades.config.sources import (
    CONFIG_VARIABLE,
    HelpRequested,
    unknown_variables,
    usage_text,
)
from pleiades.runtime import faultpoints, logs, startup
from pleiades.runtime.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    EXIT_USAGE,
    Fatal,
    UsageError,
)
from pleiades.runtime.output import show

log = logging.getLogger(__name__)


class Command(NamedTuple):
    """One word after `pleiades`."""

    module: str
    """Its function `run` gets the arguments after the command, and the meaning for the help, and returns
    the exit status. It is imported for this command only."""
    meaning: str
    reads_environment: bool = True
    stopped: int = EXIT_STOPPED
    """The exit status after a signal that comes before there is anything to stop."""


COMMANDS = {
    "ingest": Command(
        "pleiades.pipeline", "Relay EventStreams into files or Kafka, every event exactly once."
    ),
    "replay": Command(
        "pleiades.replay.command",
        "Relay a range of history to its end; run again, it goes on.",
        stopped=EXIT_INTERRUPTED,
    ),
    "check": Command(
        "pleiades.check",
        "Try what ingest would use with the same flags; leaves nothing behind.",
        # Not all was looked at, so not all is well.
        stopped=EXIT_FAILED,
    ),
    "verify": Command(
        "pleiades.verify",
        "Check an archive, or its copy in object storage, against its manifests.",
        reads_environment=False,
        # Not all was read, so it may not be sound.
        stopped=EXIT_FAILED,
    ),
    "demo": Command(
        "pleiades.demo", "Relay from a local upstream into ./demo-events: no internet, no Kafka."
    ),
    "simulate": Command(
        "pleiades.simulator.command",
        "Serve a local upstream that speaks the EventStreams protocol.",
        reads_environment=False,
    ),
    "help": Command(
        "pleiades.cli", "Show this, or the flags of a command.", reads_environment=False
    ),
}


def run(arguments: Sequence[str], _meaning: str = "") -> int:
    """`pleiades help`: print the help of a command, or the list of commands."""
    if arguments and arguments[0] not in ("help", "-h", "--help"):
        return _run(arguments[0], ["--help"])
    commands = "\n".join(f"  {name:10} {command.meaning}" for name, command in COMMANDS.items())
    show(
        "usage: pleiades <command> [flags]\n\n"
        f"Relays Wikimedia EventStreams: every event exactly once, in order.\n\n{commands}\n\n"
        "pleiades help <command> lists its flags; pleiades --version tells the version.\n"
        "Begin with: pleiades demo"
    )
    return EXIT_STOPPED


def all_flags() -> list[Flag]:
    """The flags of all commands that read the environment."""
    from pleiades.demo import FLAGS
    from pleiades.replay.arguments import Arguments
    from pleiades.sinks.registry import DESTINATIONS

    publishers = [flag for destination in DESTINATIONS for flag in destination.flags()]
    return [*publishers, *RELAY_FLAGS, *flags_of(Arguments), *FLAGS]


def _refuse_unknown_variables() -> None:
    if any(name.startswith(PREFIX) for name in os.environ):
        flags = [flag.environment for flag in all_flags()]
        known = [*flags, CONFIG_VARIABLE, faultpoints.FOLDER_VARIABLE]
        wrong = sorted(unknown_variables(os.environ, known))
        if wrong:
            raise UsageError(f"{'; '.join(wrong)}. Variables that begin with {PREFIX} are flags")


def _run(name: str, arguments: Sequence[str]) -> int:
    if name not in COMMANDS:
        shown = logs.printable(name, 40)
        raise UsageError(f"there is no command {shown!r}; there are {', '.join(COMMANDS)}")
    module, meaning, reads_environment, _ = COMMANDS[name]
    if reads_environment:
        _refuse_unknown_variables()
    try:
        status: int = import_module(module).run(arguments, meaning)
    except HelpRequested as help_:
        show(str(help_))
        return EXIT_STOPPED
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv`; returns the exit status (see `runtime.errors`)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = COMMANDS.get(arguments[0]) if arguments else None
    stopped = EXIT_STOPPED if known is None else known.stopped
    try:
        startup.take_nothing_over()
        # Nothing has begun yet. As PID 1, and only there, a signal without a handler has no effect.
        startup.on_stop_signals(lambda _number, _frame: os._exit(stopped))
        if not arguments:
            raise UsageError(f"a command is missing; there are {', '.join(COMMANDS)}")
        if arguments[0] in ("-h", "--help"):
            return run([])
        if arguments[0] in ("-V", "--version"):
            show(f"pleiades {__version__}")
            return EXIT_STOPPED
        return _run(arguments[0], arguments[1:])
    except Fatal as error:
        if logs.configured():
            log.error("%s", error)
            return error.exit_status
        command = arguments[0] if known and arguments[0] != "help" else ""
        text = f"pleiades: {error}\n"
        if error.exit_status == EXIT_USAGE:
            text = usage_text(command, str(error))
        with contextlib.suppress(OSError):
            print(text, end="", file=sys.stderr)  # noqa: T201  # before there are logs
        return error.exit_status
