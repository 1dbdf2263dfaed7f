"""`python -m tests.benchmarks.recovery [KILLS]`: the delay of events when a child is killed."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import cycle
from pathlib import Path

from pleiades.core.restart import HEALTHY_SECONDS
from pleiades.simulator.settings import NO_DISORDER, Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.authority import authority
from tests.harness.broker import Broker
from tests.harness.destinations import Destination, Directory, Topic
from tests.harness.prerequisites import KAFKA, is_there
from tests.harness.relay import Relay, ingest_flags, since_ms

RATE = 50
VICTIMS = ("reader", "parser-0", "publisher")
LONGEST_SECONDS = 60.0
LOOK_SECONDS = 0.005
KILLS = 20


def recoveries(destination: Destination, kills: int) -> Iterator[float]:
    """Seconds from the SIGKILL of a child until the first event produced after it is durable.

    Each child has lived long enough for its end to count as the first after a healthy run.
    """
    settings = SimulatorSettings(
        rate=RATE, disorder=NO_DISORDER, faults=Faults(cut_every_seconds=0), tls=authority().server
    )
    with closing(destination), Simulator(settings) as upstream:
        flags = [*ingest_flags(upstream.url, since_ms(upstream)), *destination.flags]
        with Relay(*flags) as relay:
            relay.wait_ready()
            for _, role in zip(range(kills), cycle(VICTIMS), strict=False):
                _wait(HEALTHY_SECONDS + 0.5)
                _until_more_than(_produced(upstream), destination, relay)
                victim = relay.child(role)
                produced, begun = _produced(upstream), time.monotonic()
                victim.kill()
                _until_more_than(produced, destination, relay)
                yield time.monotonic() - begun
            assert relay.stop() == 0, relay.log


def _produced(upstream: Simulator) -> int:
    return sum(not entry.canary for entry in upstream.journal())


def _until_more_than(published: int, destination: Destination, relay: Relay) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while destination.count() <= published:
        assert time.monotonic() < deadline, relay.log
        _wait(LOOK_SECONDS)


def _wait(seconds: float) -> None:
    time.sleep(seconds)


def main() -> None:
    """Print the recoveries into files and, if there is a broker, into Kafka."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else KILLS
    with tempfile.TemporaryDirectory() as folder:
        _show("files", recoveries(Directory(Path(folder) / "events"), kills))
        if is_there(KAFKA):
            with Broker(Path(folder) / "kafka") as broker:
                _show("kafka", recoveries(Topic(broker.bootstrap), kills))


def _show(name: str, seconds: Iterator[float]) -> None:
    figures = list(seconds)
    sys.stdout.write(
        f"{name}: median {statistics.median(figures):.2f} s, "
        f"least {min(figures):.2f} s, most {max(figures):.2f} s\n"
    )


if __name__ == "__main__":
    main()
