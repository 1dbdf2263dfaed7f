"""The state of a segment that is not closed yet, and of all of them, as a checkpoint stores it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from pleiades.core.checkpoint import (
    UnreadableCheckpoint,
    is_time,
    listed,
    read_listed,
    unreadable_if_damaged,
)
from pleiades.core.position import Position
from pleiades.core.sse_id import is_source
from pleiades.sinks.archive.codecs import CODECS
from pleiades.sinks.archive.manifest import Entry, decode_entry

Json: TypeAlias = Any


class Segment(NamedTuple):
    """A segment that is open or waits to be closed."""

    number: int
    """Of its raw file."""
    codec: str
    """Of its frames; see `codecs`."""
    stream: str
    """See `layout.stream_of`; or `layout.DEAD_LETTERS`."""
    slot_ms: int
    """The begin of the time for which it takes events, ms since 1970."""
    opened_ms: int
    """The wall clock when it was opened, ms since 1970."""
    started_ms: int
    """The Kafka timestamp of its first event, ms since 1970; so are the next two."""
    first_ms: int
    """The least one."""
    last_ms: int
    """The greatest one."""
    before: Position
    after: Position
    """See `manifest.Entry`."""
    events: int = 0
    text_bytes: int = 0
    length: int = 0
    """Valid bytes of its raw file."""
    commits: int = 0
    """Commits that appended to it."""
    sealed: bool = False
    """Nothing is appended any more."""
    damaged: bool = False
    """Somebody cut its raw file."""


class Closing(NamedTuple):
    """A segment whose line is in the manifest, or must get there, and whose file gets its name."""

    entry: Entry
    number: int
    """Of its raw file."""
    finished: bool
    """The file is the output of the finisher; otherwise the raw file itself."""


@dataclass(frozen=True, slots=True)
class Segments:
    """All segments that are not closed, and what is known of the closed ones."""

    segments: tuple[Segment, ...] = ()
    closing: tuple[Closing, ...] = ()
    ends: dict[str, Position] = field(default_factory=dict)
    """For each stream, `after` of its last segment that was sealed."""
    number: int = 0
    """The greatest number of a raw file."""
    sequence: int = 0
    """The sequence number of the last entry in the manifest."""

    def stored(self) -> Json:
        """The form that a checkpoint stores."""
        return {
            "segments": [
                (*segment[:8], listed(segment.before), listed(segment.after), *segment[10:])
                for segment in self.segments
            ],
            "closing": [
                (closing.entry.encoded().decode(), *closing[1:]) for closing in self.closing
            ],
            "ends": [(stream, listed(position)) for stream, position in sorted(self.ends.items())],
            "numbers": (self.number, self.sequence),
        }


def read_segments(stored: Json) -> Segments:
    """Read what `Segments.stored` made, after a way through JSON; None: there were none.

    Raises:
        UnreadableCheckpoint: it is damaged.
    """
    if stored is None:
        return Segments()
    with unreadable_if_damaged():
        segments = tuple(_segment(row) for row in stored["segments"])
        closing = tuple(_closing(*row) for row in stored["closing"])
        ends = {stream: read_listed(rows) for stream, rows in stored["ends"]}
        number, sequence = stored["numbers"]
        numbers = [number, sequence, *(each.number for each in closing)]
        _refuse_unless(all(type(each) is int and each >= 0 for each in numbers))
        _refuse_unless(all(map(_is_stream, ends)))
        return Segments(segments, closing, ends, number, sequence)


def _segment(row: Json) -> Segment:
    segment = Segment(*row)
    segment = segment._replace(before=read_listed(segment.before), after=read_listed(segment.after))
    counts = (segment.number, segment.events, segment.text_bytes, segment.length, segment.commits)
    times = segment[3:8]
    _refuse_unless(
        _is_stream(segment.stream)
        and segment.codec in CODECS
        and all(type(count) is int and count >= 0 for count in counts)
        and all(map(is_time, times))
        and all(type(flag) is bool for flag in segment[-2:])
    )
    return segment


def _closing(line: Json, number: Json, finished: Json) -> Closing:
    _refuse_unless(type(line) is str and type(finished) is bool)
    return Closing(decode_entry(line.encode()), number, finished)


def _is_stream(stream: Json) -> bool:
    """True if it can be a part of a path, as the name of each upstream topic."""
    return is_source((stream, 0))


def _refuse_unless(valid: bool) -> None:
    if not valid:
        raise UnreadableCheckpoint("it holds values that describe no segment")
