"""One row of the fault matrix on one destination: upstream, relay, destination, and the outcome."""

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
from tests.harness.destinations import Archive, Destination, Directory, Topic
from tests.harness.oracle import Verdict
from tests.harness.relay import Relay, Upstream, ingest_flags, since_ms
from tests.harness.waiting import until

FULL_MINUTES = 20.0
"""The length of a run for which the rows' numbers are meant."""
RECOVERY_SECONDS = 120.0
"""The longest that a row waits for the relay to continue."""
NO_CUTS = Faults(cut_every_seconds=0)

FILES, ARCHIVE, KAFKA = "files", "archive", "kafka"
NO_KAFKA = "none:0"
"""Stands for a broker's address."""


@dataclass
class Outcome:
    """The outcome of a cell; can be stored as JSON."""

    row: str
    destination: str
    seed: int
    ok: bool = False
    skipped: str = ""
    """The reason why it did not run."""
    error: str = ""
    """The reason why it failed."""
    faults: int = 0
    published: int = 0
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    broken: int = 0
    """Half-written: files that are not a whole event, records that differ from the event."""
    dead_letters: int = 0
    recoveries: list[float] = field(default_factory=list)
    """Seconds from the end of a fault until more is published than upstream had at that moment."""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def median_seconds(self) -> float | None:
        """The median recovery."""
        return statistics.median(self.recoveries) if self.recoveries else None

    @property
    def worst_seconds(self) -> float | None:
        """The worst recovery."""
        return max(self.recoveries, default=None)


class Trial:
    """The tools of a row. Everything that it starts ends with the `with` block.

    Args:
        row: its name.
        destination: `FILES`, `ARCHIVE` or `KAFKA`.
        folder: empty; logs and files of this trial.
        seed: reproduces victims and moments (but not the machine's pace).
        minutes: of the whole run: rows scale their repetitions and waits with it.
        bootstrap: of a Kafka in which this trial may create topics.
    """

    def __init__(
        self, row: str, destination: str, folder: Path, seed: int, minutes: float, bootstrap: str
    ) -> None:
        self.outcome = Outcome(row, destination, seed)
        self.folder = folder
        self.chance = random.Random(seed)
        self.destination: Destination
        if destination == KAFKA:
            self.destination = Topic(bootstrap)
        else:
            kind = Archive if destination == ARCHIVE else Directory
            self.destination = kind(folder / "events")
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
        """Scale the number of repetitions of a full run."""
        return max(round(full * self._share), at_least)

    def seconds(self, full: float, at_least: float) -> float:
        """Scale a duration of a full run; never longer than that."""
        return max(min(full * self._share, full), at_least)

    # ---- what takes part ----

    @property
    def directory(self) -> Directory:
        """The destination of a row for files only."""
        assert isinstance(self.destination, Directory)
        return self.destination

    @property
    def topic(self) -> Topic:
        """The destination of a row for Kafka only."""
        assert isinstance(self.destination, Topic)
        return self.destination

    def enter(self, context: Any) -> Any:
        """Enter a context that ends with the trial."""
        return self._stack.enter_context(context)

    def at_the_end(self, call: Callable[[], object]) -> None:
        """Call something when the trial ends."""
        self._stack.callback(call)

    def own_broker(self) -> Broker:
        """Make a broker that this trial may disturb the destination."""
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
        # TLS, like the public service.
        usual["tls"] = authority().server
        upstream: Simulator = self.enter(Simulator(SimulatorSettings(**(usual | settings))))
        return upstream

    def flags(self, upstream: Upstream) -> list[str]:
        """Flags of a relay that publishes everything of this upstream."""
        return [*ingest_flags(upstream.url, since_ms(upstream)), *self.destination.flags]

    def relay(self, *flags: str, before: Sequence[str] = (), **more: Any) -> Relay:
        """Start the command as a user does; `before`: a command that runs it, such as `nice`."""
        installed = Path(sys.executable).with_name("pleiades")
        command = [str(installed)] if installed.exists() else [sys.executable, "-m", "pleiades"]
        relay = Relay(*flags, command=[*before, *command], **more)
        self._relays.append(relay)
        self.enter(relay)
        return relay

    # ---- what happens ----

    def survived(self, faults: int = 1) -> None:
        """Count faults that really occurred."""
        self.outcome.faults += faults

    def note(self, text: str) -> None:
        """Add a note to the table."""
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
        """Send SIGSTOP; returns when the process is stopped."""
        process.suspend()
        self.wait(lambda: process.status() == psutil.STATUS_STOPPED, f"{process} to stop")

    def wait_for_upstream(self, upstream: Simulator, events: int) -> None:
        """Wait until upstream has that many more events."""
        goal = upstream.stats().events_appended_total + events
        upstream.wait_until(lambda stats: stats.events_appended_total >= goal, RECOVERY_SECONDS)

    @contextmanager
    def recovery(self, upstream: Upstream, relay: Relay | None = None) -> Iterator[None]:
        """Measure from the end of the block until the relay has caught up with upstream.

        It has caught up when more is published than upstream had at the end of the block. So neither a
        dying relay's last commit nor a part of the missed events counts as a recovery.
        """
        yield
        begun = time.monotonic()
        appended = upstream.stats().events_appended_total
        self.wait(lambda: self.destination.count() > appended, "all of upstream's events", relay)
        self.outcome.recoveries.append(time.monotonic() - begun)

    def finish(self, upstream: Upstream, *relays: Relay) -> None:
        """Wait for everything that upstream has now, stop, read the destination from scratch and
        compare.

        Events that upstream adds until the relays stop may be missing after the last published event of
        each topic. All earlier events of every topic must be there.
        """
        had, since = upstream.journal(), since_ms(upstream)
        for relay in relays:
            self.wait(
                lambda: not self.destination.judge(had, since, finished=True).lost,
                "all events that upstream had",
                relay,
            )
            assert relay.stop() == 0, relay.log
        lost = self.destination.judge(had, since, finished=True).lost
        self.outcome.lost = len(lost)
        assert not lost, f"lost {lost[:5]} of {len(had)}\n{self.logs()}"
        self.compare(upstream.journal(), since, finished=False)

    def compare(self, journal: list[JournalEntry], since: int, finished: bool = True) -> Verdict:
        """Read the destination from scratch; any violation fails the trial."""
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
    """The number of times that the relay's parent has restarted all processes."""
    return relay.log.count("starting all processes again")


def restarted(relay: Relay, times: int) -> Callable[[], bool]:
    """Return a condition: the relay has restarted that many times."""
    return partial(_restarted, relay, times)


def _restarted(relay: Relay, times: int) -> bool:
    return restarts(relay) >= times


def without_tracebacks(relays: Iterable[Relay]) -> None:
    """Check that no expected error logs a traceback."""
    for relay in relays:
        assert "Traceback" not in relay.log, relay.log
