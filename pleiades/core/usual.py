"""Finds the ids and data of usual frames, many at a time.

Law: `usual_frames` gives the ids and data that the general way gives for each frame (`core.sse`,
`core.ids`), or None.

Usual frames have the one shape that EventStreams sends: `event: message`, `id`, `data`. An id names
every topic-partition of the stream, and differs from the next one in a number or two. So all frames of a
blob are matched against one expression: the last id with its timestamps left open, and any data. If the
matches together are as long as the blob, there is nothing else in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from pleiades.core.ids import ParsedIds
from pleiades.core.sse_id import MalformedId, TopicPartition, offsets_in, parse_id

MAX_PATTERN_SOURCES = 64
"""Topic-partitions with a timestamp in one pattern. Each makes it slower to compile."""
MAX_PATTERN_BYTES = 16 << 10
"""The longest id that becomes a pattern, which takes a hundred times its length. An id of
`MAX_PATTERN_SOURCES` has 6 KiB."""
_KEPT_PATTERNS = 16

BEFORE_ID = b"event: message\nid: "
BEFORE_DATA = b"\ndata: "
AFTER_DATA = b"\n\n"
_FIXED_BYTES = len(BEFORE_ID + BEFORE_DATA + AFTER_DATA)

_MARK = b'"timestamp":'
# Dates from 2001 to 2286 have as many digits: so all ids of one pattern have the same length.
_TIMESTAMP = re.compile(rb'"timestamp":[1-9][0-9]{12}')
_NUMBER = rb"([1-9][0-9]{12})"
_OPEN_MS = 10**12
_OPEN = b"%b%d" % (_MARK, _OPEN_MS)


class UsualFrames(NamedTuple):
    """The frames of a blob."""

    ids: ParsedIds
    id_bytes: int
    """The length of each id."""
    data: Sequence[bytes]


class _Pattern(NamedTuple):
    expression: re.Pattern[bytes]
    """Matches one frame, with a group for each timestamp of its id and one for its data."""
    id_bytes: int
    sources: list[tuple[TopicPartition, int | None]]
    """Each with the number of its group, if it has one."""
    offsets: Mapping[TopicPartition, int]


def usual_frames(blob: bytes) -> UsualFrames | None:
    """The frames in a blob from `Framer.feed`; None if there are none, or if any has another shape."""
    begin = blob.rfind(b"\nid: ") + len(b"\nid: ")
    end = blob.find(b"\n", begin)
    if not 0 < end - begin <= MAX_PATTERN_BYTES:
        return None
    pattern = _pattern_for(_TIMESTAMP.sub(_OPEN, blob[begin:end]))
    if pattern is None:
        return None
    found = pattern.expression.findall(blob)
    if not found:
        return None
    *groups, data = zip(*found, strict=True)
    count = len(found)
    if (pattern.id_bytes + _FIXED_BYTES) * count + sum(map(len, data)) != len(blob):
        return None
    timestamps_ms: dict[TopicPartition, list[int | None]] = {
        source: [None] * count if group is None else _numbers(groups[group])
        for source, group in pattern.sources
    }
    return UsualFrames(ParsedIds(timestamps_ms, offsets=pattern.offsets), pattern.id_bytes, data)


def _numbers(column: Sequence[bytes]) -> list[int | None]:
    # Usually all topic-partitions but one stand still.
    if column.count(column[0]) == len(column):
        return [int(column[0])] * len(column)
    return list(map(int, column))


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
        # No `timestamp` key is nested, repeated or escaped, nor a mark in a string, which needs escapes.
        or not len(parts) - 1 == form.count(b'"timestamp"') == len(timed)
        or b"\\" in form
    ):
        return None
    group_of = {entry.source: group for group, entry in enumerate(timed)}
    # `re` keeps the last 512 expressions: of ids with 64 topic-partitions 28 MB.
    re.purge()
    id_pattern = (re.escape(_MARK) + _NUMBER).join(map(re.escape, parts))
    return _Pattern(
        re.compile(BEFORE_ID + id_pattern + BEFORE_DATA + rb"(.*)" + AFTER_DATA),
        len(form),
        [(entry.source, group_of.get(entry.source)) for entry in assignments],
        offsets_in(form),
    )
