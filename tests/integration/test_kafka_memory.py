"""End to end: a topic's memory with other lengths, new starts, the broker's time, wrong clocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.broker import topic_records
from tests.harness.clock import Clock
from tests.harness.oracle import judge_topic
from tests.harness.relay import Relay, since_ms
from tests.integration.test_kafka import (
    PUBLISHED,
    make_topic,
    real,
    until_published,
)

Simulate = Callable[[SimulatorSettings], Simulator]
Flags = Callable[[Simulator], list[str]]

NO_CUTS = Faults(cut_every_seconds=0)
ERRORS = "pleiades_kafka_writer_errors_total"
DROPPED = "pleiades_duplicate_events_dropped_total"


def test_other_lengths_and_new_starts_double_nothing(
    simulate: Simulate, to_topic: Flags, kafka: str, topic: str
) -> None:
    upstream = simulate(SimulatorSettings(rate=300, history_events=3_000, faults=NO_CUTS))
    short = ["--upstream.overlap=100ms", "--dedup.window=500ms"]
    with Relay(*to_topic(upstream), *short) as relay:
        until_published(relay, 3_000)
        assert relay.stop() == 0
    for flags in (
        # Longer ones: they reach back before the window that the topic was told to keep.
        ["--upstream.overlap=1m", "--dedup.window=10m"],
        ["--no-resume", f"--since={since_ms(upstream)}", *short],
        ["--no-resume", f"--since={since_ms(upstream)}"],
    ):
        before = len(topic_records(kafka, topic))
        with Relay(*to_topic(upstream), *flags) as relay:
            relay.until(
                lambda before=before: before + relay.metric(PUBLISHED) >= real(upstream) - 300,  # type: ignore[misc]  # used at once
                "it to catch up",
                60,
            )
            assert relay.stop() == 0
    verdict = judge_topic(kafka, topic, upstream.journal(), since_ms(upstream), finished=False)
    assert not verdict.lost + verdict.doubled, f"{verdict}\n{relay.log}"


def test_the_brokers_time_does_not_matter(
    simulate: Simulate, to_topic: Flags, kafka: str, topic: str, tmp_path: Path
) -> None:
    """The records carry it, and the clock of the relay's machine is five minutes ahead."""
    make_topic(kafka, topic, message_timestamp_type="LogAppendTime")
    clock = Clock(tmp_path)
    clock.set_ahead(300)
    upstream = simulate(SimulatorSettings(rate=0, max_events=400, history_events=400))
    with Relay(*to_topic(upstream), environment=clock.environment) as relay:
        until_published(relay, real(upstream))
        assert relay.stop() == 0
    with Relay(*to_topic(upstream), environment=clock.environment) as relay:
        relay.wait_for(rf"read {real(upstream)} events of the topic back")
        relay.until(lambda: relay.metric(DROPPED) > 0, "repeats", 30)
        assert relay.metric(PUBLISHED) == 0
        assert relay.stop() == 0
    verdict = judge_topic(kafka, topic, upstream.journal(), since_ms(upstream))
    assert verdict.flawless, f"{verdict}\n{relay.log}"


@pytest.mark.parametrize(
    ("ahead_seconds", "limit"),
    [(7_200, {}), (-7_200, {"message_timestamp_before_max_ms": "3600000"})],
)
def test_a_wrong_clock_is_named_and_waited_for(
    simulate: Simulate,
    to_topic: Flags,
    kafka: str,
    topic: str,
    tmp_path: Path,
    ahead_seconds: int,
    limit: dict[str, str],
) -> None:
    make_topic(kafka, topic, **limit)
    clock = Clock(tmp_path)
    upstream = simulate(SimulatorSettings(rate=100, faults=NO_CUTS))
    with Relay(*to_topic(upstream), environment=clock.environment) as relay:
        until_published(relay, 100)
        clock.set_ahead(ahead_seconds)
        said = relay.wait_for(r"can't publish: (this machine's clock says .*)", 60)
        side = "ahead of" if ahead_seconds > 0 else "behind"
        assert "Set the clock of the machine that is wrong" in said[1]
        # Rounded down: the newest event is a moment old.
        assert any(f"It is {minutes} min {side}" in said[1] for minutes in (119, 120)) or (
            f"It is 2 h {side}" in said[1]
        ), said[1]
        relay.until(lambda: relay.metric(ERRORS) >= 3, "several retries", 60)
        waiting = relay.metric(PUBLISHED)
        clock.set_ahead(0)
        until_published(relay, int(waiting) + 50, 90)
        relay.wait_for("Kafka takes events again")
        assert relay.metric("pleiades_process_restarts_total") == 0, relay.log
        assert relay.stop() == 0
    verdict = judge_topic(kafka, topic, upstream.journal(), since_ms(upstream), finished=False)
    assert verdict.flawless, f"{verdict}\n{relay.log}"
