"""SSE ids, many at a time: when each topic-partition had got how far.

Law: what `read_ids` says is what `parse_id` says of each id by itself.

An id names every topic-partition of the stream, and one differs from the next in a number or two. To
parse each costs as much as its event does. So the ids of one batch are held against one pattern, which
is the last of them with its numbers left open; only where another one is among them each is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from pleiades.core.position import MAX_SOURCES
from pleiades.core.wire import MalformedId, TopicPartition, offsets_in, parse_id

MAX_PATTERN_SOURCES = 64
"""Topic-partitions with a timestamp that one pattern may have: to make it takes longer with each."""
MAX_PATTERN_BYTES = 16 << 10
"""The longest id that becomes a pattern, which takes a hundred times as much: with so many
topic-partitions one has 6 KiB."""
_KEPT_PATTERNS = 16

_MARK = b'"timestamp":'
# As many digits as a date from 2001 to 2286 has: all ids of one pattern have the same length.
_TIMESTAMP = re.compile(rb'"timestamp":[1-9][0-9]{12}')
_NUMBER = rb"([1-9][0-9]{12})"
_OPEN_MS = 10**12
_OPEN = b"%b%d" % (_MARK, _OPEN_MS)


class ParsedIds(NamedTuple):
    """What some ids say, one after the other."""

    timestamps_ms: dict[TopicPartition, list[int | None]]
    """Of each topic-partition that any of them names, in the order of the naming: its timestamp in each
    id; None where that names it without one, or not at all, or can't be read."""
    malformed: int = 0
    """How many of them can't be read."""
    ambiguous: bool = False
    """Some id names a topic-partition twice; its greatest timestamp counts."""
    aligned: bool = True
    """False: too many topic-partitions are named. Each then has what the ids that name it say of it, and
    of the others nothing; and those beyond `MAX_SOURCES`, in the order of the naming, are left out."""

    offsets: Mapping[TopicPartition, int] = {}
    """Of those that an id shows without a timestamp: see `wire.offsets_in`."""

    def greatest(self) -> dict[TopicPartition, int]:
        """The position that they amount to: 0 for what is named without a timestamp."""
        return {
            source: max([timestamp_ms or 0 for timestamp_ms in column])
            for source, column in self.timestamps_ms.items()
        }


class _Pattern(NamedTuple):
    expression: re.Pattern[bytes]
    """Matches one id and the newline after it; a group for each timestamp."""
    id_bytes: int
    sources: list[tuple[TopicPartition, int | None]]
    """Each with the number of its group, if it has one."""
    groups: int
    offsets: Mapping[TopicPartition, int]


def read_ids(ids: Sequence[bytes]) -> ParsedIds:
    """Read ids as they came, without their line ends. Never raises for what is in them."""
    if not ids:
        return ParsedIds({})
    form = _TIMESTAMP.sub(_OPEN, ids[-1])
    pattern = _pattern_for(form) if len(form) <= MAX_PATTERN_BYTES else None
    return (pattern and _read_by(pattern, ids)) or _read_each(ids)


def _read_by(pattern: _Pattern, ids: Sequence[bytes]) -> ParsedIds | None:
    """Read ids that differ in their timestamps only; None if these differ otherwise."""
    text = b"\n".join(ids) + b"\n"
    if len(text) != (pattern.id_bytes + 1) * len(ids):
        return None
    # As many matches as there are lines, each with a line's end and together as long as all of it: so
    # each is exactly one line.
    found = pattern.expression.findall(text)
    if len(found) != len(ids):
        return None
    groups = [found] if pattern.groups == 1 else list(zip(*found, strict=True))
    return ParsedIds(
        {
            source: [None] * len(ids) if group is None else _numbers(groups[group])
            for source, group in pattern.sources
        },
        offsets=pattern.offsets,
    )


def _numbers(column: Sequence[bytes]) -> list[int | None]:
    # Usually all but one of the topic-partitions stand still.
    if column.count(column[0]) == len(column):
        return [int(column[0])] * len(column)
    return list(map(int, column))


def _read_each(ids: Sequence[bytes]) -> ParsedIds:
    # By the numbers of the ids: only what is said takes room, for hostile ids name another one each.
    said: dict[TopicPartition, dict[int, int | None]] = {}
    malformed = 0
    ambiguous = False
    offsets: dict[TopicPartition, int] = {}
    for number, sse_id in enumerate(ids):
        try:
            assignments = parse_id(sse_id)
        except MalformedId:
            malformed += 1
            continue
        if len(offsets) < MAX_SOURCES:
            offsets |= offsets_in(sse_id)
        for source, timestamp_ms in assignments:
            if source not in said:
                if len(said) == MAX_SOURCES:
                    continue
                said[source] = {}
            times = said[source]
            if timestamp_ms is None:
                times.setdefault(number, None)
            else:
                times[number] = max(times.get(number) or 0, timestamp_ms)
        ambiguous = ambiguous or len({entry.source for entry in assignments}) < len(assignments)
    if len(said) > MAX_PATTERN_SOURCES:
        columns = {source: list(times.values()) for source, times in said.items()}
        return ParsedIds(columns, malformed, ambiguous, aligned=False, offsets=offsets)
    columns = {source: [times.get(n) for n in range(len(ids))] for source, times in said.items()}
    return ParsedIds(columns, malformed, ambiguous, offsets=offsets)


@lru_cache(_KEPT_PATTERNS)
def _pattern_for(form: bytes) -> _Pattern | None:
    """The pattern of ids of this form, an id of which each timestamp is `_OPEN_MS`; None if it can't be
    told for sure what in it is a timestamp.
    """
    try:
        assignments = parse_id(form)
    except MalformedId:
        return None
    timed = [entry for entry in assignments if entry.timestamp_ms is not None]
    parts = form.split(_OPEN)
    if (
        not 0 < len(timed) <= MAX_PATTERN_SOURCES
        or len({entry.source for entry in assignments}) < len(assignments)
        or {entry.timestamp_ms for entry in timed} != {_OPEN_MS}
        # None is nested, said twice or spelt in escapes, which a text that has a mark needs too.
        or not len(parts) - 1 == form.count(b'"timestamp"') == len(timed)
        or b"\\" in form
    ):
        return None
    group_of = {entry.source: group for group, entry in enumerate(timed)}
    return _Pattern(
        re.compile((re.escape(_MARK) + _NUMBER).join(map(re.escape, parts)) + b"\n"),
        len(form),
        [(entry.source, group_of.get(entry.source)) for entry in assignments],
        len(timed),
        offsets_in(form),
    )
