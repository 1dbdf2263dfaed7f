"""How flags are read: from the command line, the environment and a TOML file, in that order.

configargparse merges the three. Two things it would do silently are done here aloud: an unknown key of
the file is an error, and a boolean that the file or the environment set can be unset by a flag.

Law: an error shows no value but one that the flag's reader chose to show, for it may be secret.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import configargparse

from pleiades.runtime import properties
from pleiades.runtime import settings as read
from pleiades.runtime.toml_file import TomlFile


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


class Value(argparse.Action):
    """Takes one value, and notes in `given` that there was one, wherever it stood."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Set the value; the last one wins."""
        setattr(namespace, self.dest, values)
        namespace.given |= {self.dest}


class Lines(Value):
    """Takes lines, each time a tuple of them; all are kept.

    Environment and file give all lines at once. To configargparse it is a flag with one value:
    from one that can be repeated, it would take a value with brackets or commas apart.
    """

    joint = "\n"

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Add the lines to those before them."""
        earlier = getattr(namespace, self.dest) if self.dest in namespace.given else ()
        super().__call__(parser, namespace, (*earlier, *values), option_string)


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
            config_file_parser_class=TomlFile,
            add_env_var_help=False,
            add_config_file_help=False,
            allow_abbrev=False,
            **options,
        )
        self._config_file_parser.keys = self._keys
        self.set_defaults(given=frozenset())

    def _keys(self) -> Mapping[str, str]:
        joints = {
            action.option_strings[-1].removeprefix("--"): getattr(action, "joint", ",")
            for action in self._actions
        }
        return {name: joint for name, joint in joints.items() if name not in ("help", "config")}

    def parse_args(
        self,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
        **options: Any,
    ) -> argparse.Namespace:
        """As argparse does, but a secret is neither taken from the command line nor shown."""
        words = list(sys.argv[1:] if args is None else args)
        secret = properties.secret_in(words)
        if secret is not None:
            self.error(
                f"{secret} is secret, and everybody can read a command line (ps): put it into the "
                "file of --kafka.config, or into the environment as $PLEIADES_KAFKA_PROPERTY"
            )
        parsed: argparse.Namespace
        parsed, unknown = self.parse_known_args(words, namespace, **options)
        if unknown:
            self.error(f"unrecognized arguments: {_names_of(unknown)}")
        return parsed


def _names_of(words: Sequence[str]) -> str:
    """Names without values, which may be secret."""
    names = [word.partition("=")[0] for word in words]
    flags = [name for name in names if re.fullmatch(r"--[A-Za-z][\w.-]*|-[A-Za-z]", name)]
    others = len(words) - len(flags)
    return ", ".join(flags + ([f"{others} without a flag before them"] if others else []))


@dataclass(frozen=True, slots=True)
class Variation:
    """How a command differs from another one that has the same flags."""

    defaults: Mapping[str, str | bool] = field(default_factory=dict)
    """Other defaults, by the flags' names without dashes."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """Flags that this command does not have, with the value that it means instead."""
    without: tuple[str, ...] = ()
    """Beginnings of names of flags that this command does not have either, and never asks for."""


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
        repeated: bool = False,
    ) -> None:
        """One flag with a value; `reads` raises ValueError where the text is none.

        With `repeated` all values count, and `reads` makes a tuple of one text's lines.
        """
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
            # The last name is the flag's, the others are short for it.
            dest=names[-1].removeprefix("--"),
            action=Lines if repeated else Value,
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
        """Whether the variation lacks this flag; the value that it has instead is set then."""
        name = flag.removeprefix("--")
        if name in self._variation.fixed:
            self._parser.set_defaults(**{name: self._variation.fixed[name]})
            return True
        return name.startswith(self._variation.without)

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


_TIMES = ("--since", "--from", "--to")
"""Flags whose value may begin with a dash."""


def joined_negatives(arguments: Sequence[str]) -> list[str]:
    """`--since -2h` as `--since=-2h`: argparse takes a value with a dash for another flag."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in _TIMES and re.match(r"-\d", argument):
            joined[-1] += "=" + argument
        else:
            joined.append(argument)
    return joined
