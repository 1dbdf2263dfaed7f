"""Network faults by Toxiproxy, between the relay and the upstream, and the relay and Kafka."""

from __future__ import annotations

import time

from tests.faults.matrix import row
from tests.faults.trial import KAFKA, Trial, restarts, without_tracebacks
from tests.harness.broker import Broker, free_port
from tests.harness.destinations import Topic
from tests.harness.relay import Relay
from tests.harness.toxiproxy import (
    Bandwidth,
    Latency,
    LimitData,
    ResetPeer,
    Slicer,
    SlowClose,
    Timeout,
    Toxic,
    Toxiproxy,
)

RATE = 200
TOXICS: tuple[Toxic, ...] = (
    ResetPeer(0.5),
    Timeout(),
    SlowClose(1),
    Latency(0.2, 0.1),
    Bandwidth(50),
    LimitData(50_000),
    Slicer(100, 50),
)
SHORT = ["--upstream.idleTimeout=1s", "--upstream.overlap=3s", "--dedup.window=3s"]


def toxiproxy(trial: Trial) -> Toxiproxy:
    """The server of proxies."""
    started: Toxiproxy = trial.enter(Toxiproxy(trial.folder))
    return started


def trouble(relay: Relay) -> float:
    """The number of connections that ended or failed."""
    names = ("pleiades_upstream_reconnects_total", "pleiades_recv_errors_total")
    return sum(value for (name, _), value in relay.metrics().items() if name in names)


@row("network to the upstream: reset, half-open, slow close, latency, bandwidth, cut after n bytes")
def network_upstream(trial: Trial) -> None:
    """Apply each toxic for a while, in both directions, with a cut so that a connection is made under
    it."""
    upstream = trial.simulate(rate=RATE)
    proxy = toxiproxy(trial).proxy(upstream.url.split("/")[2])
    flags = [flag.replace(proxy.upstream, proxy.listen) for flag in trial.flags(upstream)]
    assert f"--upstream.url=https://{proxy.listen}/v2/stream" in flags
    relay = trial.relay(*flags, *SHORT)
    trial.wait_for_more(relay)
    lasts_seconds = trial.seconds(6, at_least=1.5)
    for toxic in TOXICS:
        with trial.recovery(upstream, relay), proxy.spoiled(toxic):
            proxy.cut()
            begun, before = time.monotonic(), trouble(relay)
            trial.wait(lambda: time.monotonic() - begun > lasts_seconds, "the toxic", relay)  # noqa: B023  # waited for here
            if isinstance(toxic, (ResetPeer, Timeout, LimitData)):
                trial.wait(lambda: trouble(relay) > before, f"the effect of {toxic}", relay)  # noqa: B023  # as above
        trial.survived()
    assert restarts(relay) == 0, relay.log
    without_tracebacks([relay])
    trial.finish(upstream, relay)


@row("network to Kafka: the same toxics", on=(KAFKA,))
def network_kafka(trial: Trial) -> None:
    """The broker advertises the proxy, so that every connection goes through it."""
    port = free_port()
    proxy = toxiproxy(trial).proxy(f"127.0.0.1:{port}")
    broker: Broker = trial.enter(Broker(trial.folder / "kafka", port=port, advertise=proxy.listen))
    topic = Topic(broker.direct)
    trial.publish_to(topic)
    upstream = trial.simulate(rate=RATE)
    flags = [flag.replace(broker.direct, proxy.listen) for flag in trial.flags(upstream)]
    assert f"--kafka.broker={proxy.listen}" in flags
    relay = trial.relay(*flags, *SHORT)
    trial.wait_for_more(relay)
    lasts_seconds = trial.seconds(10, at_least=1)
    for toxic in TOXICS:
        said = len(relay.lines)
        with trial.recovery(upstream, relay), proxy.spoiled(toxic):
            begun = time.monotonic()
            trial.wait(lambda: time.monotonic() - begun > lasts_seconds, "the toxic", relay)  # noqa: B023  # waited for here
            if isinstance(toxic, (ResetPeer, Timeout)):
                relay.wait_for("can't |did not answer", 60, after=said)
        trial.survived()
    trial.note(f"{restarts(relay)} restarts")
    without_tracebacks([relay])
    trial.finish(upstream, relay)
