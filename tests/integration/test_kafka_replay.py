"""A replay and an ingest in one topic: neither takes the other's records for its own."""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka.admin import AdminClient

from pleiades.replay.arguments import arguments_from, replay_parser
from pleiades.simulator.settings import Disorder, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from pleiades.sinks.base import destination_of
from tests.harness.relay import Relay, ingest_flags, kafka_flags, replay_flags

Simulate = Callable[[SimulatorSettings], Simulator]
PUBLISHED = "pleiades_kafka_publish_events_total"
LIVE, OLD = 500, 3000


def test_each_reads_back_what_is_its_own(simulate: Simulate, kafka: str, topic: str) -> None:
    upstream = simulate(
        SimulatorSettings(
            rate=500,
            history_events=OLD,
            max_events=OLD + LIVE,
            disorder=Disorder(back_years_rate=0.0),
        )
    )
    destination = kafka_flags(kafka, topic)
    live = [*ingest_flags(upstream.url, upstream.started_ms), *destination]
    first = min(entry.timestamp for entry in upstream.journal())
    old = [*replay_flags(upstream.url, first, upstream.started_ms - 1000), *destination]
    with Relay(*live) as ingest:
        ingest.until(lambda: ingest.metric(PUBLISHED) >= LIVE * 9 / 10, "the live events", 30)
        assert ingest.stop() == 0
        (published,) = ingest.wait_for(r"stopped: (\d+) events published").groups()
    with Relay(*old, "--allow-gap", "--limit=1000") as replay:
        assert replay.wait() == 5, replay.log
    with Relay(*old, "--allow-gap") as replay:
        (own,) = replay.wait_for(r"read (\d+) events of the topic back").groups()
        assert replay.wait() in (0, 6), replay.log
    assert int(own) == 1000, "none of the ingest's records"
    with Relay(*live) as ingest:
        (read,) = ingest.wait_for(r"read (\d+) events of the topic back").groups()
        assert ingest.stop() == 0
    assert int(read) == int(published), "none of the replay's records"


def test_the_look_before_the_start_makes_nothing(kafka: str, topic: str) -> None:
    flags = ["--from=1", "--to=2", *kafka_flags(kafka, topic + "-unmade")]
    told = arguments_from(vars(replay_parser("").parse_args(flags)))
    assert destination_of(told.settings).stored_checkpoint() is None
    topics = AdminClient({"bootstrap.servers": kafka}).list_topics(timeout=10).topics
    assert topic + "-unmade" not in topics


def test_what_is_finished_is_known_without_the_upstream(
    simulate: Simulate, kafka: str, topic: str
) -> None:
    upstream = simulate(SimulatorSettings(history_events=2000, history_seconds=3600.0))
    times = sorted(entry.timestamp for entry in upstream.journal())
    arguments = [
        *replay_flags(upstream.url, times[500], times[1500]),
        *kafka_flags(kafka, topic),
        "--allow-gap",
    ]
    with Relay(*arguments) as replay:
        assert replay.wait() == 0, replay.log
    upstream.stop()
    with Relay(*arguments) as replay:
        assert replay.wait() == 0, replay.log
        replay.wait_for("all of this is published already")
