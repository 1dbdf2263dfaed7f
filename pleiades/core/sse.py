"""SSE frames → dispatched events, by sseclient-py (WHATWG, "dispatch the event").

Law: dispatching a frame costs time and memory in proportion to its length, however many lines it has.

sseclient-py gets one whole, well-formed frame at a time. docs/adr/0003 describes what it does with cut
or odd bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from sseclient import SSEClient

from pleiades.core.framing import has_data, last_id_in, split_frames

_LINES_PER_PIECE = 500
_PIECE_BYTES = 64 << 10
_FIELD_LINE = re.compile(rb"^(?:data|event)(?::[^\n]*)?$", re.MULTILINE)


class SseEvent(NamedTuple):
    """One dispatched event."""

    type: str
    id: bytes
    data: bytes
    id_before: bytes = b""
    """The last event ID before its frame."""


def sse_events(blob: bytes, last_event_id: bytes) -> Iterator[SseEvent]:
    """All events in a blob of whole frames.

    Args:
        last_event_id: the last event ID before the blob.
    """
    for frame in split_frames(blob):
        before = last_event_id
        sse_id = last_id_in(frame)
        if sse_id is not None:
            last_event_id = sse_id
        if not has_data(frame):
            # Comments and such need no parser.
            continue
        event_type, data = _fields_of(frame)
        if data:
            yield SseEvent(event_type, last_event_id, data[:-1], before)


def _fields_of(frame: bytes) -> tuple[str, bytes]:
    """The type, and the data with a newline after each line; empty if there is no `data` field."""
    # WHATWG decodes with replacement; sseclient-py raises.
    text = frame if frame.isascii() else frame.decode(errors="replace").encode()
    event_type = "message"
    data = []
    for lines, goes_on in _pieces(text):
        # The `data` at the end makes sseclient-py dispatch every piece. As the last line it is the one
        # that gets no newline.
        event = next(SSEClient(iter((b"\n".join((*lines, b"data\n\n")),))).events())
        found = event.data.encode()
        data.append(found[:-1] if goes_on else found)
        if any(line.startswith(b"event") for line in lines):
            event_type = event.event
    return event_type, b"".join(data)


def _pieces(text: bytes) -> Iterator[tuple[list[bytes], bool]]:
    """The `data` and `event` lines of a frame in pieces, each with True if its last line continues.

    sseclient-py copies everything with every line, and is slow on lines that it ignores. In pieces, the
    cost of a frame of a million lines, or of one long line, is proportional to its length.
    """
    start = 0
    while start < len(text):
        end = text.find(b"\n", start + _PIECE_BYTES)
        end = len(text) if end < 0 else end + 1
        lines = _FIELD_LINE.findall(text, start, end)
        start = end
        # Only the last line can be longer than a piece.
        long = lines.pop() if lines and len(lines[-1]) > _PIECE_BYTES else b""
        for first in range(0, len(lines), _LINES_PER_PIECE):
            yield lines[first : first + _LINES_PER_PIECE], False
        if long.startswith(b"event"):
            yield [long], False
        elif long:
            yield from _cut(long)


def _cut(line: bytes) -> Iterator[tuple[list[bytes], bool]]:
    """A long `data` line as several lines."""
    start, name = 0, b""
    while start < len(line):
        end = start + _PIECE_BYTES
        # Not within a character.
        while end < len(line) and line[end] & 0xC0 == 0x80:  # noqa: PLR2004  # 10xxxxxx continues a character
            end += 1
        yield [name + line[start:end]], end < len(line)
        start, name = end, b"data: "


def count_lines(blob: bytes) -> dict[str, int]:
    """The number of lines of each of `LINE_TYPES` in a blob of whole frames."""
    # Searches distinguish millions of lines without an object for each.
    text = b"\n" + blob.strip(b"\n")
    while b"\n\n" in text:
        text = text.replace(b"\n\n", b"\n")
    if text == b"\n":
        return {}
    counts = {"comment": text.count(b"\n:")}
    # Two adjacent lines without a value would share the newline between them.
    doubled = text.replace(b"\n", b"\n\n") + b"\n"
    for kind in ("id", "event", "data"):
        name = kind.encode()
        counts[kind] = text.count(b"\n" + name + b":") + doubled.count(b"\n" + name + b"\n")
    counts["unknown"] = text.count(b"\n") - sum(counts.values())
    return {kind: lines for kind, lines in counts.items() if lines}
