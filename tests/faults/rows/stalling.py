"""A destination that accepts nothing for a while, and an upstream as fast as the relay reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pleiades.simulator.simulator import Simulator
from tests.faults.rows.disk import small_disk
from tests.faults.trial import ARCHIVE, FILES, KAFKA, Trial
from tests.harness.relay import Relay, since_ms

HISTORY_EVENTS = {FILES: 30_000, ARCHIVE: 150_000, KAFKA: 150_000}
"""More than passes before the stall, and more than the buffers hold."""
HISTORY_SECONDS = 600
STALLED_SECONDS = 3.0
"""The upstream has sent nothing for so long: all channels and sockets are full."""


@dataclass(frozen=True)
class Stall:
    """How to stall a destination, and how to release it."""

    begin: Callable[[], None]
    end: Callable[[], None]


def frozen(trial: Trial) -> Stall:
    """A frozen broker that answers nothing, or a full disk."""
    if trial.destination.name == KAFKA:
        broker = trial.own_broker()
        return Stall(broker.suspend, broker.resume)
    disk = small_disk(trial)
    return Stall(disk.fill, disk.free)


def simulate_history(trial: Trial) -> Simulator:
    """An upstream whose events are all there from the start."""
    events = HISTORY_EVENTS[trial.destination.name]
    return trial.simulate(history_events=events, history_seconds=HISTORY_SECONDS)


def history_flags(trial: Trial, upstream: Simulator) -> list[str]:
    """Flags of a relay that publishes the whole history."""
    return [
        f"--since={history_since_ms(upstream)}" if flag.startswith("--since=") else flag
        for flag in trial.flags(upstream)
    ]


def history_since_ms(upstream: Simulator) -> int:
    """A time before its first event."""
    return since_ms(upstream) - HISTORY_SECONDS * 1000


def wait_for_full_queues(trial: Trial, upstream: Simulator, relay: Relay) -> None:
    """Wait until back-pressure has reached the reader: upstream sends nothing for a while."""
    served, since = -1, 0.0

    def is_stalled() -> bool:
        nonlocal served, since
        total, now = upstream.stats().bytes_served_total, time.monotonic()
        if total != served:
            served, since = total, now
        return now - since >= STALLED_SECONDS

    trial.wait(is_stalled, "full queues", relay)
    assert is_held_back(upstream), "no events were left to stall"


def is_held_back(upstream: Simulator) -> bool:
    """True if upstream has data that the relay does not read."""
    stats = upstream.stats()
    return stats.events_served_total < stats.events_appended_total


def finish_history(trial: Trial, upstream: Simulator, relay: Relay) -> None:
    """Wait until the whole history is published, and compare."""
    expected = sum(not entry.canary for entry in upstream.journal())
    trial.wait(lambda: trial.destination.count() >= expected, "the whole history", relay)
    assert relay.stop() == 0, relay.log
    trial.compare(upstream.journal(), history_since_ms(upstream))
