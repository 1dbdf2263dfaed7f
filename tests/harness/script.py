"""Scripted answers of a `Tape`, and how they are sent over the network."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
OPENING = b":ok\n\n"


class Ending(Enum):
    """How a connection ends."""

    RESET = "reset"
    CLOSE = "close"
    """Close without the final chunk, in the middle of a chunk."""
    CLEAN = "clean"
    """End the HTTP answer properly."""
    SILENT = "silent"
    """Stay open and send nothing."""


class Stop(NamedTuple):
    """The point at which a connection stops."""

    place: int
    """The event's index in the log, counted over all topics from the first one ever written."""
    byte: int
    """The number of bytes of that event's frame that are still sent."""
    ending: Ending


@dataclass(frozen=True)
class Stream:
    """The usual answer: all events from the requested position on, and then new ones."""

    stop: Stop | None = None
    chunked: bool = True
    first: bytes = b""
    """Sent before the first event."""
    behind: frozenset[str] = frozenset()
    """Topics that the data centre mirrors late: nothing exists yet at or after the requested time."""


@dataclass(frozen=True)
class Say:
    """An answer of exactly these bytes."""

    wire: bytes


Answer: TypeAlias = Stream | Say
"""The answer to one request."""


def refusal(status: int, body: bytes = b"", *headers: str, kind: str = "text/html") -> Say:
    """An answer of another status or content type."""
    lines = (
        f"HTTP/1.1 {status} As it is",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *headers,
        "\r\n",
    )
    return Say("\r\n".join(lines).encode() + body)


def chunked(piece: bytes) -> bytes:
    """One chunk of the transfer encoding (RFC 9112, section 7.1); empty: the last one."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


class Body:
    """An answer's body as it is sent over the network."""

    def __init__(self, connection: socket.socket, chunked: bool) -> None:
        self._connection = connection
        self._chunked = chunked

    def start(self) -> None:
        head = b"Transfer-Encoding: chunked\r\n" if self._chunked else b"Connection: close\r\n"
        self._connection.sendall(EVENT_STREAM + head + b"\r\n")
        self.write(OPENING)

    def write(self, *pieces: bytes) -> None:
        """Send each piece as a chunk, as upstream does for each line."""
        if self._chunked:
            pieces = tuple(chunked(piece) for piece in pieces if piece)
        self._connection.sendall(b"".join(pieces))

    def write_part(self, piece: bytes, ending: Ending) -> None:
        """Send the last piece; for `CLOSE`, as the beginning of a longer chunk."""
        if self._chunked and ending in (Ending.CLOSE, Ending.RESET):
            piece = b"%x\r\n%b" % (len(piece) + 1, piece)
            self._connection.sendall(piece)
        else:
            self.write(piece)

    def end(self) -> None:
        if self._chunked:
            self._connection.sendall(b"0\r\n\r\n")
