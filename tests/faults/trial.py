"""One row of the fault matrix on one destination: upstream, relay, destination, and what came of it."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from pleiades.simulator.log import JournalEntry
from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.authority import authority
from tests.harness.broker import Broker
from tests.harness.destinations import Destination, Directory, Topic
from tests.harness.oracle import Verdict
from tests.harness.relay import Relay, Upstream, ingest_flags, since_ms
from tests.harness.waiting import until

FULL_MINUTES = 20.0
"""The length of a run for which the numbers in the rows are meant."""
RECOVERY_SECONDS = 120.0
"""Longer than that no row waits for the relay to go on."""
NO_CUTS = Faults(cut_every_seconds=0)

FILES, KAFKA = "files", "kafka"
NO_KAFKA = "none:0"
"""In place of a broker's address."""


@dataclass
class Outcome:
    """What a cell of the matrix says; plain enough for JSON."""

    row: str
    destination: str
    seed: int
    ok: bool = False
    skipped: str = ""
    """Why it did not run."""
    error: str = ""
    """Why it failed, for whoever mends it."""
    faults: int = 0
    published: int = 0
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    broken: int = 0
    """Half-written: files that are no whole event, records that are not the event."""
    dead_letters: int = 0
    recoveries: list[float] = field(default_factory=list)
    """Seconds from the end of a fault until all that upstream had by then, and more, was published."""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def median_seconds(self) -> float | None:
        """Of the recoveries."""
        return statistics.median(self.recoveries) if self.recoveries else None

    @property
    def worst_seconds(self) -> float | None:
        """Of the recoveries."""
        return max(self.recoveries, default=None)


