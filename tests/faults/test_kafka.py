"""Kill and freeze relay and broker at any time: a reader of committed records sees each event once."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import psutil
import pytest
from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    AdminClient,
    OffsetSpec,
)

from pleiades.simulator.server import Stats
from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.broker import Broker
from tests.harness.oracle import judge_topic
from tests.harness.relay import Relay, ingest_flags, kafka_flags, since_ms
from tests.harness.waiting import until

Simulate = Callable[[SimulatorSettings], Simulator]
Flags = Callable[[Simulator], list[str]]

LIVES = 10
"""Of the parent: the pauses between restarts grow within each."""
CHILD_KILLS = 40
PARENT_KILLS = 5
RATE = 2000

PUBLISHED = "pleiades_kafka_publish_events_total"


def published(relay: Relay) -> float:
    return relay.metric(PUBLISHED)


def restarts(relay: Relay) -> int:
    return relay.log.count("starting all processes again")


def published_more(relay: Relay, than: float) -> bool:
    return published(relay) > than


def restarted(relay: Relay, times: int) -> bool:
    return restarts(relay) == times


def appended_more(stats: Stats, than: int) -> bool:
    return stats.events_appended_total > than


def wait_for_progress(relay: Relay) -> None:
    relay.until(partial(published_more, relay, published(relay)), "new events", 60)


def wait_for_events(upstream: Simulator, count: int) -> None:
    goal = upstream.stats().events_appended_total + count
    upstream.wait_until(lambda stats: stats.events_appended_total > goal, 30)


# ---- the relay is killed ----


@pytest.mark.parametrize(
    "partitioning",
    [[], ["--kafka.partitions=3", "--kafka.keyField=wiki"]],
    ids=["1 partition", "3 partitions by wiki"],
)
def test_40_kills_of_children_and_5_of_the_parent_under_load(
    simulate: Simulate, kafka: str, topic: str, partitioning: list[str]
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    upstream = simulate(SimulatorSettings(rate=RATE, faults=Faults(cut_every_seconds=2)))
    # Three seconds must do for what a reconnect repeats.
    flags = [*ingest_flags(upstream.url, since_ms(upstream)), *kafka_flags(kafka, topic)]
    flags += ["--upstream.overlap=3s", "--dedup.window=3s", *partitioning]
    killed: list[str] = []
    for life in range(LIVES):
        with Relay(*flags) as relay:
            relay.wait_ready()
            for number in range(CHILD_KILLS // LIVES):
                relay.until(partial(restarted, relay, number), f"restart {number}", 60)
                # Every other one may hit a start: one that reads back, or fences.
                if number % 2 == 1:
                    wait_for_progress(relay)
                wait_for_events(upstream, chance.randrange(RATE // 4))
                victim = chance.choice(until(relay.children, "children"))
                killed.append(relay.role(victim))
                victim.kill()
            relay.until(partial(restarted, relay, CHILD_KILLS // LIVES), "the last restart", 60)
            if life % 2 == 0:
                wait_for_events(upstream, chance.randrange(RATE // 2))
                relay.signal(signal.SIGKILL)
                killed.append("parent")
            else:
                assert relay.stop() == 0
    assert killed.count("parent") == PARENT_KILLS
    assert len(killed) == PARENT_KILLS + CHILD_KILLS
    verdict = judge_topic(kafka, topic, upstream.journal(), since_ms(upstream), finished=False)
    print(f"seed {seed}: {verdict}")  # noqa: T201
    assert verdict.flawless, f"seed {seed}, killed {killed}: {verdict}"


# ---- the broker is killed, or stands still ----


class Ends:
    """Where the only partition of a topic ends."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._admin = AdminClient({"bootstrap.servers": bootstrap})
        self._at = TopicPartition(topic, 0)

    def offset(self, isolation: IsolationLevel) -> int:
        latest = {self._at: OffsetSpec.latest()}  # type: ignore[no-untyped-call]
        answers = self._admin.list_offsets(latest, isolation_level=isolation, request_timeout=10)
        return int(answers[self._at].result().offset)

    def in_transaction(self) -> bool:
        """Something lies there that is neither committed nor aborted."""
        committed = self.offset(IsolationLevel.READ_COMMITTED)
        return committed < self.offset(IsolationLevel.READ_UNCOMMITTED)


def resident_bytes(relay: Relay) -> int:
    family = [psutil.Process(relay.process.pid), *relay.children()]
    return sum(process.memory_info().rss for process in family)


