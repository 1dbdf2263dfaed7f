"""The relay in its default configuration against the service's own SSE layer, over TLS.

The row `real-service` of the fault matrix adds kills, cuts and restarts.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import orjson
import pytest

from tests.harness.eventstreams import EventStreams, UpstreamTopics
from tests.harness.oracle import judge, published_count
from tests.harness.relay import Relay

TRIES = int(os.environ.get("DEAF_TRIES", "2"))
"""Each with its own topics, which have delivered nothing new."""
HISTORY_EVENTS = 3000
HOUR_MS = 3_600_000
WAIT_SECONDS = 60.0


def now_ms() -> int:
    """The wall clock, ms since 1970."""
    return time.time_ns() // 1_000_000


@pytest.fixture
def topics(kafka: str) -> Iterator[UpstreamTopics]:
    """Both topics hold history that ends an hour ago."""
    with UpstreamTopics(kafka) as both:
        begin_ms = now_ms() - HOUR_MS - HISTORY_EVENTS
        for topic in (both.eqiad, both.codfw):
            both.produce(topic, *range(begin_ms, begin_ms + HISTORY_EVENTS))
        yield both


@pytest.fixture
def service(kafka: str, topics: UpstreamTopics) -> Iterator[EventStreams]:
    """Serves only these topics."""
    with EventStreams(kafka, [topics.stream]) as upstream:
        yield upstream


def flags(service: EventStreams, topics: UpstreamTopics, folder: Path) -> list[str]:
    """Without --since: the relay starts from now."""
    return [
        "ingest",
        f"--upstream.url={service.tls_url}",
        f"--upstream.ca={service.ca}",
        f"--upstream.stream={topics.stream}",
        "--metricsHost=127.0.0.1",
        "--metricsPort=0",
        "--file.enable",
        f"--file.publishDir={folder}",
    ]


def finish(relay: Relay, folder: Path, topics: UpstreamTopics) -> None:
    """All events since the start are published, in order, and none of the history."""
    new = topics.journal()[2 * HISTORY_EVENTS :]
    relay.until(lambda: published_count(folder) >= len(new), "all of it", WAIT_SECONDS)
    assert relay.stop() == 0
    # An event unknown to the oracle must not be there.
    verdict = judge(folder, new, 0)
    assert verdict.flawless, f"{verdict}\n{relay.log}"


def test_a_start_from_now_publishes_what_is_new_and_nothing_old(
    service: EventStreams, topics: UpstreamTopics, folder: Path
) -> None:
    with Relay(*flags(service, topics, folder)) as relay:
        relay.wait_for("connected to")
        topics.produce(topics.eqiad)
        topics.produce(topics.codfw)

        def heard() -> bool:
            # An event that arrives in the deaf time is delivered with the next one.
            topics.produce(topics.eqiad)
            topics.produce(topics.codfw)
            return published_count(folder) > 0

        relay.until(heard, "the first delivered event", WAIT_SECONDS)
        finish(relay, folder, topics)


@pytest.mark.parametrize("_number", range(TRIES))
def test_nothing_that_comes_in_the_deaf_time_is_lost(
    service: EventStreams, topics: UpstreamTopics, folder: Path, _number: int
) -> None:
    """A arrives while the connection is deaf, and B, later than the overlap, on the same connection."""
    with Relay(*flags(service, topics, folder), "--upstream.overlap=1s") as relay:
        relay.wait_for("connected to")
        topics.produce(topics.codfw)
        # Dated after its arrival: waiting for longer than the overlap would show the same.
        dates = count(now_ms() + 5000, 100)

        def heard() -> bool:
            topics.produce(topics.codfw, next(dates))
            return published_count(folder) > 0

        relay.until(heard, "the first delivered event", WAIT_SECONDS)
        service.restart()
        topics.produce(topics.codfw, next(dates))
        finish(relay, folder, topics)


def test_a_topic_that_the_service_has_no_more_is_left_out_and_taken_up_again(
    service: EventStreams, topics: UpstreamTopics, folder: Path
) -> None:
    """A new connection is refused with a 404 then, although the other topic exists."""
    arguments = [*flags(service, topics, folder), "--since=-2h", "--idleTimeout=2s"]
    wanted = 2 * HISTORY_EVENTS
    with Relay(*arguments) as relay:
        relay.until(lambda: published_count(folder) >= wanted, "the history", WAIT_SECONDS)
        topics.delete(topics.codfw)
        service.cut_all()
        relay.wait_for(f"does not have {topics.codfw} at present")
        topics.produce(topics.eqiad)
        relay.until(lambda: published_count(folder) > wanted, "the other topic", WAIT_SECONDS)
        assert relay.stop() == 0
    # Each start is refused in the same way.
    with Relay(*arguments) as relay:
        relay.wait_for(f"does not have {topics.codfw} at present")
        topics.produce(topics.eqiad)
        relay.until(lambda: published_count(folder) > wanted + 1, "the other topic", WAIT_SECONDS)
        topics.create(topics.codfw)
        relay.wait_for(f"has {topics.codfw} again")
        topics.produce(topics.codfw)
        relay.until(lambda: published_count(folder) > wanted + 2, "the topic", WAIT_SECONDS)
        assert relay.stop() == 0
    names = Counter(
        orjson.loads(file.read_bytes())["meta"]["topic"] for file in folder.glob("[0-9]*/*.json")
    )
    assert names == {topics.eqiad: HISTORY_EVENTS + 2, topics.codfw: HISTORY_EVENTS + 1}
