"""Bytes of an event stream → whole SSE frames.

Law: the frames depend on the bytes alone, never on where the network cut them into chunks. An unended
frame is never returned. Memory is bounded by `max_frame_bytes` and one chunk.

The rules: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream. One
leading byte order mark is dropped, a line ends with LF, CR or CRLF, an empty line ends a frame. Lines
are split as bytes: U+2028, U+2029 and U+0085 are no line ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_FRAME_BYTES = 8 * 1024 * 1024
"""A longer frame is skipped and counted: the largest event Wikimedia's Kafka accepts is 4 MiB."""

_BOM = b"\xef\xbb\xbf"
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
        # Views: a copy of half a megabyte takes as long as twenty events.
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


def before_id(blob: bytes, number: int) -> bytes:
    """The frames before the one with this id, counted from 0 among their ids."""
    before = []
    for frame in split_frames(blob):
        if last_id_in(frame) is not None:
            if not number:
                break
            number -= 1
        before.append(frame + b"\n\n")
    return b"".join(before)


def ids_from_end(blob: bytes) -> Iterator[bytes]:
    """The id of each frame in a blob that has one, the last one first."""
    end = len(blob)
    while end > 0:
        found_at = blob.rfind(b"\n\n", 0, end)
        begin = found_at + 2 if found_at >= 0 else 0
        found = last_id_in(blob[begin:end])
        if found is not None:
            yield found
        end = begin - 2


def has_data(blob: bytes) -> bool:
    """True if there is a `data` field in a blob."""
    return b"\ndata" in blob or blob.startswith(b"data")


def ids_in(blob: bytes) -> list[bytes]:
    """The id of each frame in a blob that has one, in order."""
    found = map(last_id_in, split_frames(blob))
    return [sse_id for sse_id in found if sse_id is not None]


def last_id_in(frame: bytes) -> bytes | None:
    """The last event ID that a frame or a blob sets; None if it sets none.

    The last of several `id` fields counts; those with a NUL are ignored (WHATWG).
    """
    place = len(frame)
    while place >= 0:
        place = frame.rfind(b"\nid", 0, place)
        # The first line has no line end before it.
        end = frame.find(b"\n", place + 1)
        name, colon, value = frame[place + 1 : len(frame) if end < 0 else end].partition(b":")
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
