"""The real EventStreams over TLS instead of the simulator; everything around the relay is restarted."""

from __future__ import annotations

import random
import threading
import uuid
from itertools import cycle, islice

import orjson

from tests.faults.matrix import row
from tests.faults.rows.upstream import LEAST
from tests.faults.trial import Trial
from tests.harness.broker import Broker
from tests.harness.eventstreams import EventStreams, now_ms, topics_of
from tests.harness.relay import ingest_flags, since_ms

BURST_SECONDS = 0.05
BURST_EVENTS = 10
"""Of one millisecond, as upstream's often are; 200 events a second."""
SECOND_SHARE = 0.15
BACK_SHARE, BACK_MS = 0.01, 2_000
CANARY_SHARE = 0.005
CUT_SECONDS = 3
"""The service cuts each connection after that time; Wikimedia does after 15 minutes."""
IDLE_SECONDS = 10
"""A connection on which nothing comes is given up after that time; the relay's default is longer."""
STOP_SECONDS = 30
STREAM = "recentchange"

VICTIMS = (
    "reader",
    "service killed",
    "parent",
    "kafka killed",
    "publisher",
    "service stopped",
    "parser-0",
    "kafka stopped",
)
NONE, FIRST_ONLY, BOTH = (), (0,), (0, 1)
ACTIVE = (BOTH, FIRST_ONLY, (1,))
"""The data centres in which something happens; the other one is idle."""


class Writer:
    """Writes events upstream for as long as the `with` block lasts.

    Args:
        service: where to.
        chance: makes the events the same again.
    """

    def __init__(self, service: EventStreams, chance: random.Random) -> None:
        self.active: tuple[int, ...] = FIRST_ONLY
        self._service = service
        self._chance = chance
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(STOP_SECONDS)
        assert not self._thread.is_alive()
        self._service.flush()

    def _run(self) -> None:
        while not self._stopping.wait(BURST_SECONDS):
            active, timestamp_ms = self.active, now_ms()
            for _ in range(BURST_EVENTS if active else 0):
                second = self._chance.random() < SECOND_SHARE
                place = int(second) if len(active) > 1 else active[0]
                back_ms = 0
                if self._chance.random() < BACK_SHARE:
                    back_ms = self._chance.randrange(BACK_MS)
                topic = topics_of(STREAM)[place]
                self._service.produce(topic, timestamp_ms - back_ms, self._event())

    def _event(self) -> bytes:
        canary = self._chance.random() < CANARY_SHARE
        identity = uuid.UUID(int=self._chance.getrandbits(128), version=4)
        return orjson.dumps(
            {
                "$schema": "/mediawiki/recentchange/1.0.0",
                "meta": {
                    "id": str(identity),
                    "dt": "2026-01-01T00:00:00Z",
                    "domain": "canary" if canary else "en.wikipedia.org",
                    "stream": f"mediawiki.{STREAM}",
                },
                "type": "edit",
                "title": "Zürich \u2028 東京",
                "wiki": "enwiki",
                "comment": "x" * self._chance.randrange(1000),
            }
        )


@row(
    "the real EventStreams over TLS: cuts, an idle data centre; each process, the service and its Kafka "
    "killed or restarted",
    long=True,
)
def real_service(trial: Trial) -> None:
    """Wikimedia's own code resolves the positions, and loses and repeats events as it does in public."""
    broker: Broker = trial.enter(Broker(trial.folder / "upstream-kafka"))
    service: EventStreams = trial.enter(
        EventStreams(
            trial.folder / "eventstreams",
            broker.bootstrap,
            [STREAM],
            ["--cut-seconds", str(CUT_SECONDS)],
        )
    )
    flags = [
        *ingest_flags(service.tls_url, since_ms(service)),
        f"--upstream.ca={service.ca}",
        f"--upstream.idleTimeout={IDLE_SECONDS}s",
        *LEAST,
        *trial.destination.flags,
    ]
    start = trial.chance.randrange(len(VICTIMS))
    victims = cycle([*VICTIMS[start:], *VICTIMS[:start]])
    times = trial.times(120, at_least=4)
    with Writer(service, trial.chance) as writer:
        relay = trial.relay(*flags)
        trial.wait_for_more(relay)
        # The second topic has no event yet. On a new connection the service is deaf to it for half a
        # second and longer, unless the first topic keeps its Kafka client busy.
        writer.active = NONE
        connected = service.streams_begun()
        trial.wait(lambda: service.streams_begun() > connected, "another connection", relay)
        writer.active = BOTH
        for victim, active in islice(zip(victims, cycle(ACTIVE), strict=True), times):
            writer.active = active
            trial.wait_for_more(relay, events=trial.chance.randrange(1, 400))
            if victim == "parent":
                with trial.recovery(service):
                    relay.process.kill()
                    relay.wait()
                    relay = trial.relay(*flags)
            else:
                with trial.recovery(service, relay):
                    if victim == "service killed":
                        service.kill()
                        service.start()
                    elif victim == "service stopped":
                        service.stop()
                        service.start()
                    elif victim == "kafka killed":
                        broker.kill()
                        broker.start()
                    elif victim == "kafka stopped":
                        broker.stop()
                        broker.start()
                    else:
                        relay.child(victim).kill()
            trial.survived()
    trial.finish(service, relay)
