"""The real command with a real Kafka: published records, resumption, dead letters."""

from __future__ import annotations

import random
import re
import time
from collections import defaultdict
from collections.abc import Callable

import orjson
import pytest
import requests
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    AdminClient,
    NewTopic,
)

from pleiades.core.decoding import decode
from pleiades.core.event import Event, Frames
from pleiades.core.framing import Framer
from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from pleiades.sinks.kafka.offset_metadata import Stored, read_stored
from tests.harness.answers import Server
from tests.harness.authority import authority
from tests.harness.broker import topic_records
from tests.harness.oracle import judge_topic
from tests.harness.relay import Relay, ingest_flags, kafka_flags, since_ms

Simulate = Callable[[SimulatorSettings], Simulator]
Flags = Callable[[Simulator], list[str]]
ToTopic = Callable[[Simulator], list[str]]

PUBLISHED = "pleiades_kafka_publish_events_total"
NO_CUTS = Faults(cut_every_seconds=0)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n:ok\n\n"
START_MS = 1_790_000_000_000


def group(topic: str) -> str:
    return f"pleiades-{topic}-recentchange"


def stored(kafka: str, topic: str) -> Stored:
    """The position as a reader of the group's offset sees it."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": group(topic)})
    (found,) = consumer.committed([TopicPartition(topic, 0)], 10)
    consumer.close()
    assert found.metadata, "nothing is committed"
    return read_stored({(topic, 0): found.metadata}, (topic, 0))


def forget_position(kafka: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})
    for done in admin.delete_consumer_groups([group(topic)], request_timeout=10).values():
        done.result()


def delete_topic(kafka: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})
    for done in admin.delete_topics([topic], request_timeout=10).values():
        done.result()


def make_topic(kafka: str, topic: str, **configuration: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})
    new = NewTopic(topic, 1, 1, config={k.replace("_", "."): v for k, v in configuration.items()})
    for made in admin.create_topics([new]).values():
        made.result(10)


def until_published(relay: Relay, count: int, seconds: float = 60) -> None:
    relay.until(lambda: relay.metric(PUBLISHED) >= count, f"{count} events", seconds)


def real(upstream: Simulator) -> int:
    """The number of events in upstream that are not canaries."""
    return sum(not entry.canary for entry in upstream.journal())


def sent_by(upstream: Simulator) -> list[Event]:
    """All of upstream's events as a client receives them, with the ids of one connection."""
    agent = {"User-Agent": "test (https://example.org)"}
    count = len(upstream.journal())
    framer, events = Framer(), list[Event]()
    url = f"{upstream.url}/recentchange?since={since_ms(upstream) - 10**9}"
    trusted = str(authority().ca)
    with requests.get(url, headers=agent, stream=True, timeout=10, verify=trusted) as answer:
        received = 0
        for chunk in answer.iter_content(None):
            frames = Frames(0, 0, framer.feed(chunk), b"", 0, 0)
            batch = decode(frames, keep_canaries=False).batch
            events += [event for event in batch.events if not event.reason]
            received += len(batch.events)
            if received >= count:
                return events
    raise AssertionError(f"{received} of {count} events came")


def test_what_librdkafka_reports_is_taken_although_nothing_comes(
    simulate: Simulate, to_topic: Flags
) -> None:
    """Statistics that nobody fetches accumulate: 7 MB an hour for an idle stream."""
    with Relay(*to_topic(simulate(SimulatorSettings()))) as relay:
        relay.wait_ready()
        relay.until(
            lambda: any("broker_rtt" in name for name, _ in relay.metrics()), "statistics", 60
        )
        assert relay.stop() == 0


def test_keys_and_values_are_what_was_received_and_a_restart_goes_on(
    simulate: Simulate, to_topic: ToTopic, kafka: str, topic: str
) -> None:
    upstream = simulate(SimulatorSettings(rate=300, max_events=1500))
    with Relay(*to_topic(upstream)) as relay:
        until_published(relay, 300)
        assert relay.stop() == 0
    first = len(topic_records(kafka, topic))
    with Relay(*to_topic(upstream)) as relay:
        relay.wait_for(rf"read {first} events of the topic back")
        upstream.wait_until(lambda stats: stats.events_appended_total >= 1500, 30)
        until_published(relay, real(upstream) - first)
        assert relay.stop() == 0
    verdict = judge_topic(kafka, topic, upstream.journal(), since_ms(upstream))
    assert verdict.flawless, f"{verdict}\n{relay.log}"
    for record in topic_records(kafka, topic):
        assert record.key is not None
        entries = orjson.loads(record.key)
        assert {entry["topic"][:6] for entry in entries} == {"eqiad.", "codfw."}


