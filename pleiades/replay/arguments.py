# ruff: noqa: RUF009  # `flag` declares fields of dataclasses
"""The arguments of `pleiades replay` that `ingest` does not have."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pleiades.config import values
from pleiades.config.flags import BOOLEAN, flag, flags_of, values_of
from pleiades.config.settings import Settings
from pleiades.config.sources import Parser
from pleiades.config.values import Reader, integer, optional
from pleiades.core.range import MAX_SLICES, Bound, EmptyRange, Range, Slice, bound_of
from pleiades.core.sse_id import Assignment, MalformedId, compose_id, parse_id
from pleiades.runtime.errors import UsageError
from pleiades.sinks.base import destination_of
from pleiades.sinks.registry import relay_parser, relay_settings

MAX_RATE = 10_000_000
MAX_SHOWN_STREAMS = 60  # characters; a position of more streams has only the digest in its name

_RATE = re.compile(r"([0-9]{1,8}(?:\.[0-9]{1,6})?)(?:/s)?", re.ASCII)
_SLICE = re.compile(r"([0-9]{1,5})/([0-9]{1,5})", re.ASCII)


class Moment(NamedTuple):
    """One end of a range as it was given."""

    text: str
    """As given, or the same text for all spellings of one absolute moment."""
    assignments: tuple[Assignment, ...] = ()
    """Those of an SSE id; empty: it is a time."""

    @property
    def absolute(self) -> bool:
        """True if it does not depend on the time of reading."""
        return self.text != "now" and not self.text.startswith("-")

    def bound(self, now_ms: int, first: bool) -> Bound:
        """The bound of the range.

        Args:
            now_ms: the meaning of `now`, ms since 1970.
            first: it is the begin.
        """
        if self.assignments:
            return bound_of(self.assignments, first)
        milliseconds = values.moment(self.text, datetime.fromtimestamp(now_ms / 1000, UTC))
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
        return Moment(compose_id({source: ms or 0 for source, ms in assignments}), assignments)
    milliseconds = values.moment(text, datetime.now(UTC))
    relative = milliseconds is None or text.startswith("-")
    return Moment((text or "now") if relative else str(milliseconds))


def rate(text: str) -> float:
    """Reads `500/s` or `500`; 0: no limit."""
    match = _RATE.fullmatch(text.strip())
    if match is None or float(match[1]) > MAX_RATE:
        raise ValueError(f"{text[:40]!r} is no rate of at most {MAX_RATE}/s, such as 500/s")
    return float(match[1])


def part(text: str) -> Slice | None:
    """Reads `2/8`: the third of eight slices; empty: the whole range."""
    if not text:
        return None
    match = _SLICE.fullmatch(text.strip())
    if match is None or not int(match[1]) < int(match[2]) <= MAX_SLICES:
        raise ValueError(
            f"{text[:40]!r} is no slice such as 0/8, the first of eight, or 7/8, the last; there are at "
            f"most {MAX_SLICES}"
        )
    return Slice(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of a replay."""

    settings: Settings
    """Without `Settings.replay`."""
    dry_run: bool
    begin: Moment = flag(
        "",
        "where it begins: ISO 8601, -36h, ms since 1970, or an SSE id (the events after it)",
        optional(Reader("time|id", moment)),
        name="from",
        group="what is replayed, and how",
    )
    end: Moment = flag(
        "now",
        "where it ends, as --from; the moment itself is not in it, the event of an id is",
        Reader("time|id", moment),
        name="to",
    )
    part: Slice | None = flag(
        "", "only the i-th of n equal parts, from 0", Reader("i/n", part), name="slice"
    )
    restart: bool = flag("false", "begin at --from again, whatever an earlier run did", BOOLEAN)
    allow_gap: bool = flag(
        "false",
        "replay what there is, if the upstream no longer has all; the exit status is 6 then",
        BOOLEAN,
        name="allow-gap",
    )
    skip_existing: bool = flag(
        "false", "publish only the events that the destination does not have", BOOLEAN
    )
    limit: int | None = flag(
        "",
        "stop after so many events, for now: the next run goes on; empty: no limit",
        optional(integer(1, 10**15)),
    )
    rate: float = flag(
        "0", "read at most so many events per second, e.g. 500/s; 0: no limit", Reader("n/s", rate)
    )
    connections: int = flag(
        "2",
        "at most so many connections at once, each for one topic; the public service allows 2",
        integer(1, 64),
        name="upstream.connections",
    )
    report: Path | None = flag(
        "", "a file for the summary as JSON; empty: none", optional(Reader("file", values.path))
    )

    @property
    def absolute(self) -> bool:
        """True if the same arguments always mean the same range."""
        return self.begin.absolute and self.end.absolute

    def range(self, now_ms: int) -> Range:
        """The range to replay.

        Raises:
            UsageError: it is empty, or reaches into the future.
        """
        begin, end = self.begin.bound(now_ms, first=True), self.end.bound(now_ms, first=False)
        latest_ms = max(begin.default_ms, end.default_ms, *end.own_ms.values(), 0)
        if latest_ms > datetime.now(UTC).timestamp() * 1000:
            raise UsageError(
                "--from and --to must not lie in the future: ingest relays events that are still to come"
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


def replay_parser(description: str = "") -> Parser:
    """The parser of `pleiades replay`."""
    return relay_parser("replay", description, flags_of(Arguments))


def arguments_from(given: Mapping[str, Any]) -> Arguments:
    """The arguments behind the values of flags.

    Raises:
        UsageError: they contradict each other.
    """
    if given["from"] is None:
        raise UsageError("--from is missing: where does it begin? e.g. --from=-36h")
    settings = relay_settings(given)
    arguments = Arguments(settings, given["dry-run"], **values_of(Arguments, given))
    if arguments.part is not None and not arguments.absolute:
        raise UsageError(
            "--slice needs a --from and --to that mean the same in every process: times or ids, "
            "neither -36h nor now"
        )
    destination = destination_of(settings)
    if arguments.skip_existing and destination.skip_existing_refusal:
        raise UsageError(
            f"--skipExisting is not for this destination: {destination.skip_existing_refusal}"
        )
    own = replace(destination, position_name=_position_name(arguments))
    return replace(arguments, settings=replace(settings, destination=own))


def _position_name(arguments: Arguments) -> str:
    """The name of the position: the same for the same arguments, and different for others."""
    streams = "+".join(sorted(arguments.settings.upstream.streams))
    meant = f"{streams}\n{arguments.begin.text}\n{arguments.end.text}"
    name = f"replay-{hashlib.sha256(meant.encode()).hexdigest()[:10]}"
    if len(streams) <= MAX_SHOWN_STREAMS:
        name = f"{streams}-{name}"
    if arguments.part is not None:
        name += f"-{arguments.part.number}-of-{arguments.part.parts}"
    return name
