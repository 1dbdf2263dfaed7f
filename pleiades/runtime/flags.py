"""How flags are read: from the command line, the environment and a TOML file, in that order.

configargparse merges the three. Two things it would do silently are done here aloud: an unknown key of
the file is an error, and a boolean that the file or the environment set can be unset by a flag.
"""

from __future__ import annotations

import argparse
import difflib
import io
import re
import tomllib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import configargparse

from pleiades.runtime import settings as read


def environment_name(flag: str) -> str:
    """`--file.publishDir` → `PLEIADES_FILE_PUBLISH_DIR`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", flag.lstrip("-"))
    return "PLEIADES_" + re.sub(r"[.-]", "_", words).upper()


class Toggle(argparse.Action):
    """A boolean: `--name`, `--name=true`, `--name=false`, `--no-name`; the last one given wins.

    One action for both spellings, so that either of them outranks environment and file.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        name = option_strings[-1]
        # The plain long form comes last: configargparse spells values of file and environment by it.
        spellings = [*option_strings[:-1], "--no-" + name.removeprefix("--"), name]
        super().__init__(spellings, dest, nargs="?", metavar="true|false", **options)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Set the value; `--no-name` takes none."""
        negated = (option_string or "").startswith("--no-")
        if negated and values is not None:
            raise argparse.ArgumentError(self, f"{option_string} takes no value")
        if values is None:
            setattr(namespace, self.dest, not negated)
            return
        try:
            setattr(namespace, self.dest, read.boolean(values))
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None


class _TomlFile(configargparse.ConfigFileParser):  # type: ignore[misc]  # untyped in the library
    """A TOML file whose every key must be a flag: `[file]` `publishDir = "x"` is `--file.publishDir`."""

    allowed: Callable[[], Iterable[str]]

    def get_syntax_description(self) -> str:
        return "TOML"

    def parse(self, stream: io.TextIOBase) -> OrderedDict[str, str]:
        name = getattr(stream, "name", "the configuration file")
        try:
            tables = tomllib.loads(stream.read())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise configargparse.ConfigFileParserException(
                f"{name} is not valid TOML: {error}"
            ) from None
        found: OrderedDict[str, str] = OrderedDict()
        allowed = list(self.allowed())
        for key, value in _flattened(tables, ""):
            if key not in allowed:
                near = difflib.get_close_matches(key, allowed, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise configargparse.ConfigFileParserException(f"{name}: unknown key {key!r}{hint}")
            found[key] = _as_text(name, key, value)
        return found


def _flattened(table: dict[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _as_text(name: str, key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ",".join(value)
    if isinstance(value, date):
        return value.isoformat()
    raise configargparse.ConfigFileParserException(
        f"{name}: {key!r} can't be a {type(value).__name__}"
    )


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        # Thirty flags in brackets help nobody; the groups below list them.
        super().add_usage("%(prog)s [flags]" if usage is None else usage, actions, groups, prefix)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not isinstance(action, Toggle):
            return super()._format_action_invocation(action)
        *short, negated, name = action.option_strings
        return ", ".join([*short, f"{name}[=true|false]", negated])


class _Parser(configargparse.ArgumentParser):  # type: ignore[misc]  # untyped in the library
    """Knows which keys its file may have."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            formatter_class=_Help,
            config_file_parser_class=_TomlFile,
            add_env_var_help=False,
            add_config_file_help=False,
            allow_abbrev=False,
            **options,
        )
        self._config_file_parser.allowed = self._keys

    def _keys(self) -> Iterable[str]:
        for action in self._actions:
            name = action.option_strings[-1].removeprefix("--")
            if name not in ("help", "config"):
                yield name


@dataclass(frozen=True, slots=True)
class Variation:
    """How a command differs from another one that has the same flags."""

    defaults: Mapping[str, str | bool] = field(default_factory=dict)
    """Other defaults, by the flags' names without dashes."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """Flags that this command does not have, with the value that it means instead."""


class Flags:
    """Adds flags to a group, each with default, unit and environment name in its help."""

    def __init__(
        self, parser: argparse.ArgumentParser, title: str, variation: Variation | None = None
    ) -> None:
        self._parser = parser
        self._group = parser.add_argument_group(title)
        self._variation = variation or Variation()

    def add(
        self,
        *names: str,
        default: str,
        meaning: str,
        reads: Callable[[str], object] = str,
        unit: str = "",
    ) -> None:
        """One flag with a value; `reads` raises ValueError where the text is none."""
        if self._is_fixed(names[-1]):
            return
        default = str(self._default(names[-1], default))

        def typed(text: str) -> object:
            try:
                return reads(text)
            except ValueError as error:
                raise argparse.ArgumentTypeError(str(error)) from None

        self._group.add_argument(
            *names,
            default=default,
            type=typed,
            metavar=unit if "|" in unit else (unit or "text").upper(),
            help=self._described(meaning, default or "(empty)", names[-1]),
            env_var=environment_name(names[-1]),
        )

    def toggle(self, *names: str, default: bool, meaning: str) -> None:
        """One boolean flag."""
        if self._is_fixed(names[-1]):
            return
        default = bool(self._default(names[-1], default))
        self._group.add_argument(
            *names,
            action=Toggle,
            default=default,
            help=self._described(meaning, str(default).lower(), names[-1]),
            env_var=environment_name(names[-1]),
        )

    def _is_fixed(self, flag: str) -> bool:
        """Whether the variation has a value instead of this flag; it is set then."""
        name = flag.removeprefix("--")
        if name not in self._variation.fixed:
            return False
        self._parser.set_defaults(**{name: self._variation.fixed[name]})
        return True

    def _default(self, flag: str, usual: str | bool) -> str | bool:
        return self._variation.defaults.get(flag.removeprefix("--"), usual)

    def _described(self, meaning: str, default: str, name: str) -> str:
        return f"{meaning} [default: {default}; ${environment_name(name)}]".replace("%", "%%")


def parser_for(command: str, description: str) -> argparse.ArgumentParser:
    """The parser of one command, with `--config`; flags are added by `Flags`."""
    parser: argparse.ArgumentParser = _Parser(prog=f"pleiades {command}", description=description)
    parser.add_argument(
        "--config",
        is_config_file=True,
        metavar="FILE",
        help="a TOML file of flags: publishDir in [file] is --file.publishDir "
        "[default: none; $PLEIADES_CONFIG]",
        env_var="PLEIADES_CONFIG",
    )
    return parser


def joined_negatives(arguments: Sequence[str]) -> list[str]:
    """`--since -2h` as `--since=-2h`: argparse takes a value with a dash for another flag."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--since" and re.match(r"-\d", argument):
            joined[-1] += "=" + argument
        else:
            joined.append(argument)
    return joined
