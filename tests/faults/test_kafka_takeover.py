"""Who may publish: of two instances the newer; a producer that only was fenced by the broker, again."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack

from pleiades.simulator.server import Stats
from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.oracle import judge_topic
from tests.harness.relay import Relay, since_ms

Simulate = Callable[[SimulatorSettings], Simulator]
ToTopic = Callable[[Simulator], list[str]]

TAKEOVERS = 3
RATE = 500
ATTEMPTS = 3
ENDED = "the broker has ended our transaction|starts again from the durable|begins again"
PUBLISHED = "pleiades_kafka_publish_events_total"


def appended(count: int) -> Callable[[Stats], bool]:
    return lambda stats: stats.events_appended_total > count


def wait_for_progress(relay: Relay) -> None:
    before = relay.metric(PUBLISHED)
    relay.until(lambda: relay.metric(PUBLISHED) > before, "new events", 60)


def test_the_newer_of_two_instances_publishes_and_the_older_exits_with_4(
    simulate: Simulate, to_topic: ToTopic, kafka: str, topic: str
) -> None:
    upstream = simulate(SimulatorSettings(rate=1000, faults=Faults(cut_every_seconds=2)))
    flags = [*to_topic(upstream), "--upstream.overlap=3s"]
    with ExitStack() as stack:
        running = stack.enter_context(Relay(*flags))
        wait_for_progress(running)
        for _ in range(TAKEOVERS):
            older, running = running, stack.enter_context(Relay(*flags))
            assert older.wait(30) == 4, older.log
            assert "another instance has taken over the topic" in older.log
            assert "starting all processes again" not in older.log
            wait_for_progress(running)
        assert running.stop() == 0
    verdict = judge_topic(kafka, topic, upstream.journal(), since_ms(upstream), finished=False)
    print(verdict)  # noqa: T201
    assert verdict.flawless, f"{verdict}\n{running.log}"


def test_a_transaction_that_the_broker_ended_is_no_other_instance(
    simulate: Simulate, to_topic: ToTopic, kafka: str, topic: str
) -> None:
    upstream = simulate(SimulatorSettings(rate=RATE, faults=Faults(cut_every_seconds=2)))
    short = ["--kafka.property=transaction.timeout.ms=1500", "--kafka.commitInterval=1s"]
    with Relay(*to_topic(upstream), *short, "--hangTimeout=30s") as relay:
        for _ in range(ATTEMPTS):
            wait_for_progress(relay)
            publisher = relay.child("publisher")
            # Stopped in a transaction, for longer than the broker allows: it looks for such every
            # ten seconds. (Between two transactions it would be no news: hence the attempts.)
            publisher.suspend()
            stopped_at = upstream.stats().events_appended_total
            upstream.wait_until(appended(stopped_at + 12 * RATE), 60)
            publisher.resume()
            wait_for_progress(relay)
            if re.search(ENDED, relay.log):
                break
        # As the case may be: fenced, or told at the commit that there is no transaction.
        relay.wait_for(ENDED, 1)
        assert relay.stop() == 0
    assert "Traceback" not in relay.log
    verdict = judge_topic(kafka, topic, upstream.journal(), since_ms(upstream), finished=False)
    print(verdict)  # noqa: T201
    assert verdict.flawless, f"{verdict}\n{relay.log}"
