"""Command line, environment and TOML file → `Settings`, in that order of precedence.

configargparse merges the three. Two things it would do silently are done here aloud: an unknown key of
the file is an error, and a boolean that the file or the environment set can be unset by a flag.
"""

from __future__ import annotations

import argparse
import difflib
import io
import logging
import re
import tomllib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import configargparse

from pleiades import PROJECT_URL
from pleiades.core.units import parse_duration
from pleiades.runtime import settings as read
from pleiades.runtime.errors import UsageError
from pleiades.runtime.settings import (
    FilesSettings,
    KafkaSettings,
    Settings,
    UpstreamSettings,
)

PUBLIC_UPSTREAM = "https://stream.wikimedia.org/v2/stream"


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
    if isinstance(value, datetime):
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


class Flags:
    """Adds flags to a group, each with default, unit and environment name in its help."""

    def __init__(self, parser: argparse.ArgumentParser, title: str) -> None:
        self._group = parser.add_argument_group(title)

    def add(
        self,
        *names: str,
        default: str,
        meaning: str,
        reads: Callable[[str], object] = str,
        unit: str = "",
    ) -> None:
        """One flag with a value; `reads` raises ValueError where the text is none."""

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
        self._group.add_argument(
            *names,
            action=Toggle,
            default=default,
            help=self._described(meaning, str(default).lower(), names[-1]),
            env_var=environment_name(names[-1]),
        )

    def _described(self, meaning: str, default: str, name: str) -> str:
        return f"{meaning} [default: {default}; ${environment_name(name)}]".replace("%", "%%")


def ingest_parser(command: str, description: str) -> argparse.ArgumentParser:
    """The parser of `pleiades ingest`."""
    parser: argparse.ArgumentParser = _Parser(prog=f"pleiades {command}", description=description)
    parser.add_argument(
        "--config",
        is_config_file=True,
        metavar="FILE",
        help="a TOML file of flags: publishDir in [file] is --file.publishDir "
        "[default: none; $PLEIADES_CONFIG]",
        env_var="PLEIADES_CONFIG",
    )
    _add_publishers(Flags(parser, "publishers (exactly one must be enabled)"))
    flags = Flags(parser, "where to start")
    flags.toggle(
        "-r",
        "--resume",
        default=True,
        meaning="go on after the stored position; false: ignore it and start at --since",
    )
    flags.add(
        "--since",
        default="now",
        reads=lambda text: read.since(text, datetime.now(UTC)),
        meaning="where to start without a stored position: ISO 8601, -2h, or ms since 1970",
        unit="time",
    )
    _add_upstream(Flags(parser, "upstream"))
    _add_processing(Flags(parser, "processing"))
    _add_operation(Flags(parser, "operation"))
    return parser


def _add_publishers(flags: Flags) -> None:
    flags.toggle("--file.enable", default=False, meaning="publish to files, one per event")
    flags.add(
        "--file.publishDir",
        default="./events",
        reads=read.directory,
        meaning="where the files go; created if missing",
        unit="dir",
    )
    flags.add(
        "--file.sync",
        default=read.SYNC_BATCH,
        reads=read.choice(read.SYNC_BATCH, read.SYNC_NONE),
        meaning="batch: each batch survives a power failure before its position is stored; "
        "none: faster, a power failure may lose what the system had not written",
        unit="batch|none",
    )
    flags.toggle("--kafka.enable", default=False, meaning="publish to Kafka (not in this version)")
    flags.add(
        "--kafka.broker",
        default="localhost:9092",
        meaning="brokers to find the cluster by",
        unit="host:port",
    )
    flags.add("--kafka.topic", default="pleiades-events", meaning="topic to publish to")


def _add_upstream(flags: Flags) -> None:
    flags.add(
        "--upstream.url",
        default=PUBLIC_UPSTREAM,
        reads=read.base_url,
        meaning="base URL of the EventStreams service",
        unit="url",
    )
    flags.add(
        "--upstream.stream",
        default="recentchange",
        reads=read.streams,
        meaning="one stream or several, joined by commas",
        unit="names",
    )
    flags.add(
        "--upstream.contact",
        default=PROJECT_URL,
        reads=read.contact,
        meaning="a URL or mail address by which the upstream's operators reach you; goes into the "
        "User-Agent as their policy asks",
    )
    flags.add(
        "--upstream.overlap",
        default="60s",
        reads=read.duration(read.MIN_OVERLAP_SECONDS),
        meaning="how far a reconnect goes back behind the position; what is repeated is dropped",
        unit="duration",
    )
    flags.add(
        "--upstream.idleTimeout",
        default="60s",
        reads=read.duration(0.1),
        meaning="silence after which the connection is made anew",
        unit="duration",
    )
    flags.toggle(
        "--upstream.keepCanaries",
        default=False,
        meaning="publish canary events instead of dropping them",
    )


