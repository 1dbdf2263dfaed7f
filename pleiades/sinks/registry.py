"""All destinations. A new one gets its line in `DESTINATIONS`; nothing else outside of it names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pleiades.config.flags import Flag
from pleiades.config.settings import RELAY_FLAGS, Settings, refused_argument, settings_from
from pleiades.config.sources import Parser
from pleiades.runtime.errors import UsageError
from pleiades.sinks.archive.destination import ArchiveDestination
from pleiades.sinks.base import Destination
from pleiades.sinks.counting import CountingDestination
from pleiades.sinks.files.destination import FilesDestination
from pleiades.sinks.kafka.destination import KafkaDestination

DESTINATIONS: list[type[Destination]] = [
    FilesDestination,
    KafkaDestination,
    ArchiveDestination,
    CountingDestination,
]


def relay_parser(
    command: str,
    description: str = "",
    own: Sequence[Flag] = (),
    destinations: Sequence[type[Destination]] = (),
) -> Parser:
    """The parser of a command that relays.

    Args:
        command: its name.
        own: the flags that only this command has.
        destinations: those that it offers; empty: all.
    """
    offered = destinations or DESTINATIONS
    publishers = [flag for destination in offered for flag in destination.flags()]

    def refuse(words: Sequence[str]) -> str | None:
        refusals = (destination.refused_argument(words) for destination in offered)
        return refused_argument(words) or next(filter(None, refusals), None)

    return Parser(command, description, [*publishers, *RELAY_FLAGS, *own], refuse)


def relay_settings(given: Mapping[str, Any]) -> Settings:
    """The settings behind the flags of `relay_parser`.

    Raises:
        UsageError: the flags contradict each other, or not exactly one destination is enabled.
    """
    position_name = "+".join(sorted(given["upstream.stream"]))
    return settings_from(given, _enabled(given).from_flags(given, position_name))


def _enabled(given: Mapping[str, Any]) -> type[Destination]:
    enabled = [each for each in DESTINATIONS if given.get(each.enable.name)]
    enabled = [each for each in enabled if each.outranks] or enabled
    if len(enabled) == 1:
        return enabled[0]
    publishers = enabled or [each for each in DESTINATIONS if not each.outranks]
    flags = " or ".join(f"--{each.enable.name}" for each in publishers)
    raise UsageError(
        f"more than one publisher is enabled: take away {flags}"
        if enabled
        else f"no publisher is enabled: add {flags}"
    )
