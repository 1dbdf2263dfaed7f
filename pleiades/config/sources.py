"""Reads flags from the command line, the environment and a TOML file, in that order of precedence.

configargparse merges the three. This module adds what it lacks: an unknown key of the file is an error,
and a flag can unset a boolean that the file or the environment has set.

Law: an error shows no value but one that the flag's reader chose to show, for it may be secret.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import re
import sys
import tomllib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO

import configargparse

from pleiades.config.flags import BOOLEAN, PREFIX, Flag
from pleiades.core.units import plural

CONFIG_VARIABLE = PREFIX + "CONFIG"
MAX_NAME = 60  # characters shown of an unknown name

# How argparse begins an error: all spellings of a flag, of which the last one is its name.
_NAMES = re.compile(r"^argument (?:[^\s:]*/)*")

# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_LINK = re.compile(
    r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$"
)


class HelpRequested(Exception):
    """`--help` is among the arguments; its text is the help."""


class Parser(configargparse.ArgumentParser):  # type: ignore[misc]  # untyped in the library
    """Parses the arguments of one command.

    Args:
        command: its name, as in `pleiades help NAME`.
        flags: all that it has, and those that it lacks and that have their default here.
        refuse: looks at the command line first; returns an error, or None.
        command_line_only: read neither environment nor file.
    """

    def __init__(
        self,
        command: str,
        description: str,
        flags: Iterable[Flag],
        refuse: Callable[[Sequence[str]], str | None] = lambda _: None,
        command_line_only: bool = False,
    ) -> None:
        super().__init__(
            prog=f"pleiades {command}",
            description=description,
            # Thirty flags in brackets help nobody; the groups below list them.
            usage="%(prog)s [flags]",
            formatter_class=partial(_Help, max_help_position=32, width=100),
            config_file_parser_class=TomlFile,
            config_file_open_func=self._open,
            add_env_var_help=False,
            add_config_file_help=False,
            allow_abbrev=False,
        )
        # argparse takes `-2h` in `--since -2h` for another flag, but knows negative numbers.
        self._negative_number_matcher = re.compile(r"-\d")
        self._command = command
        self._refuse = refuse
        self._config_file_parser.flags = {}
        self._command_line_only = command_line_only
        if not command_line_only:
            self.add_argument(
                "--config",
                is_config_file=True,
                metavar="FILE",
                help="a TOML file of flags: publishDir in [file] is --file.publishDir "
                "[default: none; $PLEIADES_CONFIG]",
                env_var=CONFIG_VARIABLE,
            )
        group: argparse._ActionsContainer = self
        for flag in flags:
            if flag.group:
                group = self.add_argument_group(flag.group)
            self._add(group, flag)

    def _add(self, group: argparse._ActionsContainer, flag: Flag) -> None:
        default = flag.default_of(self._command)
        if self._command in flag.without:
            self.set_defaults(**{flag.name: flag.reads(default)})
            return

        def typed(text: str) -> object:
            try:
                return flag.reads(text)
            except ValueError as error:
                raise argparse.ArgumentTypeError(str(error)) from None

        self._config_file_parser.flags[flag.name] = flag
        environment = None if self._command_line_only else flag.environment
        source = f"; ${environment}" if environment else ""
        shown = f"{flag.meaning} [default: {default or '(empty)'}{source}]"
        group.add_argument(
            *flag.aliases,
            f"--{flag.name}",
            dest=flag.name,
            action=Toggle if flag.reads is BOOLEAN else Lines if flag.repeated else "store",
            default=() if flag.repeated else default,
            type=typed,
            metavar=flag.unit,
            help=shown.replace("%", "%%"),
            env_var=environment,
        )

    def parse_args(
        self,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
        **options: Any,
    ) -> argparse.Namespace:
        """Parse as argparse does; `given` names the flags that any source has set."""
        words = list(args or ())
        if refusal := self._refuse(words):
            self.error(refusal)
        parsed: argparse.Namespace
        parsed, unknown = self.parse_known_args(words, namespace, **options)
        if unknown:
            self.error(self._unknown(unknown))
        defaults = self.get_source_to_settings_dict().get("defaults", {})
        parsed.given = vars(parsed).keys() - {action.dest for action, _ in defaults.values()}
        return parsed

    def _unknown(self, words: Sequence[str]) -> str:
        """The error about words that are no flags; shows no values, which may be secret."""
        shown, stray = [], 0
        takes_value = False
        for word in words:
            name, equals, _ = word.partition("=")
            if re.fullmatch(r"--[A-Za-z][\w.-]*|-[A-Za-z]", name):
                hint = did_you_mean(name, self._option_string_actions)
                shown.append(f"there is no flag {name}{hint}")
                takes_value = not equals
            else:
                # The word after an unknown flag is its value.
                stray += not takes_value
                takes_value = False
        if stray:
            shown.append(f"{plural(stray, 'value')} without a flag")
        return "; ".join(shown)

    def _open(self, path: str, *_mode: str) -> TextIO:
        try:
            return Path(path).open(encoding="utf-8-sig")
        except OSError as error:
            wrong = f"--config: {path!r} can't be read: {error.strerror}"
        return self.error(wrong)

    def print_help(self, _file: object = None) -> NoReturn:
        """Leave the output to the caller: argparse would ignore that it can't be written."""
        raise HelpRequested(self.format_help().rstrip("\n"))

    def error(self, message: str) -> NoReturn:
        """End the program; says where the command's flags are explained."""
        with contextlib.suppress(OSError):
            sys.stderr.write(usage_text(self._command, _NAMES.sub("", message)))
        # As argparse; it is `runtime.errors.EXIT_USAGE`.
        sys.exit(2)


