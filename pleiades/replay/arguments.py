"""Which flags `pleiades replay` has beside those of `ingest`, and what they stand for."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pleiades.core.range import MAX_SLICES, Bound, EmptyRange, Range, Slice, bound_of
from pleiades.core.wire import Assignment, MalformedId, compose_id, parse_id
from pleiades.runtime import settings as read
from pleiades.runtime.arguments import ingest_parser, settings_from
from pleiades.runtime.errors import UsageError
from pleiades.runtime.flags import Flags, Variation
from pleiades.runtime.settings import Settings

MAX_CONNECTIONS = 64
MAX_RATE = 10_000_000
MAX_LIMIT = 10**15
MAX_SHOWN_STREAMS = 60
"""Characters; of more streams a position's name holds only the digest."""

_AS_INGEST_BUT = Variation(
    # Several at once on one machine, each with an end, are usual.
    defaults={"metricsPort": "0"},
    fixed={"resume": True, "since": None},
)
_RATE = re.compile(r"([0-9]{1,8}(?:\.[0-9]{1,6})?)(?:/s)?", re.ASCII)
_SLICE = re.compile(r"([0-9]{1,5})/([0-9]{1,5})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Moment:
    """One end of a range as it was given."""

    text: str
    """As given; the same for all that mean the same, unless that depends on when it is read."""
    absolute: bool
    """It means the same whenever it is read."""
    assignments: tuple[Assignment, ...] = ()
    """Of an SSE id; else empty."""

    def bound(self, now_ms: int, first: bool) -> Bound:
        """What it means.

        Args:
            now_ms: what `now` is, ms since 1970.
            first: it is the begin.
        """
        if self.assignments:
            return bound_of(self.assignments, first)
        milliseconds = read.moment(self.text, datetime.fromtimestamp(now_ms / 1000, UTC))
        return Bound(now_ms if milliseconds is None else max(milliseconds, 0))


def moment(text: str) -> Moment:
    """Reads an SSE id, ISO 8601, `-36h`, ms since 1970, or `now`."""
    text = text.strip()
    if text.startswith("["):
        try:
            assignments = parse_id(text.encode())
            bound_of(assignments, first=True)
        except MalformedId as error:
            raise ValueError(f"is no SSE id: {error}") from None
        named = {source: time or 0 for source, time in assignments}
        return Moment(compose_id(named), absolute=True, assignments=assignments)
    milliseconds = read.moment(text, datetime.now(UTC))
    if milliseconds is None or text.startswith("-"):
        return Moment(text or "now", absolute=False)
    return Moment(str(milliseconds), absolute=True)


def rate(text: str) -> float:
    """Reads `500/s` or `500`; 0: no limit."""
    match = _RATE.fullmatch(text.strip())
    if match is None or float(match[1]) > MAX_RATE:
        raise ValueError(f"{text[:40]!r} is no rate of at most {MAX_RATE}/s, such as 500/s")
    return float(match[1])


def part(text: str) -> Slice | None:
    """Reads `2/8`: the third of eight slices; empty for all of it."""
    if not text:
        return None
    match = _SLICE.fullmatch(text.strip())
    if match is None or not int(match[1]) < int(match[2]) <= MAX_SLICES:
        raise ValueError(
            f"{text[:40]!r} is no slice such as 0/8, the first of eight; the last one is 7/8, and there "
            f"are at most {MAX_SLICES}"
        )
    return Slice(int(match[1]), int(match[2]))


def optional(reads: Callable[[str], int]) -> Callable[[str], int | None]:
    """Reads what `reads` does; empty: None."""
    return lambda text: reads(text) if text else None


class Arguments(NamedTuple):
    """What a replay is told, before anything was looked at."""

    settings: Settings
    """Without `Settings.replay`."""
    begin: Moment
    end: Moment
    part: Slice | None
    restart: bool
    allow_gap: bool
    skip_existing: bool
    limit: int | None
    rate: float
    dry_run: bool
    connections: int
    report: Path | None

    @property
    def absolute(self) -> bool:
        """The same arguments always mean the same range."""
        return self.begin.absolute and self.end.absolute

    def range(self, now_ms: int) -> Range:
        """What is replayed.

        Raises:
            UsageError: there is nothing in it, or it reaches into the future.
        """
        begin, end = self.begin.bound(now_ms, first=True), self.end.bound(now_ms, first=False)
        latest_ms = max(begin.default_ms, end.default_ms, *end.own_ms.values(), 0)
        if latest_ms > datetime.now(UTC).timestamp() * 1000:
            raise UsageError(
                "--from and --to must not lie in the future: what comes until then is for ingest"
            )
        try:
            whole = Range(begin, end)
        except EmptyRange:
            raise UsageError(
                f"--from={self.begin.text} is not before --to={self.end.text}: there is nothing to "
                "replay. --from is in the range, --to is not"
            ) from None
        if self.part is None:
            return whole
        try:
            return whole.cut(self.part)
        except EmptyRange:
            raise UsageError(
                f"--slice={self.part.number}/{self.part.parts} is empty: the range has fewer "
                "milliseconds than slices"
            ) from None


def replay_parser(description: str) -> argparse.ArgumentParser:
    """The parser of `pleiades replay`."""
    parser = ingest_parser("replay", description, _AS_INGEST_BUT)
    flags = Flags(parser, "what is replayed, and how")
    flags.add(
        "--from",
        default="",
        reads=lambda text: moment(text) if text else None,
        meaning="where it begins: ISO 8601, -36h, ms since 1970, or an SSE id (the events after it)",
        unit="time|id",
    )
    flags.add(
        "--to",
        default="now",
        reads=moment,
        meaning="where it ends, as --from; the moment itself is not in it, the event of an id is",
        unit="time|id",
    )
    flags.add(
        "--slice",
        default="",
        reads=part,
        meaning="only the i-th of n equal parts, from 0; they meet without gap or overlap",
        unit="i/n",
    )
    flags.toggle(
        "--restart",
        default=False,
        meaning="begin at --from again, whatever an earlier run with these arguments did",
    )
    flags.toggle(
        "--allow-gap",
        default=False,
        meaning="replay what there is, if the upstream no longer has all; the exit status is 6 then",
    )
    flags.toggle(
        "--skipExisting",
        default=False,
        meaning="Kafka: read first what the topic has of the range, and add only what is missing",
    )
    flags.add(
        "--limit",
        default="",
        reads=optional(read.integer(1, MAX_LIMIT)),
        meaning="stop after so many events, for now: the next run goes on; empty: no limit",
        unit="number",
    )
    flags.add(
        "--rate",
        default="0",
        reads=rate,
        meaning="read at most so many events per second, e.g. 500/s; 0: no limit",
        unit="n/s",
    )
    flags.toggle(
        "--dry-run",
        default=False,
        meaning="only count, by topic and hour: needs no publisher, and writes nothing",
    )
    flags.add(
        "--upstream.connections",
        default="2",
        reads=read.integer(1, MAX_CONNECTIONS),
        meaning="at most so many connections at once, each for one topic; the public service allows 2",
        unit="number",
    )
    flags.add(
        "--report",
        default="",
        reads=lambda text: read.directory(text) if text else None,
        meaning="a file for the summary as JSON; empty: none",
        unit="file",
    )
    return parser


def arguments_from(parsed: argparse.Namespace) -> Arguments:
    """What is behind parsed flags.

    Raises:
        UsageError: they contradict each other.
    """
    flag = vars(parsed)
    if flag["from"] is None:
        raise UsageError("--from is missing: where does it begin? e.g. --from=-36h")
    arguments = Arguments(
        settings_from(parsed, publishes=not flag["dry_run"]),
        flag["from"],
        flag["to"],
        flag["slice"],
        flag["restart"],
        flag["allow_gap"],
        flag["skipExisting"],
        flag["limit"],
        flag["rate"],
        flag["dry_run"],
        flag["upstream.connections"],
        flag["report"],
    )
    if arguments.part is not None and not arguments.absolute:
        raise UsageError(
            "--slice needs a --from and --to that mean the same in every process: times or ids, "
            "neither -36h nor now"
        )
    if arguments.skip_existing and flag["file.enable"]:
        raise UsageError(
            "--skipExisting is for Kafka: files have names that tell what is there, with or without it"
        )
    return arguments._replace(settings=_with_own_position(arguments))


def _with_own_position(arguments: Arguments) -> Settings:
    """The position of a replay: the same for the same arguments, and nobody else's."""
    settings = arguments.settings
    streams = "+".join(sorted(settings.upstream.streams))
    meant = f"{streams}\n{arguments.begin.text}\n{arguments.end.text}"
    name = f"replay-{hashlib.sha256(meant.encode()).hexdigest()[:10]}"
    if len(streams) <= MAX_SHOWN_STREAMS:
        name = f"{streams}-{name}"
    if arguments.part is not None:
        name += f"-{arguments.part.number}-of-{arguments.part.parts}"
    files, kafka = settings.files, settings.kafka
    return replace(
        settings,
        files=None if files is None else replace(files, position_name=name),
        kafka=None if kafka is None else replace(kafka, position_name=name),
    )
