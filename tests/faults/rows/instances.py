"""Two instances at once, and a stop at the worst moment."""

from __future__ import annotations

import time

from tests.faults.matrix import row
from tests.faults.rows.stalling import (
    finish_history,
    frozen,
    history_flags,
    simulate_history,
    wait_for_full_queues,
)
from tests.faults.trial import KAFKA, Trial, restarts

RATE = 500
STOP_SECONDS = 10
"""The README's promise."""
SLACK_SECONDS = 5
"""Allowance for a machine that is busy with other rows."""
GRACE_SECONDS = 30
"""Kubernetes' default `terminationGracePeriodSeconds`; the relay promises a third of it."""


@row("two instances at once")
def two_instances(trial: Trial) -> None:
    """One of them exits with status 4 and is not restarted; the destination decides which."""
    upstream = trial.simulate(rate=RATE)
    flags = trial.flags(upstream)
    running = trial.relay(*flags)
    trial.wait_for_more(running)
    for _ in range(trial.times(5, at_least=1)):
        second = trial.relay(*flags)
        # A directory is locked; a topic fences the earlier producer.
        leaving, staying = (
            (running, second) if trial.destination.name == KAFKA else (second, running)
        )
        assert leaving.wait(60) == 4, leaving.log
        assert restarts(leaving) == 0, leaving.log
        with trial.recovery(upstream, staying):
            trial.survived()
        running = staying
    trial.finish(upstream, running)


@row("SIGTERM with full queues and a destination that is stalled")
def stop_while_stalled(trial: Trial) -> None:
    """Events that can't be committed in time are left for the next start."""
    stall = frozen(trial)
    upstream = simulate_history(trial)
    flags = history_flags(trial, upstream)
    relay = trial.relay(*flags)
    trial.wait_for_more(relay)
    stall.begin()
    wait_for_full_queues(trial, upstream, relay)
    told = time.monotonic()
    assert relay.stop(GRACE_SECONDS) == 0, relay.log
    seconds = time.monotonic() - told
    trial.note(f"left after {seconds:.1f} s")
    assert seconds < STOP_SECONDS + SLACK_SECONDS
    stall.end()
    trial.survived()
    finish_history(trial, upstream, trial.relay(*flags))
