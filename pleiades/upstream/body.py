"""The body of an answer, as it comes: whatever waits at a time, whichever way it travels.

Laws:
- The body depends on the bytes alone, never on how the network, TLS or HTTP cut them.
- One read is not all that waits. TLS gives one record at a time, and `poll` does not see what OpenSSL
  has decrypted already. So the socket is read until it says that there is nothing more.
- Live events gather in the kernel until `GATHERED_BYTES` wait, for at most `GATHERING_SECONDS`: each
  time that the processes wake up costs as much as a hundred events do in bulk. The kernel ends the wait
  as soon as so much is there (SO_RCVLOWAT), so the sender is never held up, at any rate.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import select
import socket
import ssl
import struct
import termios
import time
import zlib
from collections.abc import Iterator

from pleiades.runtime.errors import Transient
from pleiades.runtime.logs import printable
from pleiades.upstream.chunked import ChunkDecoder, MalformedChunk
from pleiades.upstream.refusals import short
from pleiades.upstream.transport import Answer

READ_BYTES = 256 * 1024
"""At most so much is given on at a time; decompressed data comes in pieces of at most this size too."""
GATHERED_BYTES = 32 * 1024
"""Half of what Linux lets a new connection receive unread (net.ipv4.tcp_rmem)."""
GATHERING_SECONDS = 0.4
"""An event waits half of it on average, and then for its commit."""

IDENTITY_CODINGS = ("", "identity")
GZIP_CODINGS = ("gzip", "x-gzip")

_GZIP = 16 + zlib.MAX_WBITS
_NOTHING_WAITS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Body:
    """Reads the body of an answer whose headers have been read.

    Args:
        answer: its `Transfer-Encoding` and `Content-Encoding` are among those that `refuse_codings` lets
            through.
        idle_seconds: silence for so long raises `Transient`.
    """

    def __init__(self, answer: Answer, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._socket = answer.sock
        self._chunks = ChunkDecoder() if answer.chunked else None
        self._left = answer.length
        """Bytes that are still to come, where the headers told; None: until the connection ends."""
        self._inflater = (
            _Inflater()
            if answer.getheader("Content-Encoding", "").strip().lower() in GZIP_CODINGS
            else None
        )
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._poll = select.poll()
        self._poll.register(answer.sock, select.POLLIN)
        self._low_water = 1
        self._emptied = False
        """The last read took all that waited: the next may wait until more has gathered."""
        self._began = time.monotonic()
        self._failure: OSError | None = None
        """Came behind bytes that are given on first."""
        self._socket.setblocking(False)
        self._first = _buffered(answer)

    def pieces(self) -> Iterator[bytes]:
        """What the body holds, none of it empty, until it ends.

        Raises:
            Transient: silence for longer than the idle timeout (`idle`), a cut (`cut`), or damaged
                compressed data (`decode`).
        """
        while data := self._read():
            if self._inflater is None:
                yield data
            else:
                yield from self._inflater.feed(data)

    def unread_bytes(self) -> int:
        """Bytes that wait for us in the kernel (as they travel) and within TLS (decrypted)."""
        waiting = bytearray(struct.calcsize("i"))
        try:
            fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, waiting)
        except (OSError, ValueError):
            # Closed, or no such call for this kind of socket.
            return 0
        decrypted = self._socket.pending() if isinstance(self._socket, ssl.SSLSocket) else 0
        return int.from_bytes(waiting, "little") + decrypted

    def _read(self) -> bytes:
        """The next bytes of the body, still compressed; none at its end."""
        if self._left == 0 or (self._chunks is not None and self._chunks.ended):
            # Where the connection stays open, nothing else would say so.
            return b""
        deadline = time.monotonic() + self._idle_seconds
        while True:
            try:
                received = self._receive(deadline)
                body = self._decoded(received)
            except TimeoutError:
                raise _silent() from None
            except (http.client.HTTPException, MalformedChunk, OSError) as error:
                raise Transient(f"the connection was cut: {short(error)}", "cut") from None
            if body or self._has_ended(received):
                return body
            if time.monotonic() > deadline:
                # Bytes come, and none of them is of the body.
                raise _silent()

    def _has_ended(self, received: bytes) -> bool:
        return not received or self._left == 0 or (self._chunks is not None and self._chunks.ended)

    def _decoded(self, received: bytes) -> bytes:
        if self._chunks is not None:
            if not received:
                raise http.client.IncompleteRead(b"")
            return b"".join(self._chunks.feed(received))
        if self._left is None:
            return received
        if not received and self._left:
            raise http.client.IncompleteRead(b"", self._left)
        body = received[: self._left]
        self._left -= len(body)
        return body

    def _receive(self, deadline: float) -> bytes:
        """All that waits, or else what comes next; nothing at the end of the connection."""
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._failure is not None:
            raise self._failure
        # At first each event is given as it comes: a start waits for the first one.
        if self._emptied and time.monotonic() - self._began > GATHERING_SECONDS:
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
        self._emptied = False
        while size < READ_BYTES:
            try:
                read = self._socket.recv_into(self._buffer[size:])
            except _NOTHING_WAITS:
                self._emptied = True
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
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low_water)
        self._poll.poll(seconds * 1000)


class _Inflater:
    """gzip, with bounded pieces: a kilobyte can hold a megabyte."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_GZIP)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What the data holds, in pieces of at most `READ_BYTES`.

        Raises:
            Transient: it is damaged.
        """
        size = 0
        while data or size == READ_BYTES:
            if self._stream.eof:
                # RFC 1952, section 2.2: members follow each other.
                self._stream = zlib.decompressobj(_GZIP)
            try:
                piece = self._stream.decompress(data, READ_BYTES)
            except zlib.error as error:
                raise Transient(f"the compressed stream is damaged: {error}", "decode") from None
            data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            if size := len(piece):
                yield piece


def refuse_codings(answer: Answer, address: str) -> None:
    """Refuse an answer whose body can't be read.

    Raises:
        Transient: it is compressed, or framed, in a way that was not asked for.
    """
    coding = answer.getheader("Content-Encoding", "").strip().lower()
    transfer = answer.getheader("Transfer-Encoding", "").strip().lower()
    if coding not in (*IDENTITY_CODINGS, *GZIP_CODINGS):
        name, value = "Content-Encoding", coding
    elif transfer not in (*IDENTITY_CODINGS, "chunked"):
        name, value = "Transfer-Encoding", transfer
    else:
        return
    raise Transient(
        f"{address} answered with {name} {printable(value, 40)}, which was not asked for and can't be "
        "read; a proxy may be in the way. Nothing is lost while the upstream keeps its history",
        "encoding",
    )


def _buffered(answer: Answer) -> bytes:
    """What was read together with the headers."""
    try:
        # One read of the socket at most, which does not block any more.
        return answer.fp.read1(READ_BYTES) or b""
    except _NOTHING_WAITS:
        return b""


def _silent() -> Transient:
    return Transient("the stream was silent", "idle")
