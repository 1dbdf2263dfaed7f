"""The body of one stream's answer: chunked, compressed and cut as planned.

Law: nothing is written after a cut. A cut falls at any byte of the body as it goes over the network,
also inside a multi-byte character, between two newlines, or inside an HTTP chunk. The plan depends only
on the seed and the request's number: the same seed gives the same faults, whatever their timing.
"""

from __future__ import annotations

import random
import select
import socket
import time
import zlib
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from pleiades.simulator.log import seeded
from pleiades.simulator.settings import DATA_CENTRES, Cut, Faults

LOOK_SECONDS = 0.05
"""How often a body that waits looks at its client and its plan."""


class Plan(NamedTuple):
    """The fate of one request."""

    refuse_status: int | None
    """500 or 503; None: serve it."""
    hang: bool
    silent: bool
    data_centre: str
    """Whose cluster serves it."""
    cut: Cut
    cut_seconds: float
    """The life of the connection; infinite: no limit."""
    cut_bytes: float
    """The length of the body; infinite: no limit."""
    rng: random.Random
    """For decisions on the way."""


def plan(faults: Faults, seed: int, number: int) -> Plan:
    """The plan for the request with this number, counted from 1 and without those answered 4xx."""
    rng = seeded(seed, "request", number)
    refuse, hang, silent, elsewhere = (rng.random() for _ in range(4))
    by_seconds, by_bytes = (1 + rng.uniform(-1, 1) * faults.cut_jitter for _ in range(2))
    starts = range(max(number - faults.error_burst + 1, 1), number + 1)
    in_burst = any(seeded(seed, "burst", n).random() < faults.error_rate for n in starts)
    return Plan(
        refuse_status=(503, 500)[refuse < 0.5] if in_burst else None,  # noqa: PLR2004  # a coin
        hang=hang < faults.hang_rate,
        silent=silent < faults.silence_rate,
        data_centre=DATA_CENTRES[elsewhere < faults.other_cluster_rate],
        cut=rng.choice(faults.cuts),
        cut_seconds=faults.cut_every_seconds * by_seconds or inf,
        cut_bytes=int(faults.cut_bytes * by_bytes) or inf,
        rng=rng,
    )


@dataclass(eq=False)
class CutShort(Exception):
    """The connection must end in the way of `cut`, with nothing more written."""

    cut: Cut


class Body:
    """Writes one answer; belongs to one thread. Changes the time-out of the connection.

    Raises:
        CutShort: from all methods: the plan, or another thread, ended the connection.
        OSError: the client has left.
    """

    def __init__(
        self, connection: socket.socket, planned: Plan, chunk_bytes: int, compress: bool
    ) -> None:
        self.bytes_total = 0
        self.abandoned: Cut | None = None
        """Set by another thread to end the connection."""
        self._connection = connection
        self.plan = planned
        self._chunk_bytes = chunk_bytes
        self._deadline = inf if planned.hang else time.monotonic() + planned.cut_seconds
        self._gzip = zlib.compressobj(1, wbits=16 + zlib.MAX_WBITS) if compress else None
        connection.settimeout(LOOK_SECONDS)

    def write(self, text: bytes) -> None:
        """Send bytes, at most as fast as the client reads."""
        wire = text
        if self._gzip is not None:
            wire = self._gzip.compress(text) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
        keep = self.plan.cut_bytes - self.bytes_total
        if time.monotonic() >= self._deadline:
            keep = min(keep, self.plan.rng.randint(0, len(wire)))
        if keep > len(wire):
            self._write_chunks(wire)
            return
        wire = whole = wire[: int(keep)]
        if self.plan.cut is Cut.CLOSE:
            whole = wire[: self.plan.rng.randint(0, len(wire))]
        self._write_chunks(whole)
        if rest := wire[len(whole) :]:
            # In a chunk that promises to be longer.
            self._send(b"%x\r\n%b" % (len(rest) + 1, rest), len(rest))
        raise CutShort(self.plan.cut)

    def _write_chunks(self, wire: bytes) -> None:
        size = self._chunk_bytes or len(wire) or 1
        for start in range(0, len(wire), size):
            piece = wire[start : start + size]
            self._send(b"%x\r\n%b\r\n" % (len(piece), piece), len(piece))

    def _send(self, wire: bytes, body_bytes: int) -> None:
        left = memoryview(wire)
        while left:
            self._check_abandoned()
            try:
                left = left[self._connection.send(left) :]
            except TimeoutError:
                # The client does not read.
                continue
        self.bytes_total += body_bytes

    def pause(self, seconds: float) -> None:
        """Wait for some seconds (may be infinite); 0 only looks at the client and the plan."""
        until = time.monotonic() + seconds
        while True:
            self._check_abandoned()
            now = time.monotonic()
            if now >= self._deadline:
                raise CutShort(self.plan.cut)
            wait_seconds = min(until - now, self._deadline - now, LOOK_SECONDS)
            if self.has_left(wait_seconds):
                raise ConnectionAbortedError("the client has left")
            if time.monotonic() >= until:
                return

    def has_left(self, wait_seconds: float = 0.0) -> bool:
        """True if the client has closed its side, or does so in that time; from any thread."""
        poll = select.poll()
        poll.register(self._connection, select.POLLRDHUP)
        return bool(poll.poll(max(wait_seconds, 0) * 1000))

    def _check_abandoned(self) -> None:
        if self.abandoned is not None:
            raise CutShort(self.abandoned)
