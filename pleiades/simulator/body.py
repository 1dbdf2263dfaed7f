"""The body of one stream's answer: compressed, chopped and cut as planned.

Law: after a cut nothing more is written. The cut falls at any byte of what goes over the network,
also inside a multi-byte character, between two newlines, or inside an HTTP chunk.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import zlib

from aiohttp import web

from pleiades.simulator.faults import Plan
from pleiades.simulator.settings import Cut, Faults

OPENING = b":ok\n\n"
_GZIP = 16 + zlib.MAX_WBITS
_NO_LINGER = struct.pack("ii", 1, 0)


class CutShort(Exception):
    """The connection was cut."""


class Body:
    """Writes one answer.

    Args:
        request: what is answered.
        planned: when and how to cut.
        faults: `chunk_bytes`.
        compress: whether to use gzip.
    """

    def __init__(
        self, request: web.Request, planned: Plan, faults: Faults, *, compress: bool
    ) -> None:
        self.bytes_total = 0
        self._request = request
        self._plan = planned
        self._chunk_bytes = faults.chunk_bytes
        self._deadline = asyncio.get_running_loop().time() + planned.cut_seconds
        self._abandon: Cut | None = None
        self._wake = asyncio.Event()
        self._gzip = zlib.compressobj(1, zlib.DEFLATED, _GZIP) if compress else None
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "private, max-age=0, s-maxage=0, must-revalidate, no-store",
                "Access-Control-Allow-Origin": "*",
                **({"Content-Encoding": "gzip"} if compress else {}),
            }
        )
        self.response.enable_chunked_encoding()

    @property
    def abandoned(self) -> bool:
        """Whether it was ended from outside, and not as planned."""
        return self._abandon is not None

    async def start(self) -> None:
        """Send the headers and the opening comment."""
        await self.response.prepare(self._request)
        await self.write(OPENING)

    async def write(self, text: bytes) -> None:
        """Send bytes, and wait until the network has taken most of them.

        Raises:
            CutShort: the plan, or `abandon`, ended the connection.
            ConnectionError: the client has left.
        """
        self._check()
        wire = text if self._gzip is None else self._compressed(text)
        keep = self._plan.cut_bytes - self.bytes_total
        if asyncio.get_running_loop().time() >= self._deadline:
            keep = min(keep, self._plan.rng.randint(0, len(wire)))
        if keep <= len(wire):
            await self._cut(wire[: int(keep)])
        await self._write(wire)
        self._check()

    async def wait(self, signal: asyncio.Event, seconds: float | None) -> None:
        """Wait for the signal or for some seconds, whichever comes first.

        Raises:
            CutShort: the connection's time is up, or `abandon` was called.
        """
        loop = asyncio.get_running_loop()
        until = self._deadline if seconds is None else min(self._deadline, loop.time() + seconds)
        waits = [asyncio.ensure_future(event.wait()) for event in (signal, self._wake)]
        try:
            await asyncio.wait(
                waits,
                timeout=None if until == float("inf") else max(until - loop.time(), 0.0),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for waiting in waits:
                waiting.cancel()
        self._check()
        if loop.time() >= self._deadline:
            self.end(self._plan.cut)

    def abandon(self, cut: Cut) -> None:
        """End the connection from outside."""
        self._abandon = cut
        self._wake.set()
        if cut is not Cut.CLEAN:
            # At once, even while a write waits for a client that does not read.
            self._hang_up(cut)

    async def _cut(self, last: bytes) -> None:
        """End the connection as planned, after these bytes."""
        whole = last
        # Not with the very first bytes: aiohttp keeps the headers back until those are written.
        if self._plan.cut is Cut.CLOSE and self.bytes_total:
            whole = last[: self._plan.rng.randint(0, len(last))]
        await self._write(whole)
        transport = self._request.transport
        if len(whole) < len(last) and transport is not None and not transport.is_closing():
            # The rest goes out as a chunk that is promised to be longer.
            rest = last[len(whole) :]
            transport.write(b"%x\r\n%b" % (len(rest) + 1, rest))
            self.bytes_total += len(rest)
        self.end(self._plan.cut)

    def end(self, cut: Cut) -> None:
        """End the connection now.

        Raises:
            CutShort: always.
        """
        self._hang_up(cut)
        raise CutShort

    def _hang_up(self, cut: Cut) -> None:
        transport = self._request.transport
        if transport is None or cut is Cut.CLEAN:
            return
        if cut is Cut.RESET:
            raw: socket.socket | None = transport.get_extra_info("socket")
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            transport.abort()
        elif transport.get_extra_info("ssl_object") is not None or (
            self._abandon is not None and transport.get_write_buffer_size()
        ):
            # TLS would wait for the client's goodbye; and one that does not read would keep it open.
            transport.abort()
        else:
            transport.close()

    def _check(self) -> None:
        if self._abandon is not None:
            self.end(self._abandon)

    def _compressed(self, text: bytes) -> bytes:
        assert self._gzip is not None  # noqa: S101  # for the type checker; the caller looked
        return self._gzip.compress(text) + self._gzip.flush(zlib.Z_SYNC_FLUSH)

    async def _write(self, wire: bytes) -> None:
        size = self._chunk_bytes or len(wire) or 1
        for start in range(0, len(wire), size):
            piece = wire[start : start + size]
            await self.response.write(piece)
            self.bytes_total += len(piece)
        # A fast client never makes a write wait; the other connections want their turn all the same.
        await asyncio.sleep(0)