def _add_processing(flags: Flags) -> None:
    flags.add(
        "--parsers",
        default="1",
        reads=read.integer(1, read.MAX_PARSERS),
        meaning="parser processes; the order of events is kept",
        unit="number",
    )
    flags.add(
        "--dedup.window",
        default="10m",
        reads=parse_duration,
        meaning="how far behind the position identities are remembered; never less than the overlap",
        unit="duration",
    )
    flags.add(
        "--dedup.maxEntries",
        default="500000",
        reads=read.integer(1000, 50_000_000),
        meaning="most identities to remember; a warning tells when it is reached",
        unit="number",
    )


def _add_operation(flags: Flags) -> None:
    flags.add(
        "--metricsHost", default="", meaning="address of /metrics; empty: all", unit="address"
    )
    flags.add(
        "--metricsPort",
        default="9000",
        reads=read.integer(0, 65535),
        meaning="port of /metrics, /healthz and /readyz; 0: any free one, the log says which",
        unit="port",
    )
    flags.add(
        "--hangTimeout",
        default="30s",
        reads=read.duration(1.0),
        meaning="silence of a process after which it counts as hung, and all are started again",
        unit="duration",
    )
    flags.toggle("-q", "--quiet", default=False, meaning="log errors only")
    flags.toggle("-v", "--verbose", default=False, meaning="log everything")
    flags.add(
        "--log.format",
        default="text",
        reads=read.choice("text", "json"),
        meaning="text, or json: one object a line",
        unit="text|json",
    )


def joined_negatives(arguments: Sequence[str]) -> list[str]:
    """`--since -2h` as `--since=-2h`: argparse takes a value with a dash for another flag."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] == "--since" and re.match(r"-\d", argument):
            joined[-1] += "=" + argument
        else:
            joined.append(argument)
    return joined


def settings_from(parsed: argparse.Namespace) -> Settings:
    """The settings behind parsed flags.

    Raises:
        UsageError: the flags contradict each other.
    """
    flag = vars(parsed)
    if flag["file.enable"] == flag["kafka.enable"]:
        raise UsageError(
            "both publishers are enabled: take away --file.enable or --kafka.enable"
            if flag["file.enable"]
            else "no publisher is enabled: add --file.enable (one file per event) or --kafka.enable"
        )
    return Settings(
        upstream=UpstreamSettings(
            url=flag["upstream.url"],
            streams=flag["upstream.stream"],
            contact=flag["upstream.contact"],
            overlap_seconds=flag["upstream.overlap"],
            idle_timeout_seconds=flag["upstream.idleTimeout"],
            keep_canaries=flag["upstream.keepCanaries"],
        ),
        files=FilesSettings(flag["file.publishDir"], flag["file.sync"])
        if flag["file.enable"]
        else None,
        kafka=KafkaSettings(flag["kafka.broker"], flag["kafka.topic"])
        if flag["kafka.enable"]
        else None,
        resume=flag["resume"],
        since_ms=flag["since"],
        parsers=flag["parsers"],
        window_seconds=flag["dedup.window"],
        max_entries=flag["dedup.maxEntries"],
        metrics_host=flag["metricsHost"],
        metrics_port=flag["metricsPort"],
        hang_timeout_seconds=flag["hangTimeout"],
        log_level=log_level(parsed),
        log_format=flag["log.format"],
    )


def log_level(parsed: argparse.Namespace) -> int:
    """What `-q` and `-v` mean to `logging`.

    Raises:
        UsageError: both are given.
    """
    if parsed.quiet and parsed.verbose:
        raise UsageError("-q (errors only) and -v (everything) exclude each other: give one")
    if parsed.quiet:
        return logging.ERROR
    return logging.DEBUG if parsed.verbose else logging.INFO
