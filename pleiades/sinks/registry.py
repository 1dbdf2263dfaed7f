"""All destinations. A new one gets its line in `DESTINATIONS`; nothing else outside of it names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pleiades.config.flags import RELAY_FLAGS, Groups
from pleiades.config.settings import Settings, settings_from
from pleiades.config.sources import Parser
from pleiades.runtime.errors import UsageError
from pleiades.sinks.base import Destination
from pleiades.sinks.counting import CountingDestination
from pleiades.sinks.files.destination import FilesDestination
from pleiades.sinks.kafka.destination import KafkaDestination

DESTINATIONS: list[type[Destination]] = [FilesDestination, KafkaDestination, CountingDestination]


def relay_parser(
    command: str,
    description: str = "",
    own: Groups | None = None,
    destinations: Sequence[type[Destination]] = (),
) -> Parser:
    """The parser of a command that relays.

    Args:
        command: its name.
        own: the flags that only this command has.
        destinations: those that it offers; empty: all.
    """
    offered = destinations or DESTINATIONS
    publishers = [flag for destination in offered for flag in destination.flags]

    def refuse(words: Sequence[str]) -> str | None:
        refusals = (destination.refused_argument(words) for destination in offered)
        return next(filter(None, refusals), None)

    return Parser(
        command, description, {"publishers": publishers, **RELAY_FLAGS, **(own or {})}, refuse
    )


def relay_settings(flag: Mapping[str, Any]) -> Settings:
    """The settings behind the flags of `relay_parser`.

    Raises:
        UsageError: the flags contradict each other, or not exactly one destination is enabled.
    """
    position_name = "+".join(sorted(flag["upstream.stream"]))
    return settings_from(flag, _enabled(flag).from_flags(flag, position_name))


def _enabled(flag: Mapping[str, Any]) -> type[Destination]:
    enabled = [each for each in DESTINATIONS if flag.get(each.enable)]
    enabled = [each for each in enabled if each.outranks] or enabled
    if len(enabled) == 1:
        return enabled[0]
    publishers = enabled or [each for each in DESTINATIONS if not each.outranks]
    flags = " or ".join(f"--{each.enable}" for each in publishers)
    raise UsageError(
        f"more than one publisher is enabled: take away {flags}"
        if enabled
        else f"no publisher is enabled: add {flags}"
    )
