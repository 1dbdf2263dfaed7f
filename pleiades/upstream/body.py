"""The body of an answer, as it arrives.

Laws:
- The body depends on the bytes alone, never on how the network, TLS or HTTP cut them.
- One read is not all that waits. TLS gives one record at a time, and `poll` does not see what OpenSSL
  has already decrypted. So the socket is read until it says that there is nothing more.
- Live events gather in the kernel until `GATHERED_BYTES` wait, for at most `GATHERING_SECONDS`: each
  wake-up of the processes costs as much as a hundred events do in bulk. The kernel ends the wait as soon
  as so much has arrived (SO_RCVLOWAT), so the sender is never held up, at any rate.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import logging
import select
import socket
import ssl
import struct
import termios
import time
import zlib
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import cast

import requests
from urllib3.util.ssltransport import SSLTransport

from pleiades.runtime.errors import Transient
from pleiades.runtime.logs import printable
from pleiades.upstream.chunked import ChunkDecoder
from pleiades.upstream.refusals import short
from pleiades.upstream.transport import Answer

log = logging.getLogger(__name__)

READ_BYTES = 512 * 1024
"""The longest piece that is handed on, decompressed or not."""
GATHERED_BYTES = 32 * 1024
"""Half of what Linux lets a new connection receive unread (net.ipv4.tcp_rmem)."""
GATHERING_SECONDS = 0.4
"""An event waits half of it on average, and then for its commit."""

GZIP_CODINGS = ("gzip", "x-gzip")

_GZIP = 16 + zlib.MAX_WBITS
_NOTHING_WAITS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Connection:
    """An answer whose headers have been read.

    Args:
        idle_seconds: so much silence raises `Transient`.
    """

    def __init__(self, response: requests.Response, idle_seconds: float) -> None:
        # Every pool of `StreamSession` makes such answers; urllib3 has no public name for them.
        answer = cast("Answer", response.raw._original_response)  # noqa: SLF001
        self._response = response
        self._idle_seconds = idle_seconds
        self._socket = answer.sock
        # TLS through a proxy that is reached by TLS has the proxy's connection below its own.
        sock: socket.socket | SSLTransport = answer.sock
        self._outer = sock.socket if isinstance(sock, SSLTransport) else sock
        self._framing = ChunkDecoder() if answer.chunked else _Unchunked(answer.length)
        self._is_zipped = header(response, "Content-Encoding") in GZIP_CODINGS
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._poll = select.poll()
        self._poll.register(self._outer, select.POLLIN)
        self._low_water = 1
        self._is_emptied = False
        """The last read took all that waited: the next may wait until more has gathered."""
        self._began = time.monotonic()
        self._failure: OSError | None = None
        """An error behind bytes that are handed on first."""
        self._outer.setblocking(False)
        try:
            # The bytes that were read together with the headers: at most one read of the socket.
            self._first = answer.fp.read1(READ_BYTES) or b""
        except _NOTHING_WAITS:
            self._first = b""

    @property
    def server_ms(self) -> int | None:
        """The upstream's clock at the answer, ms since 1970, if it says."""
        date = self._response.headers.get("Date")
        try:
            return int(parsedate_to_datetime(date).timestamp() * 1000) if date else None
        except (ValueError, OverflowError):
            log.debug("unreadable Date header: %s", printable(str(date)))
            return None

    def chunks(self) -> Iterator[bytes]:
        """Bytes of the body, decompressed, as they arrive; none of the pieces is empty.

        Raises:
            Transient: silence for longer than the idle timeout (`idle`), a cut (`cut`), or damaged
                compressed data (`decode`).
        """
        pieces = iter(self._read, b"")
        return _inflated(pieces) if self._is_zipped else pieces

    def unread_bytes(self) -> int:
        """Bytes that wait in the kernel (as they travel) and within TLS (decrypted)."""
        waiting = bytearray(struct.calcsize("i"))
        try:
            fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, waiting)
        except (OSError, ValueError):
            # Closed, or no such call for this kind of socket.
            return 0
        decrypted = self._socket.pending() if isinstance(self._socket, ssl.SSLSocket) else 0
        return int.from_bytes(waiting, "little") + decrypted

    def close(self) -> None:
        """Give the connection up."""
        self._response.close()

    def _read(self) -> bytes:
        """The next bytes of the body, still compressed; none at its end."""
        deadline = time.monotonic() + self._idle_seconds
        try:
            # The framing says that the body has ended. If the connection stays open, nothing else does.
            while not self._framing.ended:
                received = self._receive(deadline)
                if not received:
                    self._framing.cut()
                elif body := b"".join(self._framing.feed(received)):
                    return body
                if time.monotonic() > deadline:
                    # Bytes come, and none of them is of the body.
                    raise TimeoutError
        except TimeoutError:
            raise Transient("the stream was silent", "idle") from None
        except (http.client.HTTPException, OSError) as error:
            raise Transient(f"the connection was cut: {short(error)}", "cut") from None
        return b""

    def _receive(self, deadline: float) -> bytes:
        """All that waits, or else what comes next; nothing at the end of the connection."""
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._failure is not None:
            raise self._failure
        # At first each event is handed on as it comes: a start waits for the first one.
        if self._is_emptied and time.monotonic() - self._began > GATHERING_SECONDS:
            self._wait(GATHERED_BYTES, min(GATHERING_SECONDS, self._idle_seconds))
        while (size := self._take()) is None:
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0:
                raise TimeoutError
            self._wait(1, left_seconds)
        return bytes(self._buffer[:size])

    def _take(self) -> int | None:
        """Fill the buffer with what waits; its size, 0 at the end, None if nothing waits."""
        size = 0
        self._is_emptied = False
        while size < READ_BYTES:
            try:
                read = self._socket.recv_into(self._buffer[size:])
            except _NOTHING_WAITS:
                self._is_emptied = True
                return size or None
            except OSError as error:
                if not size:
                    raise
                self._failure = error
                break
            if not read:
                break
            size += read
        return size

    def _wait(self, low_water: int, seconds: float) -> None:
        """Wait until so many bytes are there, the connection ends, or so many seconds have passed."""
        if low_water != self._low_water:
            self._low_water = low_water
            # Where it can't be set, the first byte ends the wait.
            with contextlib.suppress(OSError):
                self._outer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low_water)
        self._poll.poll(seconds * 1000)


class _Unchunked:
    """A body of a known length, or one that ends with the connection; as `ChunkDecoder`."""

    def __init__(self, length: int | None) -> None:
        self._left = length
        self.ended = length == 0

    def feed(self, received: bytes) -> list[bytes]:
        body = received[: self._left]
        if self._left is not None:
            self._left -= len(body)
            self.ended = not self._left
        return [body]

    def cut(self) -> None:
        """The connection ended."""
        if self._left:
            raise http.client.IncompleteRead(b"", self._left)
        self.ended = True


def _inflated(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """gzip, in bounded pieces: a kilobyte can hold a megabyte."""
    stream = zlib.decompressobj(_GZIP)
    for piece in pieces:
        data, size = piece, 0
        while data or size == READ_BYTES:
            if stream.eof:
                # RFC 1952, section 2.2: members follow each other.
                stream = zlib.decompressobj(_GZIP)
            try:
                plain = stream.decompress(data, READ_BYTES)
            except zlib.error as error:
                raise Transient(f"the compressed stream is damaged: {error}", "decode") from None
            data = stream.unused_data if stream.eof else stream.unconsumed_tail
            if size := len(plain):
                yield plain


def header(response: requests.Response, name: str) -> str:
    """A header that names a coding, in lower case; empty where there is none."""
    return response.headers.get(name, "").strip().lower()
