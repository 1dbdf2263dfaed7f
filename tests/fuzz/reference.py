"""https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation , byte by
byte, as literally as possible.

Law: no code of pleiades, and no optimisation.
"""

from __future__ import annotations

from dataclasses import dataclass, field


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
