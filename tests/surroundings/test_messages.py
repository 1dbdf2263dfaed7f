"""What the operator reads when something around the relay is gone: what happened, what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.answers import Held, Server
from tests.harness.broker import free_port
from tests.harness.relay import Relay, ingest_flags, kafka_flags
from tests.integration.test_check import check
from tests.integration.test_kafka import PUBLISHED, forget_position, make_topic

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n:ok\n\n"
ERROR = b'event: error\ndata: {"message":"Local: Broker transport failure"}\n\n'
FAILED = b'{"message":"broker transport failure"}'
KEEPS = "while (the upstream|it) keeps its history"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (STREAM + ERROR, f"brought nothing new.*{KEEPS}.*the service's Kafka may be away"),
        (Held(STREAM + ERROR), f"the upstream reports 1 error.*Kafka may be away.*{KEEPS}"),
        (Held(b""), f"{KEEPS}.*did not answer, as when the service's Kafka is away"),
        (
            b"HTTP/1.1 500 X\r\nContent-Length: %d\r\n\r\n%b" % (len(FAILED), FAILED),
            f"answered 500: broker transport failure.*{KEEPS}.*The service's Kafka may be away",
        ),
    ],
    ids=["error and end", "error", "no answer", "500"],
)
def test_the_services_own_kafka_is_away(answer: bytes | Held, says: str, folder: Path) -> None:
    server = Server(answer)
    target = ["--file.enable", f"--file.publishDir={folder}", "--idleTimeout=500ms"]
    try:
        with Relay(*ingest_flags(server.url, "now"), *target) as relay:
            relay.wait_for(f"WARNING .*{says}")
    finally:
        server.close()


FULL = SimulatorSettings(rate=100, history_events=50, faults=Faults(cut_every_seconds=0))
FIRST, SECOND = "eqiad.mediawiki.recentchange", "codfw.mediawiki.recentchange"


def without(port: int, *topics: str) -> Simulator:
    faults = replace(FULL.faults, missing_topics=frozenset(topics))
    return Simulator(replace(FULL, port=port, faults=faults))


def test_a_stream_lost_topics(folder: Path) -> None:
    """With one of them, a start goes on from the position; check says so, too."""
    port = free_port()
    flags = [
        *ingest_flags(f"http://127.0.0.1:{port}/v2/stream", "-1h"),
        *("--file.enable", f"--file.publishDir={folder}"),
    ]
    with without(port), Relay(*flags) as relay:
        relay.until(lambda: relay.metric("pleiades_file_publish_events_total") > 100, "events", 30)
        assert relay.stop() == 0
    with without(port, SECOND):
        status, lines = check(*flags[1:])
        assert status == 0, lines
        (missing,) = [text for kind, _, text in lines if kind == "warning"]
        assert f"does not have {SECOND} at present: a start goes on" in missing
        with Relay(*flags) as relay:
            relay.wait_for(f"does not have {SECOND} at present: the other topics go on")
            relay.wait_for("connected to .*resuming")
    with without(port, FIRST, SECOND):
        status, lines = check(*flags[1:])
        assert status == 3, lines
        with Relay(*flags) as relay:
            assert relay.wait(30) == 3
        (said,) = [line for line in relay.lines if "ERROR" in line]
    assert f"the upstream does not have {SECOND}, {FIRST} (status 404): " in said
    assert "Nothing was lost; the position is kept" in said
    assert "start the relay again once the upstream has them" in said


def test_the_group_expired(
    simulate: Callable[[SimulatorSettings], Simulator], kafka: str, topic: str
) -> None:
    """With and without records that tell how far the relay was."""
    upstream = simulate(FULL)
    flags = [*ingest_flags(upstream.url, "now"), *kafka_flags(kafka, topic)]
    make_topic(kafka, topic, retention_ms="-1")

    def run(says: str) -> None:
        with Relay(*flags) as relay:
            relay.until(lambda: relay.metric(PUBLISHED) > 20, "events", 30)
            assert relay.stop() == 0
        assert re.search(says, relay.log), relay.log

    run("no stored position is used")
    forget_position(kafka, topic)
    run(
        r"going on after its last events.*Nothing is skipped that the upstream still has.*expires when"
        r".*a week.*pleiades replay --skipExisting"
    )
    forget_position(kafka, topic)
    admin = AdminClient({"bootstrap.servers": kafka})
    for deleted in admin.delete_records([TopicPartition(topic, 0, -1)]).values():
        deleted.result(30)
    says = r"the records of the topic have been deleted.*--resume=false --since=TIME"
    status, lines = check(*flags[1:])
    assert status == 0
    assert any(kind == "warning" and re.search(says, text) for kind, _, text in lines)
    run(f"WARNING publisher: .*{says}")
