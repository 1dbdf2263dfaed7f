"""What a `Tape` can be told to say to a request, and how that goes over the network."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
OPENING = b":ok\n\n"


class Ending(Enum):
    """What becomes of a connection that goes no further."""

    RESET = "reset"
    CLOSE = "close"
    """Without the final chunk, in the middle of one."""
    CLEAN = "clean"
    """A well-formed end of the HTTP answer."""
    SILENT = "silent"
    """It stays open, and nothing comes."""


class Stop(NamedTuple):
    """Where a connection goes no further."""

    place: int
    """Of an event in the log, counted over all topics from the first one ever written."""
    byte: int
    """So much of that event's frame is still sent."""
    ending: Ending


@dataclass(frozen=True)
class Stream:
    """The usual answer: all from where it was asked for, and what comes."""

    stop: Stop | None = None
    chunked: bool = True
    first: bytes = b""
    """Said before the first event."""
    behind: frozenset[str] = frozenset()
    """Topics that its data centre mirrors late: there is nothing yet at or after what was asked for."""


@dataclass(frozen=True)
class Say:
    """These bytes instead of an answer."""

    wire: bytes


Answer: TypeAlias = Stream | Say
"""What is said to one request."""


def refusal(status: int, body: bytes = b"", *headers: str, kind: str = "text/html") -> Say:
    """An answer of another status, or of another kind."""
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
    """As one chunk of the transfer encoding (RFC 9112, section 7.1); nothing: the last one."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


class Body:
    """The body of an answer as it goes over the network."""

    def __init__(self, connection: socket.socket, chunked: bool) -> None:
        self._connection = connection
        self._chunked = chunked

    def start(self) -> None:
        head = b"Transfer-Encoding: chunked\r\n" if self._chunked else b"Connection: close\r\n"
        self._connection.sendall(EVENT_STREAM + head + b"\r\n")
        self.write(OPENING)

    def write(self, *pieces: bytes) -> None:
        """A chunk for each piece, as upstream makes one for each line."""
        if self._chunked:
            pieces = tuple(chunked(piece) for piece in pieces if piece)
        self._connection.sendall(b"".join(pieces))

    def write_part(self, piece: bytes, ending: Ending) -> None:
        """The last piece; where the connection is just closed, of a chunk that was to be longer."""
        if self._chunked and ending in (Ending.CLOSE, Ending.RESET):
            piece = b"%x\r\n%b" % (len(piece) + 1, piece)
            self._connection.sendall(piece)
        else:
            self.write(piece)

    def end(self) -> None:
        if self._chunked:
            self._connection.sendall(b"0\r\n\r\n")