def usage_text(command: str, message: str) -> str:
    """The error about a wrong command line, as it is printed; `command`: empty if there is none."""
    about = f" {command}" if command else ""
    return f"pleiades{about}: {message}\nTry: pleiades help{about}\n"


def unknown_variables(environment: Mapping[str, str], known: Collection[str]) -> Iterator[str]:
    """An error for each variable that begins as those of flags do, and is not known."""
    for name in environment.keys() - {*known}:
        if name.startswith(PREFIX) and not _is_service_link(name, environment[name]):
            yield f"there is no variable {name[:MAX_NAME]!a}{did_you_mean(name, known)}"


def _is_service_link(name: str, value: str) -> bool:
    """True for what Kubernetes sets for a service whose name begins with `pleiades`."""
    return bool(_SERVICE_LINK.search(name) or (name.endswith("_PORT") and "://" in value))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest known name; empty if none is near."""
    near = difflib.get_close_matches(name, known, 1, cutoff=0.75)
    return f" (did you mean {near[0]}?)" if near else ""


class Toggle(argparse.Action):
    """A boolean: `--name`, `--name=true`, `--name=false`, `--no-name`; the last one given wins.

    One action for both spellings, so that either of them outranks environment and file.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        # The plain long form comes last: configargparse spells values of file and environment by it.
        *short, name = option_strings
        super().__init__([*short, f"--no-{dest}", name], dest, nargs="?", **options)

    def __call__(self, _parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Set the value; `--no-name` takes none."""
        negated = (option or "").startswith("--no-")
        if negated and values is not None:
            raise argparse.ArgumentError(self, f"{option} takes no value")
        setattr(namespace, self.dest, not negated if values is None else values)


class Lines(argparse.Action):
    """A repeated flag: keeps the lines of all its values, each of which is a tuple.

    Environment and file give all lines at once. To configargparse it is a flag with one value:
    from one that can be repeated, it would take a value with brackets or commas apart.
    """

    def __call__(self, _parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Add the lines to those before them."""
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), *values))


class _Help(argparse.HelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not isinstance(action, Toggle):
            return super()._format_action_invocation(action)
        *short, negated, name = action.option_strings
        return ", ".join([*short, f"{name}[=true|false]", negated])


class TomlFile(configargparse.ConfigFileParser):  # type: ignore[misc]  # untyped in the library
    """A TOML file whose every key must be a flag: `publishDir` in `[file]` is `--file.publishDir`."""

    flags: Mapping[str, Flag]

    def get_syntax_description(self) -> str:
        """Name the format in a help."""
        return "TOML"

    def parse(self, stream: io.TextIOBase) -> OrderedDict[str, str]:
        """The values by the flags' names; no error shows one of them."""
        try:
            return OrderedDict(
                (key, self._as_text(key, value))
                for key, value in _flattened(tomllib.loads(stream.read()), "")
            )
        except argparse.ArgumentTypeError as error:
            wrong = str(error)
        except RecursionError:
            wrong = "is nested too deeply to be read"
        # Also for a number of thousands of digits, and for what is not UTF-8.
        except ValueError as error:
            wrong = f"is not valid TOML: {error}"
        name = getattr(stream, "name", "the configuration file")
        raise configargparse.ConfigFileParserException(f"{name}: {wrong}")

    def _as_text(self, key: str, value: Any) -> str:
        flag = self.flags.get(key)
        if flag is None:
            wrong = f"unknown key {key!r}{did_you_mean(key, self.flags)}"
            raise argparse.ArgumentTypeError(wrong)
        match value:
            case bool():
                return str(value).lower()
            case int() if not -(2**63) <= value < 2**63:
                wrong = "a number of more than 64 bits"
            case str() | int() | float():
                return str(value)
            case date():
                return value.isoformat()
            case [*parts] if flag.repeated and any("\n" in str(part) for part in parts):
                wrong = "a list with a line break in a part"
            case [*parts] if all(isinstance(part, str) for part in parts):
                return ("\n" if flag.repeated else ",").join(parts)
            case _:
                wrong = f"a {type(value).__name__}"
        raise argparse.ArgumentTypeError(f"{key!r} can't be {wrong}")


def _flattened(table: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