def test_a_field_as_key_keeps_its_order_over_partitions(
    simulate: Simulate, to_topic: ToTopic, kafka: str, topic: str
) -> None:
    upstream = simulate(SimulatorSettings(rate=300, max_events=1200))
    by_wiki = ["--kafka.keyField=wiki", "--kafka.partitions=3"]
    with Relay(*to_topic(upstream), *by_wiki) as relay:
        until_published(relay, 300)
        assert relay.stop() == 0
    # If no position is stored, it is recovered from the ids, which are now in a header.
    forget_position(kafka, topic)
    first = len(topic_records(kafka, topic))
    with Relay(*to_topic(upstream), *by_wiki) as relay:
        relay.wait_for("going on after its last events")
        upstream.wait_until(lambda stats: stats.events_appended_total >= 1200, 30)
        until_published(relay, real(upstream) - first)
        assert relay.stop() == 0
    verdict = judge_topic(kafka, topic, upstream.journal(), since_ms(upstream))
    assert verdict.flawless, f"{verdict}\n{relay.log}"
    partitions = defaultdict(set)
    for record in topic_records(kafka, topic):
        assert record.value is not None
        assert record.key == orjson.loads(record.value)["wiki"].encode()
        assert orjson.loads(dict(record.headers)["id"] or b"")
        partitions[record.key].add(record.partition)
    assert all(len(found) == 1 for found in partitions.values())
    assert len(set.union(*partitions.values())) == 3


def test_a_topic_of_the_original_is_taken_over(
    simulate: Simulate, to_topic: ToTopic, kafka: str, topic: str
) -> None:
    """10,000 events as the original Pleiades wrote them: key = id, no transaction, no position."""
    upstream = simulate(SimulatorSettings(rate=200, history_events=10_100, faults=NO_CUTS))
    written = sent_by(upstream)[:10_000]
    make_topic(kafka, topic)
    producer = Producer({"bootstrap.servers": kafka})
    for event in written:
        producer.produce(topic, event.data, event.key)
    assert producer.flush(30) == 0
    with Relay(*to_topic(upstream)) as relay:
        relay.wait_for("going on after its last events")
        until_published(relay, real(upstream) - len(written))
        journal = upstream.journal()
        until_published(relay, sum(not entry.canary for entry in journal) - len(written))
        assert relay.stop() == 0
    verdict = judge_topic(kafka, topic, upstream.journal(), 0, finished=False)
    assert verdict.flawless, f"{verdict}\n{relay.log}"
    assert verdict.published > len(written)


def test_no_resume_ignores_the_position(
    simulate: Simulate, to_topic: ToTopic, kafka: str, topic: str
) -> None:
    upstream = simulate(SimulatorSettings(rate=300, history_events=3_000, faults=NO_CUTS))
    with Relay(*to_topic(upstream)) as relay:
        until_published(relay, 100)
        assert relay.stop() == 0
    before = len(topic_records(kafka, topic))
    # The last --since counts: this one is far before all published events.
    earlier = ["--no-resume", f"--since={since_ms(upstream) - 10**9}", "--dedup.window=9d"]
    with Relay(*to_topic(upstream), *earlier) as relay:
        relay.wait_for(r"starting with events from .* \(--since\)")
        until_published(relay, real(upstream) - before)
        assert relay.stop() == 0
    verdict = judge_topic(kafka, topic, upstream.journal(), 0, finished=False)
    # They come after later events, hence out of order, but nothing comes twice.
    assert not verdict.lost + verdict.doubled, f"{verdict}\n{relay.log}"