class Trial:
    """What a row works with. Everything it starts ends with the `with` block.

    Args:
        row: its name.
        destination: `FILES` or `KAFKA`.
        folder: empty; logs and files of this trial.
        seed: makes victims and moments the same again (the machine's own pace it can't).
        minutes: of the whole run: rows that repeat a fault or wait do so more or less often.
        bootstrap: of a Kafka in which this trial may make topics.
    """

    def __init__(
        self, row: str, destination: str, folder: Path, seed: int, minutes: float, bootstrap: str
    ) -> None:
        self.outcome = Outcome(row, destination, seed)
        self.folder = folder
        self.chance = random.Random(seed)
        self.destination: Destination = (
            Directory(folder / "events") if destination == FILES else Topic(bootstrap)
        )
        self.minutes = minutes
        self._share = minutes / FULL_MINUTES
        self._stack = ExitStack()
        self._relays: list[Relay] = []

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.destination.close()
        for number, relay in enumerate(self._relays):
            (self.folder / f"relay-{number}.log").write_text(relay.log + "\n")

    # ---- how much of it ----

    def times(self, full: int, at_least: int) -> int:
        """How often to do something that a full run does `full` times."""
        return max(round(full * self._share), at_least)

    def seconds(self, full: float, at_least: float) -> float:
        """How long something lasts that lasts `full` seconds in a full run; no longer than that."""
        return max(min(full * self._share, full), at_least)

    # ---- what takes part ----

    @property
    def directory(self) -> Directory:
        """The destination of a row for files."""
        assert isinstance(self.destination, Directory)
        return self.destination

    @property
    def topic(self) -> Topic:
        """The destination of a row for Kafka."""
        assert isinstance(self.destination, Topic)
        return self.destination

    def enter(self, context: Any) -> Any:
        """Have something end with the trial."""
        return self._stack.enter_context(context)

    def at_the_end(self, call: Callable[[], object]) -> None:
        """Have something done when the trial ends."""
        self._stack.callback(call)

    def own_broker(self) -> Broker:
        """A broker that this trial may harm becomes the destination."""
        broker: Broker = self.enter(Broker(self.folder / "kafka"))
        self.publish_to(Topic(broker.bootstrap))
        return broker

    def publish_to(self, destination: Destination) -> None:
        """Replace the destination."""
        self.destination.close()
        self.destination = destination

    def simulate(self, **settings: Any) -> Simulator:
        """A local upstream; no cuts unless the settings have faults."""
        usual: dict[str, Any] = {"seed": self.outcome.seed, "faults": NO_CUTS}
        # Over TLS, as the public service is.
        usual["tls"] = authority().server
        upstream: Simulator = self.enter(Simulator(SimulatorSettings(**(usual | settings))))
        return upstream

    def flags(self, upstream: Upstream) -> list[str]:
        """What a relay of all that this upstream has needs."""
        return [*ingest_flags(upstream.url, since_ms(upstream)), *self.destination.flags]

    def relay(self, *flags: str, before: Sequence[str] = (), **more: Any) -> Relay:
        """Start the command as a user does; `before`: what runs it, such as `nice`."""
        installed = Path(sys.executable).with_name("pleiades")
        command = [str(installed)] if installed.exists() else [sys.executable, "-m", "pleiades"]
        relay = Relay(*flags, command=[*before, *command], **more)
        self._relays.append(relay)
        self.enter(relay)
        return relay

    # ---- what happens ----

    def survived(self, faults: int = 1) -> None:
        """Count faults that were really there."""
        self.outcome.faults += faults

    def note(self, text: str) -> None:
        """Something that the table shows."""
        self.outcome.notes.append(text)

    def wait_for_more(self, relay: Relay | None = None, events: int = 1) -> None:
        """Wait until that many more events are published."""
        goal = self.destination.count() + events
        self.wait(lambda: self.destination.count() >= goal, f"{events} more events", relay)

    def wait(self, condition: Callable[[], object], what: str, relay: Relay | None = None) -> None:
        """Wait for a condition while the relay, if given, runs."""
        if relay is not None:
            relay.until(condition, what, RECOVERY_SECONDS)
        else:
            until(condition, what, RECOVERY_SECONDS)

    def suspend(self, process: psutil.Process) -> None:
        """SIGSTOP; returns when it stands still."""
        process.suspend()
        self.wait(lambda: process.status() == psutil.STATUS_STOPPED, f"{process} to stand still")

    def wait_for_upstream(self, upstream: Simulator, events: int) -> None:
        """Wait until upstream has that many events more."""
        goal = upstream.stats().events_appended_total + events
        upstream.wait_until(lambda stats: stats.events_appended_total >= goal, RECOVERY_SECONDS)

    @contextmanager
    def recovery(self, upstream: Upstream, relay: Relay | None = None) -> Iterator[None]:
        """Measure from the end of the block until the relay has caught up with upstream.

        That is: as much is published as upstream had at the end of the block, and more. A dying
        relay's last commit does not pass for a recovery, nor does a part of what was missed.
        """
        yield
        begun = time.monotonic()
        appended = upstream.stats().events_appended_total
        self.wait(lambda: self.destination.count() > appended, "all of upstream", relay)
        self.outcome.recoveries.append(time.monotonic() - begun)

    def finish(self, upstream: Upstream, *relays: Relay) -> None:
        """Wait for all that upstream has now, stop, read the destination afresh and compare.

        What upstream goes on to make until the relays stop need not be there: of each topic it is
        looked for up to the last one published. What it had before must be, of every topic.
        """
        had, since = upstream.journal(), since_ms(upstream)
        for relay in relays:
            self.wait(
                lambda: not self.destination.judge(had, since, finished=True).lost,
                "all that upstream had",
                relay,
            )
            assert relay.stop() == 0, relay.log
        lost = self.destination.judge(had, since, finished=True).lost
        self.outcome.lost = len(lost)
        assert not lost, f"lost {lost[:5]} of {len(had)}\n{self.logs()}"
        self.compare(upstream.journal(), since, finished=False)

    def compare(self, journal: list[JournalEntry], since: int, finished: bool = True) -> Verdict:
        """Read the destination afresh; anything wrong fails the trial."""
        verdict = self.destination.judge(journal, since, finished)
        outcome = self.outcome
        outcome.published = verdict.published
        outcome.lost = len(verdict.lost)
        outcome.doubled = len(verdict.doubled)
        outcome.disordered = len(verdict.disordered)
        outcome.broken = len(verdict.broken) + len(verdict.foreign)
        outcome.dead_letters = self.destination.dead_letters()
        assert verdict.flawless, f"{verdict}\n{self.logs()}"
        assert verdict.published, f"nothing was published\n{self.logs()}"
        return verdict

    def logs(self, most: int = 60) -> str:
        """The end of each relay's log."""
        return "\n---\n".join("\n".join(relay.lines[-most:]) for relay in self._relays)


def restarts(relay: Relay) -> int:
    """How often its parent has started all processes again."""
    return relay.log.count("starting all processes again")


def restarted(relay: Relay, times: int) -> Callable[[], bool]:
    """A condition: it has restarted so often."""
    return partial(_restarted, relay, times)


def _restarted(relay: Relay, times: int) -> bool:
    return restarts(relay) >= times


def without_tracebacks(relays: Iterable[Relay]) -> None:
    """What is foreseen ends without a traceback."""
    for relay in relays:
        assert "Traceback" not in relay.log, relay.log
