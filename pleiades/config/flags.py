"""A flag: command line, environment, TOML file, help and reference page derive from its declaration.

A flag is declared as a field of the dataclass that holds its value: `settings.py`, a destination, or the
arguments of a command that has more flags than the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from pleiades.config import values
from pleiades.config.values import Reader

TEXT = Reader("text", str)
BOOLEAN = Reader("true|false", values.boolean)
DIRECTORY = Reader("dir", values.path)
PREFIX = "PLEIADES_"
"""Begins the names of all flags in the environment."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag."""

    name: str
    """Without dashes; `file.sync` is `sync` in the table `[file]` of a TOML file."""
    default: str
    meaning: str
    reads: Reader = TEXT
    aliases: tuple[str, ...] = ()
    """Other spellings, with their dashes."""
    repeated: bool = False
    """All values count, and `reads` makes a tuple of the lines of one text."""
    without: tuple[str, ...] = ()
    """Commands that lack it: there it has its default."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Other defaults, by command."""
    group: str = ""
    """The title under which a help shows it and the next ones; empty: that of the one before."""

    @property
    def environment(self) -> str:
        """`file.publishDir` → `PLEIADES_FILE_PUBLISH_DIR`."""
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.name)
        return PREFIX + re.sub(r"[.-]", "_", words).upper()

    @property
    def unit(self) -> str:
        """The placeholder of its value in a help."""
        return self.reads.unit if "|" in self.reads.unit else self.reads.unit.upper()

    def default_of(self, command: str) -> str:
        """Its default in a command."""
        return self.defaults.get(command, self.default)


def flag(
    default: str,
    meaning: str,
    reads: Reader = TEXT,
    *,
    name: str = "",
    secret: bool = False,
    **others: Any,
) -> Any:
    """Declare a field of a dataclass that has a flag; its default is the flag's.

    Args:
        name: of the flag; empty: the prefix of the class and the field's name in camel case, without
            its unit. `idle_timeout_seconds` is `--upstream.idleTimeout`.
        secret: keep the value out of `repr`.
        others: see `Flag`.
    """
    declared = Flag(name, default, meaning, reads, **others)
    return field(default=reads(default), repr=not secret, metadata={"flag": declared})


def flags_of(holder: type, prefix: str = "") -> tuple[Flag, ...]:
    """The flags of a dataclass."""
    return tuple(declared for _, declared in _declared(holder, prefix))


def values_of(holder: type, given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values for the fields of a dataclass, from the values of flags by their names."""
    return {field: given[declared.name] for field, declared in _declared(holder, prefix)}


def _declared(holder: type, prefix: str) -> Iterator[tuple[str, Flag]]:
    for each in fields(holder):
        if "flag" in each.metadata:
            declared: Flag = each.metadata["flag"]
            first, *rest = re.sub("_(seconds|ms)$", "", each.name).split("_")
            name = prefix + first + "".join(word.capitalize() for word in rest)
            yield each.name, replace(declared, name=declared.name or name)
