"""A TOML file of flags, as configargparse asks for it."""

from __future__ import annotations

import difflib
import io
import tomllib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from typing import Any

import configargparse


class TomlFile(configargparse.ConfigFileParser):  # type: ignore[misc]  # untyped in the library
    """A TOML file whose every key must be a flag: `[file]` `publishDir = "x"` is `--file.publishDir`."""

    keys: Callable[[], Mapping[str, str]]
    """The flags, and what the parts of a list are joined by to make a value of each."""

    def get_syntax_description(self) -> str:
        """What a help would say of it."""
        return "TOML"

    def parse(self, stream: io.TextIOBase) -> OrderedDict[str, str]:
        """The values by the flags' names without dashes; no error shows one of them."""
        name = getattr(stream, "name", "the configuration file")
        try:
            entries = list(_flattened(tomllib.loads(stream.read()), ""))
        except RecursionError:
            raise configargparse.ConfigFileParserException(
                f"{name} is nested too deeply to be read"
            ) from None
        # Not only TOML's own: a number of thousands of digits, and what is not UTF-8.
        except ValueError as error:
            raise configargparse.ConfigFileParserException(
                f"{name} is not valid TOML: {error}"
            ) from None
        found: OrderedDict[str, str] = OrderedDict()
        keys = self.keys()
        for key, value in entries:
            if key not in keys:
                near = difflib.get_close_matches(key, keys, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise configargparse.ConfigFileParserException(f"{name}: unknown key {key!r}{hint}")
            found[key] = _as_text(name, key, value, keys[key])
        return found


def _flattened(table: dict[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _as_text(name: str, key: str, value: Any, joint: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise configargparse.ConfigFileParserException(
            f"{name}: {key!r} can't be a number of more than 64 bits"
        )
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        if joint == "\n" and any("\n" in part for part in value):
            raise configargparse.ConfigFileParserException(
                f"{name}: a part of {key!r} can't hold a line break"
            )
        return joint.join(value)
    if isinstance(value, date):
        return value.isoformat()
    raise configargparse.ConfigFileParserException(
        f"{name}: {key!r} can't be a {type(value).__name__}"
    )
