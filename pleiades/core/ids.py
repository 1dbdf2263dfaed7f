"""Parses SSE ids, many at a time.

Law: `read_ids` gives what `parse_id` gives for each id by itself.

An id names every topic-partition of the stream, and differs from the next one in a number or two.
Parsing each costs as much as its event does. So the ids of one batch are matched against one pattern:
the last of them with its numbers left open. Each is parsed only if one of them does not match.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from pleiades.core.position import MAX_SOURCES
from pleiades.core.sse_id import MalformedId, TopicPartition, offsets_in, parse_id

MAX_PATTERN_SOURCES = 64
"""Topic-partitions with a timestamp in one pattern. Each makes it slower to compile."""
MAX_PATTERN_BYTES = 16 << 10
"""The longest id that becomes a pattern, which takes a hundred times its length. An id of
`MAX_PATTERN_SOURCES` has 6 KiB."""
_KEPT_PATTERNS = 16

_MARK = b'"timestamp":'
# Dates from 2001 to 2286 have as many digits: so all ids of one pattern have the same length.
_TIMESTAMP = re.compile(rb'"timestamp":[1-9][0-9]{12}')
_NUMBER = rb"([1-9][0-9]{12})"
_OPEN_MS = 10**12
_OPEN = b"%b%d" % (_MARK, _OPEN_MS)


class ParsedIds(NamedTuple):
    """The content of some ids, one after the other."""

    timestamps_ms: dict[TopicPartition, list[int | None]]
    """Topic-partition, in the order of their first mention → its timestamp in each id; None where the id
    does not name it, names it without a timestamp, or is malformed."""
    malformed: int = 0
    """The number of malformed ids."""
    ambiguous: bool = False
    """An id names a topic-partition twice; its greatest timestamp counts."""
    aligned: bool = True
    """False: too many topic-partitions are named. Then each has only the timestamps of ids that name it,
    and those beyond the first `MAX_SOURCES` are missing."""
    offsets: Mapping[TopicPartition, int] = {}
    """The offsets of those without a timestamp; see `sse_id.offsets_in`."""

    def greatest(self) -> dict[TopicPartition, int]:
        """The position that they amount to: 0 for topic-partitions without a timestamp."""
        return {
            source: max([timestamp_ms or 0 for timestamp_ms in column])
            for source, column in self.timestamps_ms.items()
        }


class _Pattern(NamedTuple):
    expression: re.Pattern[bytes]
    """Matches one id and the newline after it, with a group for each timestamp."""
    id_bytes: int
    sources: list[tuple[TopicPartition, int | None]]
    """Each with the number of its group, if it has one."""
    groups: int
    offsets: Mapping[TopicPartition, int]


def read_ids(ids: Sequence[bytes]) -> ParsedIds:
    """Parse ids, given without their line ends. Never raises for their content."""
    if not ids:
        return ParsedIds({})
    form = _TIMESTAMP.sub(_OPEN, ids[-1])
    pattern = _pattern_for(form) if len(form) <= MAX_PATTERN_BYTES else None
    return (pattern and _read_by(pattern, ids)) or _read_each(ids)


def _read_by(pattern: _Pattern, ids: Sequence[bytes]) -> ParsedIds | None:
    """Parse ids that differ only in their timestamps; None if these differ otherwise."""
    text = b"\n".join(ids) + b"\n"
    if len(text) != (pattern.id_bytes + 1) * len(ids):
        return None
    # As many matches as lines, each with a line's end and together as long as the text: so each match
    # is exactly one line.
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
    # Usually all topic-partitions but one stand still.
    if column.count(column[0]) == len(column):
        return [int(column[0])] * len(column)
    return list(map(int, column))


def _read_each(ids: Sequence[bytes]) -> ParsedIds:
    # By the numbers of the ids, because hostile ids name another topic-partition each.
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
            if source not in said and len(said) == MAX_SOURCES:
                continue
            times = said.setdefault(source, {})
            if timestamp_ms is None:
                times.setdefault(number, None)
            else:
                times[number] = max(times.get(number) or 0, timestamp_ms)
        ambiguous = ambiguous or len({entry.source for entry in assignments}) < len(assignments)
    aligned = len(said) <= MAX_PATTERN_SOURCES
    columns = {
        source: [times.get(n) for n in range(len(ids))] if aligned else list(times.values())
        for source, times in said.items()
    }
    return ParsedIds(columns, malformed, ambiguous, aligned, offsets)


@lru_cache(_KEPT_PATTERNS)
def _pattern_for(form: bytes) -> _Pattern | None:
    """The pattern of an id in which each timestamp is `_OPEN_MS`; None if something else may be one."""
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
        # None is nested, repeated or spelt in escapes, which a text that has a mark needs too.
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
