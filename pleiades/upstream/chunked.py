"""Chunks of HTTP's transfer encoding → the body, many at a time.

Law: the body depends on the bytes alone, never on where the network cut them. Only a line that has begun
is kept from one piece to the next, never data.

The service writes each line of an event as a chunk of its own (RFC 9112, section 7.1), and http.client
needs some eight microseconds for a chunk: more than the rest of the relay needs for an event
(docs/adr/0010).
"""

from __future__ import annotations

import re
from http.client import HTTPException

MAX_LINE_BYTES = 4096
"""The longest line before a chunk, with its extensions; and the longest trailers."""

# The first line end belongs to the chunk before. 15 digits: less than 2**60. The RFC wants unknown
# extensions to be ignored.
_SIZE_LINE = re.compile(rb"\r\n([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\r\n]*)?\r\n")
_BEGIN_OF_SIZE_LINE = re.compile(
    rb"(?:\r(?:\n(?:[0-9A-Fa-f]{1,15}(?:[ \t]*(?:;[^\r\n]*)?)?\r?)?)?)?",
)
_CRLF = b"\r\n"


class MalformedChunk(HTTPException):
    """Bytes that are no chunk: the connection is damaged or was cut, or this is no HTTP."""


class ChunkDecoder:
    """Takes bytes from a socket and returns the body in them."""

    def __init__(self) -> None:
        self.ended = False
        """The last chunk and its trailers have come."""
        self._left = 0
        """Bytes of the current chunk that have not come yet."""
        self._line = _CRLF
        self._in_trailers = False

    def feed(self, received: bytes) -> list[memoryview]:
        """Take the next bytes; return the body in them, in pieces of which none is empty.

        Raises:
            MalformedChunk: the body before it in `received` is not returned.
        """
        body: list[memoryview] = []
        place = self._left
        if not place and self._line:
            received = self._line + received
        view = memoryview(received)
        if place:
            body.append(view[:place])
        end = len(received)
        while place <= end and not self._in_trailers:
            size_line = _SIZE_LINE.match(received, place)
            if size_line is None:
                self._left, self._line = 0, _begun(received[place:])
                return body
            start = size_line.end()
            # One byte less of it would have been too long already, had it come alone.
            if start - place > MAX_LINE_BYTES + 1:
                raise MalformedChunk("the line before a chunk does not end")
            place = start + int(size_line[1], 16)
            self._in_trailers = place == start
            # Of a chunk whose size came alone there is nothing yet.
            if piece := view[start:place]:
                body.append(piece)
        if self._in_trailers:
            # The last chunk has no data: its line end, and then an empty line or trailers.
            self._take_trailers(received[max(place - len(_CRLF), 0) :])
        else:
            self._left, self._line = place - end, b""
        return body

    def cut(self) -> None:
        """The connection ended."""
        raise MalformedChunk("it ended before the last chunk")

    def _take_trailers(self, trailers: bytes) -> None:
        self._left, self._line = 0, trailers
        last = trailers.find(_CRLF + _CRLF)
        # As above: what came without the last byte was as long.
        length = len(trailers) if last < 0 else last + len(_CRLF + _CRLF) - 1
        if length > MAX_LINE_BYTES:
            raise MalformedChunk("the trailers do not end")
        self.ended = last >= 0


def _begun(line: bytes) -> bytes:
    if len(line) > MAX_LINE_BYTES or _BEGIN_OF_SIZE_LINE.fullmatch(line) is None:
        raise MalformedChunk("there is no chunk where one should begin")
    return line
