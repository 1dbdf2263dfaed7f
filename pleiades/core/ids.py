"""SSE ids one after the other, each read by what differs from the one before.

Law: what `Ids` says is what `parse_id` says, whatever came before.

An id names every topic-partition of the stream, and the next one usually differs from it in one number.
Reading all of it is a sixth of what an event costs with two topic-partitions, and five times an event
with 64. So where the bytes before and after that number are the same, only the number is read.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from pleiades.core.wire import TopicPartition, parse_id

Entry: TypeAlias = tuple[TopicPartition, int | None]
"""Like `Assignment`: a topic-partition, and its timestamp in ms if it has one."""

# As many digits as a date from 2001 to 2286 has: so a number of the same length takes its place, and
# needs no look at its size. A mark within a text would have its quotes escaped.
_TIMESTAMP = re.compile(rb'"timestamp":([1-9][0-9]{12})(?=[,}])')
_DIGITS = 13
_ZERO = ord("0")


class Ids:
    """The ids of a stream, in their order."""

    def __init__(self) -> None:
        self.current: dict[TopicPartition, Entry] = {}
        """What the last id that was read says of each topic-partition."""
        self.ambiguous = False
        """Some id said more than one thing of a topic-partition."""
        self._last = b""
        """None that could be compared with, where empty."""
        self._places: list[tuple[int, TopicPartition]] = []
        """Of the last id: where a number begins, and whose it is."""
        # The last id without the number that changed last: before, after, its place.
        self._before = b""
        self._after = b"\n"
        self._start = 0
        self._stop = 0
        self._source: TopicPartition = ("", -1)

    def read(self, sse_id: bytes) -> tuple[Entry, ...]:
        """What this id says that the one before did not say; all of it where there is none.

        Raises:
            MalformedId: it can't be read; the next one is compared with none.
        """
        if not (
            sse_id.startswith(self._before)
            and sse_id.endswith(self._after)
            and len(sse_id) == len(self._last)
        ) and not self._turn(sse_id):
            return self._read_whole(sse_id)
        digits = sse_id[self._start : self._stop]
        if not digits.isdigit() or digits[0] == _ZERO:
            return self._read_whole(sse_id)
        self._last = sse_id
        entry = self._source, int(digits)
        self.current[self._source] = entry
        return (entry,)

    def _turn(self, sse_id: bytes) -> bool:
        """Whether only another number of the last id has changed; from then on that one is looked at."""
        last = self._last
        if len(sse_id) != len(last):
            return False
        for start, source in self._places:
            stop = start + _DIGITS
            if sse_id.startswith(last[:start]) and sse_id.endswith(last[stop:]):
                self._before, self._after = last[:start], last[stop:]
                self._start, self._stop, self._source = start, stop, source
                return True
        return False

    def _read_whole(self, sse_id: bytes) -> tuple[Entry, ...]:
        self._last, self._before, self._after, self._places = b"", b"", b"\n", []
        self.current.clear()
        assignments = parse_id(sse_id)
        for entry in assignments:
            self.current[entry.source] = entry
        ambiguous = len(self.current) < len(assignments)
        self.ambiguous = self.ambiguous or ambiguous
        timed = [entry for entry in assignments if entry.timestamp_ms is not None]
        found = list(_TIMESTAMP.finditer(sse_id))
        if (
            [int(mark[1]) for mark in found] == [entry.timestamp_ms for entry in timed]
            and not ambiguous
            and _is_plain(sse_id, len(assignments), len(found))
        ):
            self._last = sse_id
            self._places = [
                (mark.start(1), entry.source) for mark, entry in zip(found, timed, strict=True)
            ]
        return assignments


def _is_plain(sse_id: bytes, entries: int, timestamps: int) -> bool:
    """Whether what looks like a timestamp is one: nothing nested, said twice or spelt in escapes."""
    return (
        sse_id.count(b"{") == entries
        and sse_id.count(b'"timestamp"') == timestamps
        and b"\\" not in sse_id
    )
