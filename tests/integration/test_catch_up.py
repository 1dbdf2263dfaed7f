"""The position is lost while a start from an earlier time catches up with what is published already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.harness.destinations import Destination, Directory, Topic
from tests.harness.relay import Relay, ingest_flags, replay_flags
from tests.harness.script import Ending, Stop, Stream
from tests.harness.tape import HOME, OTHER, Tape

HOUR_MS = 3_600_000
EVENTS = 300
"""Of each topic, spread over an hour."""
CAUGHT_UP = EVENTS // 4
"""So many events of the first topic are published by the start that loses its position."""
WAIT_SECONDS = 60.0


@pytest.fixture
def upstream() -> Iterator[Tape]:
    with Tape(1) as tape:
        for topic in (HOME, OTHER):
            for number in range(EVENTS):
                tape.write(topic, begin_ms(tape) + HOUR_MS * number // EVENTS)
        yield tape


def begin_ms(upstream: Tape) -> int:
    return upstream.started_ms - HOUR_MS


def middle_ms(upstream: Tape) -> int:
    return upstream.started_ms - HOUR_MS // 2


def relay_into(destination: Destination, upstream: Tape, since_ms: int, *more: str) -> Relay:
    return Relay(*ingest_flags(upstream.url, since_ms), *destination.flags, *more)


def interrupted_catch_up(destination: Destination, upstream: Tape) -> None:
    """Publish the second half of all events, then a part of the first half."""
    with relay_into(destination, upstream, middle_ms(upstream)) as relay:
        relay.until(lambda: destination.count() >= EVENTS, "the second half", WAIT_SECONDS)
        assert relay.stop() == 0, relay.log
    # The start reconnects once, after it has seen which topics there are.
    upstream.answer(*[Stream(Stop(CAUGHT_UP, 0, Ending.SILENT))] * 2)
    with relay_into(destination, upstream, begin_ms(upstream), "--resume=false") as relay:
        published = EVENTS + CAUGHT_UP
        relay.until(lambda: destination.count() >= published, "the catch-up", WAIT_SECONDS)
        assert relay.stop() == 0, relay.log
    assert destination.count() == published
    assert not upstream.unanswered()


def relay_to_the_end(destination: Destination, upstream: Tape, *flags: str) -> str:
    """Start again, and wait for new events; returns the log."""
    for topic in (HOME, OTHER):
        upstream.write(topic)
    newest = {upstream.values()[-1], upstream.values()[-2]}
    with relay_into(destination, upstream, begin_ms(upstream), *flags) as relay:
        relay.until(lambda: newest <= {*destination.values()}, "new events", WAIT_SECONDS)
        assert relay.stop() == 0, relay.log
    return relay.log


@pytest.mark.parametrize("flags", [(), ("--resume=false",)], ids=["resumed", "a new start"])
def test_in_a_directory_it_begins_again_at_since(
    upstream: Tape, folder: Path, flags: tuple[str, ...]
) -> None:
    destination = Directory(folder)
    interrupted_catch_up(destination, upstream)
    (folder / ".pleiades" / "checkpoint-recentchange").unlink()
    relay_to_the_end(destination, upstream, *flags)
    assert Counter(destination.values()) == Counter(upstream.values())


def test_in_a_topic_a_replay_adds_what_is_missing(upstream: Tape, kafka: str, topic: str) -> None:
    destination = Topic(kafka, topic)
    interrupted_catch_up(destination, upstream)
    group, admin = f"pleiades-{topic}-recentchange", AdminClient({"bootstrap.servers": kafka})
    admin.delete_consumer_groups([group])[group].result()
    said = relay_to_the_end(destination, upstream)
    assert "pleiades replay --skipExisting" in said
    found = Counter(destination.values())
    assert not found - Counter(upstream.values()), "an event was published twice"
    replay = replay_flags(upstream.url, begin_ms(upstream), middle_ms(upstream))
    with Relay(*replay, *destination.flags, "--skipExisting") as relay:
        assert relay.wait(WAIT_SECONDS) == 0, relay.log
    assert Counter(destination.values()) == Counter(upstream.values())
    destination.close()