def test_canaries_move_the_position_and_an_empty_topic_starts_at_once(
    simulate: Simulate, to_topic: ToTopic, kafka: str, topic: str
) -> None:
    upstream = simulate(SimulatorSettings(rate=5, canary_every_seconds=0.5, second_share=0.0))
    codfw = ("codfw.mediawiki.recentchange", 0)
    with Relay(*to_topic(upstream)) as relay:
        relay.wait_ready()
        relay.until(
            lambda: sum(entry.canary and entry.source == codfw for entry in upstream.journal()) > 3,
            "canaries",
            30,
        )
        latest = max(entry.timestamp for entry in upstream.journal() if entry.source == codfw)
        relay.until(
            lambda: stored(kafka, topic).checkpoint.position.get(codfw, 0) > latest,
            "the position of the topic that has canaries only",
            30,
        )
        assert relay.stop() == 0
    sources = {
        orjson.loads(record.value or b"")["meta"]["topic"] for record in topic_records(kafka, topic)
    }
    assert sources <= {"eqiad.mediawiki.recentchange"}


# ---- what can't be an event ----


def frame(number: int, data: bytes) -> bytes:
    sse_id = b'[{"topic":"eqiad.x","partition":0,"timestamp":%d}]' % (START_MS + number)
    return b"event: message\nid: " + sse_id + b"\ndata: " + data + b"\n\n"


def noise(size: int) -> str:
    """Text that compression cannot shrink by much more than half."""
    return random.Random(size).randbytes(size // 2).hex()


@pytest.mark.parametrize("limit", [0, 5_000])
def test_dead_letters(kafka: str, topic: str, limit: int) -> None:
    """`limit`: the topic's, in bytes; 0: the broker's default (1 MiB)."""
    size = 20_000 if limit else 5_000_000
    if limit:
        make_topic(kafka, topic, max_message_bytes=str(limit))
    good = [
        orjson.dumps({"meta": {"id": f"good-{number}"}, "text": noise(1_000)})
        for number in range(40)
    ]
    large = [
        orjson.dumps({"meta": {"id": f"large-{number}"}, "text": noise(size)})
        for number in range(2)
    ]
    # It fits compressed, so the broker accepts it.
    squeezable = orjson.dumps({"meta": {"id": "squeezable"}, "text": "x" * size})
    bodies = [*good[:5], large[0], b"not json", *good[5:30], large[1], squeezable, b'"text"']
    bodies += good[30:]
    server = Server(HEAD + b"".join(frame(number, data) for number, data in enumerate(bodies)))
    arguments = [*ingest_flags(server.url, "2026-01-01"), *kafka_flags(kafka, topic)]
    events = [*good[:30], squeezable, *good[30:]]

    def dead(relay: Relay, reason: str) -> float:
        return relay.metric("pleiades_dead_letters_total", reason=reason)

    try:
        with Relay(*arguments) as relay:
            until_published(relay, len(events))
            relay.until(lambda: dead(relay, "too_large") == 2, "dead letters", 30)
            assert dead(relay, "not_json") == 1
            assert dead(relay, "not_an_object") == 1
            relay.wait_for("events could not be published .*the stream goes on")
            assert relay.stop() == 0
        # Everything comes again, and nothing is published again, including dead letters.
        with Relay(*arguments) as relay:
            relay.wait_for(rf"read {len(events) + 4} events of the topic back")
            relay.until(
                lambda: relay.metric("pleiades_duplicate_events_dropped_total") >= len(bodies),
                "repeats",
                30,
            )
            assert relay.metric(PUBLISHED) == 0
            assert relay.stop() == 0
    finally:
        server.close()
    assert [record.value for record in topic_records(kafka, topic)] == events
    letters = {
        dict(record.headers)["identity"]: record
        for record in topic_records(kafka, f"{topic}-dead-letters")
    }
    assert len(letters) == 4
    for number, body in enumerate(large):
        record = letters[f"large-{number}".encode()]
        headers = dict(record.headers)
        assert headers["reason"] == b"too_large"
        assert headers["id"] == record.key
        assert b'"eqiad.x"' in (record.key or b"")
        assert headers["source"] == b"eqiad.x:0"
        assert record.value
        assert body.startswith(record.value)
        cut = len(record.value) < len(body)
        assert headers.get("size") == (str(len(body)).encode() if cut else None)
    others = {dict(record.headers)["reason"]: record.value for record in letters.values()}
    assert others[b"not_json"] == b"not json"
    assert others[b"not_an_object"] == b'"text"'
    assert "Traceback" not in relay.log


# ---- figures ----


def test_the_window_of_20_000_events_is_read_back(
    simulate: Simulate, to_topic: ToTopic, record_property: Callable[[str, object], None]
) -> None:
    upstream = simulate(SimulatorSettings(rate=0, max_events=20_000, history_events=20_000))
    everything = [f"--since={since_ms(upstream) - 10**9}", "--dedup.window=30d"]
    count = real(upstream)
    with Relay(*to_topic(upstream), *everything) as relay:
        until_published(relay, count)
        assert relay.stop() == 0
    with Relay(*to_topic(upstream), *everything) as relay:
        said = relay.wait_for(r"read (\d+) events of the topic back in ([\d.]+) s")
        assert int(said[1]) == count
        assert relay.stop() == 0
    record_property("a topic's window read back", f"{said[1]} events in {said[2]} s")


def test_the_lag_at_100_events_a_second_and_all_metrics(
    simulate: Simulate, to_topic: ToTopic, record_property: Callable[[str, object], None]
) -> None:
    upstream = simulate(SimulatorSettings(rate=100, faults=NO_CUTS))
    now = [flag for flag in to_topic(upstream) if not flag.startswith("--since")]
    with Relay(*now) as relay:
        until_published(relay, 800)
        # librdkafka reports its statistics every few seconds.
        rtt = ("pleiades_kafka_broker_rtt_seconds", (("broker", "1"), ("percentile", "99")))
        relay.until(lambda: rtt in relay.metrics(), "librdkafka's statistics", 30)
        samples = relay.metrics()
        assert relay.stop() == 0
    names = {name for name, _ in samples if name.startswith("pleiades_kafka_")}
    assert names == {
        "pleiades_kafka_broker_errors_total",
        "pleiades_kafka_broker_rtt_seconds",
        "pleiades_kafka_client_queue_bytes",
        "pleiades_kafka_client_queue_messages",
        "pleiades_kafka_publish_events_total",
        "pleiades_kafka_publish_lag_milliseconds",
        "pleiades_kafka_publish_wait_time_seconds",
        "pleiades_kafka_publish_write_time_seconds",
        "pleiades_kafka_publish_writes_total",
        "pleiades_kafka_writer_errors_total",
    }
    for name in ("write", "wait"):
        for aggregate in ("min", "max", "avg"):
            key = f"pleiades_kafka_publish_{name}_time_seconds", (("agg", aggregate),)
            assert 0 <= samples[key] < 60
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in samples.items()
        if name == "pleiades_publish_lag_seconds_bucket"
    }
    within = " ".join(f"{le}s:{value:.0f}" for le, value in buckets.items())
    record_property("events by their lag at 100 events/s into Kafka", within)
    # The median. Less than half of the events come from a start's backlog.
    assert buckets["0.5"] > buckets["+Inf"] / 2


