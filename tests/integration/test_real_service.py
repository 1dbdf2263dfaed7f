"""The real command against the SSE layer of the real EventStreams, over TLS, into files."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pleiades.simulator.journal import JournalEntry
from tests.harness.eventstreams import EventStreams, UpstreamTopics
from tests.harness.oracle import judge, published_count
from tests.harness.relay import Relay

WAIT_SECONDS = 60
HOUR_MS = 3_600_000
HISTORY_EVENTS = 3_000
DEAF_SECONDS = 2.0
"""A topic asked for from past its end hears again after half a second."""
TICK_SECONDS = 0.05
ROLES = ("reader", "parser-0", "publisher")


def now_ms() -> int:
    """The wall clock, ms since 1970."""
    return time.time_ns() // 1_000_000


@pytest.fixture
def topics(kafka: str) -> Iterator[UpstreamTopics]:
    """Both hold history that ends an hour ago."""
    with UpstreamTopics(kafka) as both:
        begin = now_ms() - HOUR_MS - HISTORY_EVENTS
        for topic in (both.eqiad, both.codfw):
            both.produce(topic, *range(begin, begin + HISTORY_EVENTS))
        yield both


@pytest.fixture
def service(kafka: str, topics: UpstreamTopics) -> Iterator[EventStreams]:
    """Serves these topics alone."""
    with EventStreams(kafka, [topics.stream]) as upstream:
        yield upstream


def flags(service: EventStreams, topics: UpstreamTopics, folder: Path) -> list[str]:
    """From now on, with a short overlap."""
    return [
        "ingest",
        f"--upstream.url={service.tls_url}",
        f"--upstream.stream={topics.stream}",
        f"--upstream.ca={service.ca}",
        "--upstream.overlap=1s",
        "--file.enable",
        f"--file.publishDir={folder}",
        "--metricsHost=127.0.0.1",
        "--metricsPort=0",
    ]


def finish(relay: Relay, folder: Path, expected: list[JournalEntry]) -> str:
    """Wait until as many are published as were expected; whether it is these, and in order.

    Returns:
        What was counted.
    """
    relay.until(
        lambda: published_count(folder) >= len(expected),
        f"{len(expected)} published events",
        WAIT_SECONDS,
    )
    assert relay.stop() == 0
    # What was there before the start is unknown to the oracle, and wrong if published.
    verdict = judge(folder, expected, 0)
    assert verdict.flawless, f"{verdict}\n{relay.log}"
    return str(verdict)


def test_from_now_on_publishes_all_that_is_new_and_nothing_old(
    service: EventStreams, topics: UpstreamTopics, folder: Path
) -> None:
    old = len(topics.journal())
    with Relay(*flags(service, topics, folder)) as relay:
        relay.wait_for("connected to")
        for _ in pace(DEAF_SECONDS):
            topics.produce(topics.eqiad)
            topics.produce(topics.codfw)
        finish(relay, folder, topics.journal()[old:])


@pytest.mark.parametrize("_attempt", range(3))
def test_what_a_deaf_topic_missed_is_published(
    service: EventStreams, topics: UpstreamTopics, folder: Path, _attempt: int
) -> None:
    """A falls into the time in which the service does not hear the topic, B into the time after."""
    old = len(topics.journal())
    with Relay(*flags(service, topics, folder)) as relay:
        relay.wait_for("connected to")
        topics.produce(topics.eqiad)
        for _ in pace(DEAF_SECONDS):
            # The other topic is busy meanwhile.
            topics.produce(topics.codfw)
        topics.produce(topics.eqiad)
        service.cut_all()
        finish(relay, folder, topics.journal()[old:])


def test_kills_cuts_and_restarts(
    service: EventStreams,
    topics: UpstreamTopics,
    folder: Path,
    record_property: Callable[[str, object], None],
) -> None:
    said = chaos(service, topics, folder, 20, 400, {"kill": 8, "cut": 5, "restart": 1})
    record_property("the real service with kills, cuts and restarts", said)


def chaos(
    service: EventStreams,
    topics: UpstreamTopics,
    folder: Path,
    seconds: float,
    rate: int,
    counts: dict[str, int],
) -> str:
    """Spread faults evenly over a time in which events are produced.

    Args:
        rate: events per second.
        counts: how often to `kill` a process, to `cut` all connections, to `restart` the service.

    Returns:
        What was counted.
    """
    chance = random.Random(1)
    old = len(topics.journal())
    faults = [fault for fault, count in counts.items() for _ in range(count)]
    chance.shuffle(faults)
    with Relay(*flags(service, topics, folder)) as relay:
        relay.wait_for("connected to")
        producing = threading.Thread(target=produce, args=(topics, rate, seconds, chance.random()))
        producing.start()
        try:
            for fault in faults:
                for _ in pace(seconds / len(faults)):
                    pass
                if fault == "kill":
                    kill(relay, chance.choice(ROLES))
                elif fault == "cut":
                    service.cut_all()
                else:
                    service.restart()
        finally:
            producing.join(seconds + WAIT_SECONDS)
        said = finish(relay, folder, topics.journal()[old:])
    return f"{said}; {counts}"


def kill(relay: Relay, role: str) -> None:
    # The parent may end it first, because another one was killed.
    with suppress(psutil.NoSuchProcess):
        relay.child(role).kill()


def produce(topics: UpstreamTopics, rate: int, seconds: float, seed: float) -> None:
    """Events of both topics at a steady rate; their timestamps collide and run backwards."""
    chance = random.Random(seed)
    for _ in pace(seconds):
        for topic, share in ((topics.eqiad, 0.85), (topics.codfw, 0.15)):
            count = round(rate * share * TICK_SECONDS)
            topics.produce(topic, *[now_ms() - chance.choice((0, 0, 1, 30)) for _ in range(count)])


def pace(seconds: float) -> Iterator[None]:
    """Ticks of TICK_SECONDS, so many as make up the time."""
    begun = time.monotonic()
    for tick in range(round(seconds / TICK_SECONDS)):
        time.sleep(max(0.0, begun + tick * TICK_SECONDS - time.monotonic()))
        yield
