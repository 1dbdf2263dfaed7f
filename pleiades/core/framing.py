"""Bytes of an event stream → whole SSE frames.

Law: the frames depend on the bytes alone, never on where the network cut them into chunks. An unended
frame is never returned. Memory is bounded by `max_frame_bytes` and one chunk.

The rules: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream. One
leading byte order mark is dropped, a line ends with LF, CR or CRLF, an empty line ends a frame. Lines
are split as bytes: U+2028, U+2029 and U+0085 are no line ends.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_FRAME_BYTES = 8 * 1024 * 1024
"""A longer frame is skipped and counted: the largest event Wikimedia's Kafka accepts is 4 MiB."""

_BOM = b"\xef\xbb\xbf"
_USUAL_LINES = 4
_MIN_LINE_BYTES = 16
"""On average, of lines that are worth a look."""
_RETRY_LINE = re.compile(rb"\nretry: ?([0-9]+)(?=\n)")


class Framer:
    """Collects chunks and returns whole frames, with LF as the only line end."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.oversized_total = 0
        self._max_frame_bytes = max_frame_bytes
        # Never searched again, only appended to: a frame in many small chunks costs its length.
        self._pending = bytearray()
        self._head: bytes | None = b""
        """The first bytes of the stream while they may be a BOM; then None."""
        self._after_cr = False
        self._skipping = False

    def feed(self, chunk: bytes) -> bytes:
        """Take the next chunk; return all frames that ended in it, one after the other.

        Each is at most `max_frame_bytes` long with the end of its last line, and is followed by an empty
        line, or by as many as the upstream sent.
        """
        text = self._normalised(self._without_bom(chunk))
        if self._skipping:
            text = self._without_rest_of_oversized(text)
        if not self._pending:
            # Before a frame an empty line ends nothing.
            text = text.lstrip(b"\n")
        last = text.rfind(b"\n\n")
        end = last + 2 if last >= 0 else int(self._completes_empty_line(text))
        if end == 0:
            self._pending += text
            self._limit_pending()
            return b""
        # Views: a copy of a quarter of a megabyte takes as long as twenty events.
        view = memoryview(text)
        whole = b"".join((self._pending, view[:end]))
        self._pending.clear()
        self._pending += view[end:]
        self._limit_pending()
        if len(whole) > self._max_frame_bytes:
            whole = self._without_oversized(whole)
        return whole

    def _completes_empty_line(self, text: bytes) -> bool:
        return text.startswith(b"\n") and self._pending.endswith(b"\n")

    def _limit_pending(self) -> None:
        if len(self._pending) > self._max_frame_bytes:
            self.oversized_total += 1
            self._skipping = True
            # One byte is kept to see the empty line.
            del self._pending[:-1]

    def _without_rest_of_oversized(self, text: bytes) -> bytes:
        first = text.find(b"\n\n")
        if self._completes_empty_line(text):
            end = 1
        elif first >= 0:
            end = first + 2
        else:
            self._pending += text[-1:]
            del self._pending[:-1]
            return b""
        self._skipping = False
        self._pending.clear()
        return text[end:]

    def _without_bom(self, chunk: bytes) -> bytes:
        if self._head is None:
            return chunk
        chunk = self._head + chunk
        if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
            self._head = chunk
            return b""
        self._head = None
        return chunk.removeprefix(_BOM)

    def _normalised(self, chunk: bytes) -> bytes:
        # A CR ends its line at once. An LF after it, perhaps in the next chunk, belongs to it.
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if not chunk:
            return chunk
        self._after_cr = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return chunk

    def _without_oversized(self, whole: bytes) -> bytes:
        kept = []
        for frame in split_frames(whole):
            if len(frame) + 1 > self._max_frame_bytes:
                self.oversized_total += 1
            else:
                kept.append(frame + b"\n\n")
        return b"".join(kept)


def split_frames(blob: bytes) -> list[bytes]:
    """The frames in a blob from `Framer.feed`, without line ends at both ends."""
    return [frame for part in blob.split(b"\n\n") if (frame := part.strip(b"\n"))]


class ColumnarFrames(NamedTuple):
    """Frames of the one shape that EventStreams sends, in columns: `event: message`, `id`, `data`."""

    ids: list[bytes]
    data: list[bytes]

    def joined(self) -> bytes:
        """The frames as they came."""
        frames = zip(self.ids, self.data, strict=True)
        return b"".join([b"event: message\nid: %b\ndata: %b\n\n" % frame for frame in frames])


def columnar_frames(blob: bytes) -> ColumnarFrames | None:
    """The frames in a blob from `Framer.feed`; None if there are none, or any has another shape."""
    newlines = blob.count(b"\n")
    # Or millions of short lines would become as many objects first.
    if newlines * _MIN_LINE_BYTES > len(blob):
        return None
    # By columns, so that nothing but slices is done for each frame by itself.
    lines = blob.split(b"\n")
    count = newlines // _USUAL_LINES
    ids, data = lines[1::_USUAL_LINES], lines[2::_USUAL_LINES]
    if (
        not count
        or len(lines) != count * _USUAL_LINES + 1
        or lines[:-1:_USUAL_LINES].count(b"event: message") != count
        or [line[:4] for line in ids].count(b"id: ") != count
        or [line[:6] for line in data].count(b"data: ") != count
        or lines[3::_USUAL_LINES].count(b"") != count
        # An id with a NUL is none (WHATWG).
        or b"\0" in b"".join(ids)
    ):
        return None
    return ColumnarFrames([line[4:] for line in ids], [line[6:] for line in data])


def split_columns(blob: bytes) -> tuple[bytes | ColumnarFrames, list[bytes], int | None]:
    """The frames in a blob from `Framer.feed`, in columns if possible; their ids and `retry` field."""
    columns = columnar_frames(blob)
    if columns is None:
        return blob, ids_in(blob), retry_in(blob)
    return columns, columns.ids, None


def before_id(content: bytes | ColumnarFrames, number: int) -> bytes | ColumnarFrames:
    """The frames before the one with this id, counted from 0 among their ids."""
    if not isinstance(content, bytes):
        return ColumnarFrames(content.ids[:number], content.data[:number]) if number else b""
    before = []
    for frame in split_frames(content):
        if last_id_in(frame) is not None:
            if not number:
                break
            number -= 1
        before.append(frame + b"\n\n")
    return b"".join(before)


def ids_in(blob: bytes) -> list[bytes]:
    """The id of each frame in a blob that has one, in order."""
    found = map(last_id_in, split_frames(blob))
    return [sse_id for sse_id in found if sse_id is not None]


def last_id_in(frame: bytes) -> bytes | None:
    """The last event ID that a frame sets; None if it sets none.

    The last of several `id` fields counts; those with a NUL are ignored (WHATWG).
    """
    text = b"\n" + frame
    place = len(text)
    while (place := text.rfind(b"\nid", 0, place)) >= 0:
        end = text.find(b"\n", place + 1)
        name, colon, value = text[place + 1 : len(text) if end < 0 else end].partition(b":")
        if name == b"id" and b"\0" not in value:
            return value.removeprefix(b" ") if colon else b""
    return None


def retry_in(blob: bytes) -> int | None:
    """The last `retry` field in a blob, in ms; None if there is none of ASCII digits only."""
    if b"retry" not in blob:
        return None
    found = _RETRY_LINE.findall(b"\n" + blob)
    # The length is limited before the conversion: int() of a million digits is an attack.
    return int(found[-1].lstrip(b"0")[:12] or b"0") if found else None
