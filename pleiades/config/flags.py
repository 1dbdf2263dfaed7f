"""The table of flags. Command line, environment, TOML file, help and reference page derive from it.

A destination declares its own flags in the same way (`sinks/*/destination.py`), and so do the commands
that have more of them (`replay/arguments.py`, `demo.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from pleiades import PROJECT_URL
from pleiades.config import values
from pleiades.config.values import Reader, choice, duration, integer
from pleiades.core.units import parse_duration

MAX_PARSERS = 64
MIN_OVERLAP_SECONDS = 0.001
"""An id carries its event's timestamp plus 1 ms; with less, a reconnect could skip events."""
MIN_HANG_TIMEOUT_SECONDS = 2.0
"""A healthy process may be silent for almost a second: it looks up every half second."""
REDIRECTS_SAME_HOST = "same-host"
REDIRECTS_ANY = "any"

TEXT = Reader("text", str)
BOOLEAN = Reader("true|false", values.boolean)
DIRECTORY = Reader("dir", values.path)
OPTIONAL_FILE = values.optional(Reader("file", values.path))


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag, declared once."""

    name: str
    """Without dashes; a dot makes a table in TOML: `file.sync` is `sync` in `[file]`."""
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

    @property
    def environment(self) -> str:
        """`file.publishDir` → `PLEIADES_FILE_PUBLISH_DIR`."""
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.name)
        return "PLEIADES_" + re.sub(r"[.-]", "_", words).upper()

    @property
    def unit(self) -> str:
        """The placeholder of its value in a help."""
        return self.reads.unit if "|" in self.reads.unit else self.reads.unit.upper()

    def default_of(self, command: str) -> str:
        """Its default in a command."""
        return self.defaults.get(command, self.default)


Groups: TypeAlias = Mapping[str, Sequence[Flag]]
"""Flags by the title under which a help shows them."""

RELAY_FLAGS: Groups = {
    "where to start": (
        Flag(
            "resume",
            "true",
            "go on after the stored position; false: ignore it and start at --since",
            BOOLEAN,
            aliases=("-r",),
            without=("replay",),
            # Every demo has an upstream of its own, which knows nothing of an earlier one's position.
            defaults={"demo": "false"},
        ),
        Flag(
            "since",
            "now",
            "where to start without a stored position: ISO 8601, -2h, or ms since 1970",
            Reader("time", values.since),
            without=("replay",),
        ),
    ),
    "upstream": (
        Flag(
            "upstream.url",
            "https://stream.wikimedia.org/v2/stream",
            "base URL of the EventStreams service",
            Reader("url", values.base_url),
            without=("demo",),
        ),
        Flag(
            "upstream.stream",
            "recentchange",
            "one stream or several, joined by commas",
            Reader("names", values.streams),
            without=("demo",),
        ),
        Flag(
            "upstream.contact",
            PROJECT_URL,
            "a URL or mail address by which the upstream's operators reach you; goes into the "
            "User-Agent, as their policy asks",
            Reader("text", values.contact),
            without=("demo",),
        ),
        Flag(
            "upstream.overlap",
            "60s",
            "how far a reconnect goes back behind the position; repeated events are dropped",
            duration(MIN_OVERLAP_SECONDS),
        ),
        Flag(
            "upstream.idleTimeout",
            "60s",
            "silence after which the relay reconnects",
            duration(0.1),
            aliases=("--idleTimeout",),
        ),
        Flag(
            "upstream.ca",
            "",
            "PEM file of the certificate authorities to trust instead of the usual ones, for an "
            "upstream or a proxy with a private certificate",
            Reader("file", values.certificates),
        ),
        Flag(
            "upstream.redirects",
            REDIRECTS_SAME_HOST,
            "redirects to follow: same-host: to the same host, and never from https to http; any: all",
            choice(REDIRECTS_SAME_HOST, REDIRECTS_ANY),
        ),
        Flag(
            "upstream.keepCanaries",
            "false",
            "publish canary events instead of dropping them",
            BOOLEAN,
        ),
    ),
    "processing": (
        Flag(
            "parsers",
            "1",
            "parser processes; the order of events is kept",
            integer(1, MAX_PARSERS),
        ),
        Flag(
            "dedup.window",
            "10m",
            "how far behind the position identities are remembered; never less than the overlap",
            Reader("duration", parse_duration),
        ),
        Flag(
            "dedup.maxEntries",
            "500000",
            "most identities to remember; a warning tells when it is reached",
            integer(1000, 50_000_000),
        ),
    ),
    "operation": (
        Flag(
            "metricsHost",
            "",
            "address of /metrics; empty: all",
            Reader("address", str),
        ),
        Flag(
            "metricsPort",
            "9000",
            "port of /metrics, /healthz and /readyz; 0: any free one, the log says which",
            integer(0, values.MAX_PORT, "port"),
            # Several replays at once on one machine are usual.
            defaults={"replay": "0"},
        ),
        Flag(
            "hangTimeout",
            "30s",
            "silence of a process after which it counts as hung, and all are started again",
            duration(MIN_HANG_TIMEOUT_SECONDS),
        ),
        Flag("quiet", "false", "log errors only", BOOLEAN, aliases=("-q",)),
        Flag("verbose", "false", "log everything", BOOLEAN, aliases=("-v",)),
        Flag(
            "log.format",
            "text",
            "text, or json: one object a line",
            choice("text", "json"),
        ),
    ),
}
"""Of all commands that relay. A command lists the destinations' flags before these, its own after."""
