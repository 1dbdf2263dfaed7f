"""https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation , byte by
byte, as literally as possible; and the chunks of RFC 9112, section 7.1.

Law: no code of pleiades, and no optimisation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass
class Interpretation:
    """The content of a stream of bytes, up to its last complete frame."""

    frames: list[bytes] = field(default_factory=list)
    """The lines of each non-empty frame, joined by LF."""
    events: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    """Type, last event ID, data."""
    last_event_id: bytes = b""
    retry: bytes | None = None
    """Digits of the last `retry` field."""
    unended: int = 0
    """Bytes after the last complete frame, line ends as one LF each."""


def lines_of(stream: bytes) -> tuple[list[bytes], bytes]:
    """Return the lines that have ended, and the bytes after the last of them."""
    if stream[:3] == b"\xef\xbb\xbf":
        stream = stream[3:]
    lines: list[bytes] = []
    line = bytearray()
    previous = -1
    for byte in stream:
        if byte == ord("\n") and previous == ord("\r"):
            pass  # the second half of one line end
        elif byte in b"\r\n":
            lines.append(bytes(line))
            line.clear()
        else:
            line.append(byte)
        previous = byte
    return lines, bytes(line)


def interpret(stream: bytes) -> Interpretation:
    """Read a whole stream."""
    found = Interpretation()
    lines, rest = lines_of(stream)
    frame: list[bytes] = []
    for line in lines:
        if line:
            frame.append(line)
        elif frame:
            found.frames.append(b"\n".join(frame))
            _take(frame, found)
            frame = []
    found.unended = sum(len(line) + 1 for line in frame) + len(rest)
    return found


def _take(frame: list[bytes], found: Interpretation) -> None:
    kind = ""
    data: list[bytes] = []
    for line in frame:
        name, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if name == b"event":
            kind = value.decode(errors="replace")
        elif name == b"data":
            data.append(value.decode(errors="replace").encode())
        elif name == b"id":
            if 0 not in value:
                found.last_event_id = value
        elif name == b"retry" and value and all(digit in b"0123456789" for digit in value):
            found.retry = value
    if data:
        found.events.append((kind or "message", found.last_event_id, b"\n".join(data)))


# ---- chunks ----

_CRLF = b"\r\n"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*;[^\r\n]*)?\r\n")
_COMPLETIONS = (b"0\r\n", b"\r\n", b"\n", b";\r\n")
"""One of them makes a whole line of the begin of one."""


class Dechunked(NamedTuple):
    """The content of a chunked body, as far as it has come."""

    body: bytes
    ended: bool
    """The last chunk and its trailers are there."""
    malformed: bool
    """What follows is no chunk, whatever comes after it."""


def dechunked(stream: bytes, max_line_bytes: int) -> Dechunked:
    """Take a body apart.

    Args:
        max_line_bytes: the longest line of a size, with the line ends around it, less one byte; and the
            longest trailers.
    """
    body, rest, is_first = b"", stream, True
    while True:
        if not is_first and len(rest) < len(_CRLF):
            return Dechunked(body, False, not _CRLF.startswith(rest))
        if not is_first and not rest.startswith(_CRLF):
            return Dechunked(body, False, True)
        rest = rest if is_first else rest[len(_CRLF) :]
        is_first = False
        line = _SIZE_LINE.match(rest)
        # Both line ends count.
        length = len(line[0]) if line else len(rest)
        if length + len(_CRLF) > max_line_bytes + (1 if line else 0):
            return Dechunked(body, False, True)
        if line is None:
            could_be = any(_SIZE_LINE.fullmatch(rest + end) for end in _COMPLETIONS)
            return Dechunked(body, False, not could_be)
        size, rest = int(line[1], 16), rest[length:]
        if not size:
            trailers, found, _ = (_CRLF + rest).partition(_CRLF + _CRLF)
            is_long = len(trailers) + len(found) > max_line_bytes + (1 if found else 0)
            return Dechunked(body, bool(found) and not is_long, is_long)
        body += rest[:size]
        if len(rest) < size:
            return Dechunked(body, False, False)
        rest = rest[size:]
