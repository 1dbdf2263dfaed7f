"""How long live events gather in the kernel before they are read.

Law: what gathers at the rate of the last read fits into the receive buffer that a connection begins
with, so the sender is never held up by it; and history, of which much waits all the time, is not waited
for.

Each time that the stages wake up for a few events costs as much as a hundred events do in bulk.
"""

from __future__ import annotations

MAX_SECONDS = 0.4
"""An event waits half of it on average, and then for its commit."""
MIN_SECONDS = 0.002
GATHERED_BYTES = 32 * 1024
"""Half of what Linux lets a new connection receive unread (net.ipv4.tcp_rmem)."""


class Gathering:
    """Of one connection."""

    def __init__(self) -> None:
        self._last: float | None = None

    def pause_seconds(self, received_bytes: int, now: float) -> float:
        """How long to pause after a read that gave so many bytes, at a monotonic time."""
        # The first read gives the service's greeting: the first event is not to wait for that.
        elapsed = 0.0 if self._last is None else now - self._last
        self._last = now
        if received_bytes >= 2 * GATHERED_BYTES or elapsed <= 0:
            return 0.0
        seconds = min(elapsed * GATHERED_BYTES / max(received_bytes, 1), MAX_SECONDS)
        return seconds if seconds >= MIN_SECONDS else 0.0
