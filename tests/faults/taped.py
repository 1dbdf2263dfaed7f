"""Shared code of the rows with a `Tape` as upstream, which know every byte to be published."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from tests.faults.trial import Trial
from tests.harness.relay import Relay, since_ms
from tests.harness.script import Answer
from tests.harness.tape import HOME, OTHER, Tape

COUNTED = ("upstream_gaps", "before_start_events_dropped", "oversized_frames")
RECONNECTS = "pleiades_upstream_reconnects_total"
REASONS = ("closed", "cut", "decode", "idle")


def tape(trial: Trial, topics: Iterable[str] = (HOME, OTHER)) -> Tape:
    """An upstream that ends with the trial."""
    made: Tape = trial.enter(Tape(trial.outcome.seed, topics))
    return made


def all_published(trial: Trial, upstream: Tape, relay: Relay, without: int = 0) -> None:
    """Wait until the upstream has given all its answers and all its events are published."""
    left = missing(trial, upstream, without)
    while any(left):
        trial.wait(partial(moved, trial, upstream, without, left), "the next event", relay)
        left = missing(trial, upstream, without)


def missing(trial: Trial, upstream: Tape, without: int) -> tuple[int, int]:
    """The number of unpublished events and of unused answers."""
    events = len(upstream) - without - trial.destination.count()
    return max(events, 0), upstream.unanswered()


def moved(trial: Trial, upstream: Tape, without: int, left: tuple[int, int]) -> bool:
    """True if the number of missing events or answers has changed."""
    return missing(trial, upstream, without) != left


def reconnect(trial: Trial, upstream: Tape, relay: Relay, *answers: Answer) -> None:
    """Cut the connection, and wait until the next requests have received these answers."""
    upstream.answer(*answers)
    upstream.cut_all()
    trial.wait(lambda: not upstream.unanswered(), "these answers", relay)


@contextmanager
def recovery_of(trial: Trial, events: int, relay: Relay | None = None) -> Iterator[None]:
    """Like `Trial.recovery`, for an upstream that writes only so many more events."""
    goal = trial.destination.count() + events
    yield
    begun = time.monotonic()
    trial.wait(lambda: trial.destination.count() >= goal, f"{events} more events", relay)
    trial.outcome.recoveries.append(time.monotonic() - begun)


def finish(trial: Trial, upstream: Tape, relay: Relay, without: range = range(0)) -> dict[str, int]:
    """Let the upstream rest and stop the relay: exactly the bytes of all events are published.

    Args:
        trial: the trial.
        upstream: its upstream.
        relay: its last relay.
        without: indexes in the log of events that must never be published.

    Returns:
        The relay's counters of the upstream.
    """
    upstream.rest()
    # The verdict names the missing events; the timeout would not.
    with suppress(AssertionError):
        all_published(trial, upstream, relay, len(without))
    metrics = relay.metrics()
    seen = {name: int(metrics.get((f"pleiades_{name}_total", ()), 0)) for name in COUNTED}
    seen |= {reason: int(metrics.get((RECONNECTS, (("reason", reason),)), 0)) for reason in REASONS}
    assert relay.stop() == 0, relay.log
    kept = [place for place in range(len(upstream)) if place not in without]
    journal, values = upstream.journal(), upstream.values()
    trial.compare([journal[place] for place in kept], since_ms(upstream))
    # The oracle judges names and identities only, so the bytes are compared here.
    found, wanted = Counter(trial.destination.values()), Counter(values[place] for place in kept)
    lost = wanted - found
    assert not lost, f"lost: {list(lost)[:3]}"
    foreign = found - wanted
    assert not foreign, f"bytes of no event are published: {list(foreign)[:3]}"
    assert trial.outcome.dead_letters == 0, "a partial event is set apart"
    assert "Traceback" not in trial.logs(sys.maxsize), trial.logs()
    return seen