def test_the_broker_killed_three_times_in_mid_transaction(
    simulate: Simulate, own_broker: Broker
) -> None:
    upstream = simulate(SimulatorSettings(rate=RATE, faults=Faults(cut_every_seconds=2)))
    source = ingest_flags(upstream.url, since_ms(upstream))
    target = kafka_flags(own_broker.bootstrap, "events")
    long_transactions = ["--kafka.commitInterval=500ms", "--upstream.overlap=3s"]
    with Relay(*source, *target, *long_transactions) as relay:
        relay.wait_ready()
        for _ in range(3):
            wait_for_progress(relay)
            until(Ends(own_broker.bootstrap, "events").in_transaction, "a transaction")
            own_broker.kill()
            own_broker.start()
            wait_for_progress(relay)
        assert relay.stop() == 0
    assert "Traceback" not in relay.log
    assert " hangs" not in relay.log
    verdict = judge_topic(
        own_broker.bootstrap, "events", upstream.journal(), since_ms(upstream), finished=False
    )
    print(f"{restarts(relay)} restarts; {verdict}")  # noqa: T201
    assert verdict.flawless, f"{verdict}\n{relay.log}"


def test_a_broker_that_stands_still_for_45_seconds_is_waited_for(
    simulate: Simulate, own_broker: Broker
) -> None:
    """The long one: for 45 s the upstream could send, and the reader must not take it."""
    upstream = simulate(SimulatorSettings(rate=RATE, faults=Faults(cut_every_seconds=0)))
    source = ingest_flags(upstream.url, since_ms(upstream))
    with Relay(*source, *kafka_flags(own_broker.bootstrap, "events")) as relay:
        relay.wait_ready()
        wait_for_progress(relay)
        own_broker.suspend()
        frozen, greatest = time.monotonic(), 0

        def stood_still() -> bool:
            nonlocal greatest
            greatest = max(greatest, resident_bytes(relay))
            return time.monotonic() - frozen > 45

        relay.until(stood_still, "45 s", 60)
        relay.wait_for("can't commit: .*(Nothing is lost|from the durable position)", 1)
        assert relay.status("/readyz") == 503
        stats = upstream.stats()
        # What the reader took before it stopped, and what the kernel holds, is a few megabytes.
        assert stats.events_appended_total - stats.events_served_total > 45 * RATE / 2
        own_broker.resume()
        relay.until(
            lambda: published(relay) > stats.events_appended_total, "what was waiting upstream", 60
        )
        relay.wait_ready()
        assert relay.stop() == 0
    assert " hangs" not in relay.log
    verdict = judge_topic(
        own_broker.bootstrap, "events", upstream.journal(), since_ms(upstream), finished=False
    )
    print(f"{restarts(relay)} restarts; RSS at most {greatest / 1e6:.0f} MB; {verdict}")  # noqa: T201
    assert verdict.flawless, f"{verdict}\n{relay.log}"
    assert greatest < 300e6


# ---- two at once, and transactions that last too long ----


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
    """The zombie of KIP-98: its transaction was open when it fell asleep."""
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
    """The broker looks for such transactions every 10 s."""
    upstream = simulate(SimulatorSettings(rate=500))
    short = ["--kafka.commitInterval=1s", "--kafka.property=transaction.timeout.ms=2000"]
    with Relay(*to_topic(upstream), *short, "--hangTimeout=120s") as relay:
        relay.wait_ready()
        wait_for_progress(relay)
        ends = Ends(kafka, topic)
        fall_asleep_in_transaction(relay, ends)
        until(lambda: not ends.in_transaction(), "the broker to end the transaction", 60)
        relay.child("publisher").resume()
        relay.until(partial(restarted, relay, 1), "the restart", 60)
        relay.wait_for("longer than transaction.timeout.ms")
        relay.wait_ready()
        wait_for_progress(relay)
        assert relay.stop() == 0
        assert restarts(relay) == 1
    verdict = judge_topic(kafka, topic, upstream.journal(), since_ms(upstream), finished=False)
    assert verdict.flawless, f"{verdict}\n{relay.log}"


def fall_asleep_in_transaction(relay: Relay, ends: Ends) -> None:
    """SIGSTOP the publisher at a moment at which it has a transaction open."""
    publisher = relay.child("publisher")

    def asleep() -> bool:
        publisher.suspend()
        until(lambda: publisher.status() == psutil.STATUS_STOPPED, "it to stand still")
        if not ends.in_transaction():
            publisher.resume()
            return False
        return True

    relay.until(asleep, "a transaction that it sleeps in", 30)
