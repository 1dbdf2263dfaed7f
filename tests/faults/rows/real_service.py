"""The relay against the service's own SSE layer, which shares none of our assumptions about it."""

from __future__ import annotations

import threading
import time
from itertools import count, cycle

from pleiades.simulator.log import JournalEntry
from pleiades.simulator.upstream import Stats
from tests.faults.matrix import row
from tests.faults.trial import Trial
from tests.harness.broker import Broker
from tests.harness.eventstreams import EventStreams, UpstreamTopics

TURNS = ("reader", "publisher", "cut", "parser-0", "publisher", "cut", "reader", "parser-0", "cut")
"""Children to kill, and cuts of all connections by a restart of the service."""
RESTARTS_OF_KAFKA = 5
BATCH_EVENTS = 20
BATCHES_A_SECOND = 25.0
IDLE_BATCHES = 50
"""The second data centre is idle for so many batches, and then active for as many."""
OLD_EVENTS = 2000
OLD_MS = 3_600_000
"""Old events are dated up to an hour before the relay's start."""


class RealService:
    """The service over TLS, its topics, and a steady flow of events."""

    def __init__(self, service: EventStreams, topics: UpstreamTopics) -> None:
        self.url = service.tls_url
        self.started_ms = 0
        """The beginning of the comparison, ms since 1970; events are published from a minute before it.
        """
        self._topics = topics
        self._ending = threading.Event()
        self._writer = threading.Thread(target=self._write, daemon=True)

    def write_old(self) -> None:
        """Write the history that exists before the relay connects."""
        now_ms = time.time_ns() // 1_000_000
        for topic in (self._topics.eqiad, self._topics.codfw):
            step_ms = (OLD_MS - 120_000) // OLD_EVENTS
            dates = [now_ms - OLD_MS + number * step_ms for number in range(OLD_EVENTS)]
            self._topics.produce(topic, *dates)
        self.started_ms = now_ms + 60_000

    def begin(self) -> None:
        """Start the flow of events."""
        self._writer.start()

    def end(self) -> None:
        """Stop the flow of events."""
        self._ending.set()
        self._writer.join()

    def _write(self) -> None:
        for number in count():
            if self._ending.wait(1 / BATCHES_A_SECOND):
                return
            now_ms = time.time_ns() // 1_000_000
            # Some share a millisecond, and some run backwards.
            dates = [now_ms - (3 if event % 7 == 0 else 0) for event in range(BATCH_EVENTS)]
            self._topics.produce(self._topics.eqiad, *dates)
            if number // IDLE_BATCHES % 2:
                self._topics.produce(self._topics.codfw, now_ms)

    def journal(self) -> list[JournalEntry]:
        """All events produced so far."""
        return self._topics.journal()

    def stats(self) -> Stats:
        """The only counter that a trial needs: the events appended since the start."""
        return Stats(events_appended_total=len(self.journal()) - 2 * OLD_EVENTS)


@row(
    "Wikimedia's own SSE layer over TLS: kills, cuts, restarts of it and its Kafka, idle phases",
    long=True,
)
def real_service(trial: Trial) -> None:
    """Start from "now", with history that must not be published."""
    kafka = trial.enter(Broker(trial.folder / "upstream-kafka"))
    topics = trial.enter(UpstreamTopics(kafka.bootstrap))
    service = trial.enter(EventStreams(kafka.bootstrap, [topics.stream], cut_seconds=7))
    upstream = RealService(service, topics)
    upstream.write_old()
    flags = [
        "ingest",
        f"--upstream.url={service.tls_url}",
        f"--upstream.ca={service.ca}",
        f"--upstream.stream={topics.stream}",
        "--upstream.overlap=3s",
        "--dedup.window=3s",
        "--idleTimeout=5s",
        "--metricsHost=127.0.0.1",
        "--metricsPort=0",
        *trial.destination.flags,
    ]
    relay = trial.relay(*flags)
    relay.wait_ready()
    upstream.begin()
    trial.wait_for_more(relay)
    times = trial.times(95, at_least=len(TURNS))
    restarts_at = {
        times * turn // (RESTARTS_OF_KAFKA + 1) for turn in range(1, RESTARTS_OF_KAFKA + 1)
    }
    for number, turn in zip(range(times), cycle(TURNS), strict=False):
        with trial.recovery(upstream, relay):
            if number in restarts_at:
                kafka.stop()
                kafka.start()
            elif turn == "cut":
                service.restart()
            else:
                relay.child(turn).kill()
        trial.survived()
    upstream.end()
    trial.finish(upstream, relay)
