"""Takeovers and sleeping publishers on Kafka, for which the matrix has no row."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import psutil
from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    AdminClient,
    OffsetSpec,
)

from pleiades.simulator.settings import SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.faults.trial import restarted, restarts
from tests.harness.oracle import judge_topic
from tests.harness.relay import Relay, ingest_flags, kafka_flags, since_ms
from tests.harness.waiting import until

Simulate = Callable[[SimulatorSettings], Simulator]
Flags = Callable[[Simulator], list[str]]

PUBLISHED = "pleiades_kafka_publish_events_total"


def published(relay: Relay) -> float:
    return relay.metric(PUBLISHED)


def published_more(relay: Relay, than: float) -> bool:
    return published(relay) > than


def wait_for_progress(relay: Relay) -> None:
    relay.until(partial(published_more, relay, published(relay)), "new events", 60)


class Ends:
    """The end offset of a topic's only partition."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._admin = AdminClient({"bootstrap.servers": bootstrap})
        self._at = TopicPartition(topic, 0)

    def offset(self, isolation: IsolationLevel) -> int:
        latest = {self._at: OffsetSpec.latest()}  # type: ignore[no-untyped-call]
        answers = self._admin.list_offsets(latest, isolation_level=isolation, request_timeout=10)
        return int(answers[self._at].result().offset)

    def in_transaction(self) -> bool:
        """True if the partition holds records that are neither committed nor aborted."""
        committed = self.offset(IsolationLevel.READ_COMMITTED)
        return committed < self.offset(IsolationLevel.READ_UNCOMMITTED)


def test_a_newcomer_that_has_nothing_to_publish_yet_ends_the_older_one_too(
    simulate: Simulate, to_topic: Flags, kafka: str, topic: str
) -> None:
    upstream = simulate(SimulatorSettings(rate=500))
    with Relay(*to_topic(upstream)) as first:
        wait_for_progress(first)
        nothing = [*ingest_flags("http://127.0.0.1:1/v2/stream", "now"), *kafka_flags(kafka, topic)]
        with Relay(*nothing) as second:
            assert first.wait(60) == 4, first.log
            assert restarts(first) == 0
            assert second.stop() == 0
    verdict = judge_topic(kafka, topic, upstream.journal(), since_ms(upstream), finished=False)
    assert verdict.flawless, f"{verdict}\n{first.log}"


def test_of_three_started_at_once_one_is_left(
    simulate: Simulate, to_topic: Flags, kafka: str, topic: str
) -> None:
    upstream = simulate(SimulatorSettings(rate=500))
    with ExitStack() as stack:
        relays = [stack.enter_context(Relay(*to_topic(upstream))) for _ in range(3)]

        def living() -> list[Relay]:
            return [relay for relay in relays if relay.process.poll() is None]

        until(lambda: len(living()) == 1, "the others to leave", 60)
        (left,) = living()
        wait_for_progress(left)
        assert left.stop() == 0
        assert sorted(relay.wait() for relay in relays) == [0, 4, 4]
    for relay in relays:
        assert restarts(relay) == 0, relay.log
        assert "Traceback" not in relay.log
    verdict = judge_topic(kafka, topic, upstream.journal(), since_ms(upstream), finished=False)
    assert verdict.flawless, f"{verdict}\n{left.log}"


def test_a_publisher_that_slept_through_a_takeover_changes_nothing_when_it_wakes(
    simulate: Simulate, to_topic: Flags, kafka: str, topic: str
) -> None:
    """The zombie of KIP-98: it fell asleep with an open transaction."""
    upstream = simulate(SimulatorSettings(rate=500))
    with Relay(*to_topic(upstream), "--hangTimeout=120s") as first:
        first.wait_ready()
        wait_for_progress(first)
        fall_asleep_in_transaction(first, Ends(kafka, topic))
        with Relay(*to_topic(upstream)) as second:
            second.wait_ready()
            wait_for_progress(second)
            first.child("publisher").resume()
            assert first.wait(60) == 4
            wait_for_progress(second)
            assert second.stop() == 0
    assert restarts(first) == 0
    verdict = judge_topic(kafka, topic, upstream.journal(), since_ms(upstream), finished=False)
    assert verdict.flawless, f"{verdict}\n{first.log}\n{second.log}"


def test_a_transaction_that_the_broker_ended_is_no_takeover(
    simulate: Simulate, to_topic: Flags, kafka: str, topic: str
) -> None:
    """The broker checks for expired transactions every 10 s."""
    upstream = simulate(SimulatorSettings(rate=500))
    short = ["--kafka.commitInterval=1s", "--kafka.property=transaction.timeout.ms=2000"]
    with Relay(*to_topic(upstream), *short, "--hangTimeout=120s") as relay:
        relay.wait_ready()
        wait_for_progress(relay)
        ends = Ends(kafka, topic)
        fall_asleep_in_transaction(relay, ends)
        until(lambda: not ends.in_transaction(), "the broker to end the transaction", 60)
        relay.child("publisher").resume()
        relay.until(restarted(relay, 1), "the restart", 60)
        relay.wait_for("longer than transaction.timeout.ms")
        relay.wait_ready()
        wait_for_progress(relay)
        assert relay.stop() == 0
        assert restarts(relay) == 1
    verdict = judge_topic(kafka, topic, upstream.journal(), since_ms(upstream), finished=False)
    assert verdict.flawless, f"{verdict}\n{relay.log}"


def fall_asleep_in_transaction(relay: Relay, ends: Ends) -> None:
    """Stop the publisher (SIGSTOP) while it has a transaction open."""
    publisher = relay.child("publisher")

    def asleep() -> bool:
        publisher.suspend()
        until(lambda: publisher.status() == psutil.STATUS_STOPPED, "it to stop")
        if not ends.in_transaction():
            publisher.resume()
            return False
        return True

    relay.until(asleep, "an open transaction of the stopped publisher", 30)
