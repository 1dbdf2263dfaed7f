"""`pleiades verify`: checks an archive, or its copy in object storage, and changes nothing.

Law: a printed finding is one line without control characters, whatever it quotes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pleiades.config.sources import Parser
from pleiades.core.units import iso_time, plural
from pleiades.runtime import logs
from pleiades.runtime.errors import EXIT_FAILED, EXIT_STOPPED, Fatal
from pleiades.runtime.output import show
from pleiades.sinks.archive.target import Location, TargetError, open_target, parse_location
from pleiades.sinks.archive.verify import Summary, Verification, states_in

MAX_TEXT = 2000


def verify_parser(description: str = "") -> Parser:
    """The parser of the command line."""
    parser = Parser("verify", description, (), command_line_only=True)
    parser.usage = "%(prog)s DIR|URL"
    parser.add_argument(
        "place",
        metavar="DIR|URL",
        type=_location,
        help="the archive (--archive.dir), or its copy (--archive.upload): a directory, "
        "s3://bucket/prefix, gs://… or az://…; credentials come from the environment",
    )
    return parser


def _location(text: str) -> Location:
    try:
        return parse_location(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(arguments: Sequence[str], description: str) -> int:
    """Check the archive and print what was found; returns the exit status.

    Raises:
        Fatal: it can't be read.
    """
    location: Location = verify_parser(description).parse_args(arguments).place
    try:
        target = open_target(location)
        archive = None if location.scheme else Path(location.path)
        verification = Verification(target, lambda: states_in(archive) if archive else {})
        for part, finding in verification.findings():
            show(f"{finding.kind:7} {part:9} {logs.printable(finding.text, MAX_TEXT)}")
    except TargetError as error:
        raise Fatal(f"can't read {location}: {error}. Not all of it was checked") from None
    summary = verification.summary
    show("\n".join(_lines(summary)))
    if summary.problems:
        show(f"not sound: {plural(summary.problems, 'problem')}")
        return EXIT_FAILED
    show("sound: all that the manifests name is there, intact and only once")
    return EXIT_STOPPED


def _lines(summary: Summary) -> list[str]:
    removed = ""
    if summary.removed:
        removed = f"; {plural(summary.removed, 'other')} are uploaded and no longer here"
    lines = [
        f"segments   {summary.segments} in {plural(summary.manifests, 'manifest')}{removed}",
        f"events     {summary.events}",
        f"bytes      {summary.bytes}; uncompressed {summary.text_bytes}",
    ]
    if summary.first_ms is not None and summary.last_ms is not None:
        lines.append(f"from       {iso_time(summary.first_ms)} to {iso_time(summary.last_ms)}")
    for stream, events in sorted(summary.streams.items()):
        lines.append(f"stream     {stream}: {plural(events, 'event')}")
    lines += [
        f"gaps       {summary.gaps}",
        f"duplicates {summary.duplicates}",
        f"lost       {summary.lost}",
    ]
    return lines
