"""The body of one stream's answer: chunked, compressed and cut as planned.

Law: nothing is written after a cut. A cut falls at any byte of the body as it goes over the network,
also inside a multi-byte character, between two newlines, or inside an HTTP chunk. The plan depends only
on the seed and the request's number: the same seed gives the same faults, whatever their timing.
"""

from __future__ import annotations

import os
import random
import select
import socket
import time
import zlib
from typing import NamedTuple

from pleiades.simulator.log import seeded
from pleiades.simulator.settings import DATA_CENTRES, Cut, Faults

LOOK_SECONDS = 0.05
"""The longest delay of `abandon` by a client that does not read."""
_GZIP = 16 + zlib.MAX_WBITS


class Plan(NamedTuple):
    """The fate of one request."""

    refuse_status: int | None
    """500 or 503; None: serve it."""
    hang: bool
    """Answer nothing at all."""
    silent: bool
    """Nothing after `:ok`."""
    data_centre: str
    """Whose cluster serves it."""
    cut: Cut
    cut_seconds: float
    """When to cut, from the start of the answer on; infinite: never."""
    cut_bytes: float
    """After how many bytes of the body to cut; infinite: never."""
    rng: random.Random
    """For decisions on the way."""


def plan(faults: Faults, seed: int, number: int) -> Plan:
    """The plan for the request with this number, counted from 1 and without those answered 4xx."""
    rng = seeded(seed, "request", number)
    refuse, hang, silent, elsewhere = (rng.random() for _ in range(4))
    jitter_seconds, jitter_bytes = (rng.uniform(-1, 1) * faults.cut_jitter for _ in range(2))
    return Plan(
        refuse_status=(500 if refuse < 0.5 else 503) if _in_burst(faults, seed, number) else None,  # noqa: PLR2004  # a coin
        hang=hang < faults.hang_rate,
        silent=silent < faults.silence_rate,
        data_centre=DATA_CENTRES[elsewhere < faults.other_cluster_rate],
        cut=rng.choice(faults.cuts),
        cut_seconds=faults.cut_every_seconds * (1 + jitter_seconds) or float("inf"),
        cut_bytes=int(faults.cut_bytes * (1 + jitter_bytes)) or float("inf"),
        rng=rng,
    )


def _in_burst(faults: Faults, seed: int, number: int) -> bool:
    first = max(number - faults.error_burst + 1, 1)
    return faults.error_rate > 0 and any(
        seeded(seed, "burst", start).random() < faults.error_rate
        for start in range(first, number + 1)
    )


class CutShort(Exception):
    """The connection must end in the way of `cut`, with nothing more written.

    Attributes:
        cut: how.
        planned: False where `Body.abandon` caused it.
    """

    def __init__(self, cut: Cut, planned: bool) -> None:
        super().__init__(cut)
        self.cut = cut
        self.planned = planned


class Body:
    """Writes one answer; belongs to one thread, except for `wake` and `abandon`.

    Args:
        connection: the client; its timeout is changed.
        planned: when and how to cut.
        faults: `chunk_bytes`.
        compress: use gzip.
    """

    def __init__(
        self,
        connection: socket.socket,
        planned: Plan,
        faults: Faults,
        compress: bool,
    ) -> None:
        self.bytes_total = 0
        self._connection = connection
        self._plan = planned
        self._chunk_bytes = faults.chunk_bytes
        self._deadline = time.monotonic() + planned.cut_seconds
        self._abandoned: Cut | None = None
        self._gzip = zlib.compressobj(1, zlib.DEFLATED, _GZIP) if compress else None
        self._waking = os.eventfd(0)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._waking, select.POLLIN)
        connection.settimeout(LOOK_SECONDS)

    def close(self) -> None:
        """Release the body; the connection stays."""
        os.close(self._waking)
        self._connection.settimeout(None)

    def wake(self) -> None:
        """End a `wait`, the present one or the next."""
        os.eventfd_write(self._waking, 1)

    def abandon(self, cut: Cut) -> None:
        """End the connection from another thread."""
        self._abandoned = cut
        self.wake()

    def write(self, text: bytes) -> None:
        """Send bytes, at most as fast as the client reads.

        Raises:
            CutShort: the plan, or `abandon`, ended the connection.
            OSError: the client has left.
        """
        self._check()
        wire = text
        if self._gzip is not None:
            wire = self._gzip.compress(text) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
        keep = self._plan.cut_bytes - self.bytes_total
        if time.monotonic() >= self._deadline:
            keep = min(keep, self._plan.rng.randint(0, len(wire)))
        if keep <= len(wire):
            self._write_last(wire[: int(keep)])
            raise CutShort(self._plan.cut, planned=True)
        self._write_chunks(wire)

    def _write_last(self, wire: bytes) -> None:
        whole = len(wire)
        if self._plan.cut is Cut.CLOSE:
            whole = self._plan.rng.randint(0, len(wire))
        self._write_chunks(wire[:whole])
        if whole < len(wire):
            # The rest goes out as a chunk that promises to be longer.
            self._send(b"%x\r\n%b" % (len(wire) - whole + 1, wire[whole:]))
            self.bytes_total += len(wire) - whole

    def _write_chunks(self, wire: bytes) -> None:
        size = self._chunk_bytes or len(wire) or 1
        for start in range(0, len(wire), size):
            piece = wire[start : start + size]
            self._send(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.bytes_total += len(piece)

    def _send(self, wire: bytes) -> None:
        left = memoryview(wire)
        while left:
            self._check()
            try:
                left = left[self._connection.send(left) :]
            except TimeoutError:
                # The client does not read.
                continue

    def wait(self, seconds: float) -> None:
        """Wait for `wake`, or for some seconds (may be infinite), whichever comes first.

        Raises:
            CutShort: the connection's time is up, or `abandon` was called.
            OSError: the client has left.
        """
        seconds = min(seconds, self._deadline - time.monotonic())
        ready = self._poll.poll(None if seconds == float("inf") else max(seconds, 0) * 1000)
        descriptors = [descriptor for descriptor, _ in ready]
        if self._waking in descriptors:
            os.eventfd_read(self._waking)
        elif descriptors and self._has_left():
            raise ConnectionAbortedError("the client has left")
        self._check()
        if time.monotonic() >= self._deadline:
            raise CutShort(self._plan.cut, planned=True)

    def _has_left(self) -> bool:
        try:
            return not self._connection.recv(65_536)
        except TimeoutError:
            # A message of TLS itself.
            return False

    def pause(self, seconds: float) -> None:
        """Wait for some seconds (may be infinite), whatever wakes it; raises as `wait` does."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.wait(left)

    def _check(self) -> None:
        if self._abandoned is not None:
            raise CutShort(self._abandoned, planned=False)