def test_a_lost_position_is_said_with_the_groups_name(
    simulate: Simulate, to_topic: ToTopic, kafka: str, topic: str
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    with Relay(*to_topic(upstream)) as relay:
        until_published(relay, 20)
        assert relay.stop() == 0
    forget_position(kafka, topic)
    with Relay(*to_topic(upstream)) as relay:
        said = relay.wait_for(r"no position is stored as the group (\S+), but")
        assert said[1] == group(topic)
        assert relay.stop() == 0
    assert not re.search("Traceback|%[0-9]\\|", relay.log)


def test_a_topic_that_is_deleted_meanwhile_gets_all_that_comes_after(
    simulate: Simulate, to_topic: ToTopic, kafka: str, topic: str
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    now = [flag for flag in to_topic(upstream) if not flag.startswith("--since")]
    with Relay(*now, "--upstream.overlap=500ms") as relay:
        until_published(relay, 100)
        publisher = relay.child("publisher")
        stopped_ms = time.time_ns() // 1_000_000
        publisher.suspend()
        # More than the overlap, which a new start requests anyway.
        missed = upstream.stats().events_appended_total + 200
        upstream.wait_until(lambda stats: stats.events_appended_total > missed, 30)
        delete_topic(kafka, topic)
        forget_position(kafka, topic)
        publisher.kill()
        relay.wait_for("resuming from the last committed position")
        until_published(relay, 500)
        assert relay.stop() == 0
    verdict = judge_topic(kafka, topic, upstream.journal(), stopped_ms, finished=False)
    assert verdict.flawless, f"{verdict}\n{relay.log}"
