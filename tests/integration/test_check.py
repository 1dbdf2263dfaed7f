"""`pleiades check` on real destinations: its report, and its lack of side effects."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    AclOperation,
    AdminClient,
    NewTopic,
    ResourceType,
)

from pleiades.simulator.settings import SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.broker import Broker, topic_records
from tests.harness.kafka import allow_nobody
from tests.harness.oracle import published_count
from tests.harness.prerequisites import KAFKA, require
from tests.harness.relay import COMMAND, Relay, upstream_flags
from tests.harness.tree import lasting_tree, tree
from tests.harness.waiting import until

Simulate = Callable[[SimulatorSettings], Simulator]
Flags = Callable[[Simulator], list[str]]
Line = tuple[str, str, str]

TIMEOUT_SECONDS = 30


def check(*arguments: str) -> tuple[int, list[Line]]:
    """Run a check; returns the status, and the lines as kind, part and text."""
    ended = subprocess.run(
        [*COMMAND, "check", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stderr == ""
    lines = [re.split(r" +", line, maxsplit=2) for line in ended.stdout.splitlines()]
    return ended.returncode, [(kind, part, text) for kind, part, text in lines]


def with_flags(ingest: list[str], *more: str) -> tuple[int, list[Line]]:
    """Run a check with the arguments of an `ingest`."""
    return check(*ingest[1:], *more)


def said(lines: list[Line], kind: str, part: str) -> str:
    """The texts of all lines of one kind and part."""
    return "\n".join(text for *at, text in lines if at == [kind, part])


def problems(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line[0] == "problem"]


# ---- in general ----


def test_help_has_the_flags_of_ingest() -> None:
    def helped(command: str) -> str:
        return subprocess.run(
            [*COMMAND, "help", command], capture_output=True, text=True, check=True
        ).stdout

    beginning, _, flags = helped("check").partition("\noptions:")
    assert "usage: pleiades check [flags]" in beginning
    assert "leaves nothing behind" in beginning
    assert flags == helped("ingest").partition("\noptions:")[2]


def test_a_wrong_configuration_is_a_finding_too() -> None:
    status, lines = check()
    assert status == 2
    assert "add --file.enable" in said(lines, "problem", "configuration")


def test_all_parts_are_tried_and_the_first_problem_is_the_status(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    folder.write_text("not a directory")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, lines = with_flags(
            flags(simulate(SimulatorSettings())),
            "--upstream.stream=nosuch",
            f"--metricsPort={port}",
        )
    assert status == 3
    assert "Invalid streams: nosuch" in said(lines, "problem", "upstream")
    assert "it is no directory" in said(lines, "problem", "destination")
    assert "can't serve metrics" in said(lines, "problem", "metrics")


def test_an_interrupted_check_does_not_pass_for_a_good_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v2/stream"
        running = subprocess.Popen(
            [*COMMAND, "check", "--file.enable", f"--upstream.url={url}"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        with running:
            assert running.stdout is not None
            assert "configuration" in running.stdout.readline()
            running.send_signal(signal.SIGINT)
            assert running.wait(TIMEOUT_SECONDS) == 1


# ---- files ----


def test_a_first_start_into_files_leaves_nothing_behind(
    simulate: Simulate, flags: Flags, tmp_path: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    before = lasting_tree(tmp_path)
    status, lines = with_flags(flags(upstream))
    assert lasting_tree(tmp_path) == before
    assert (status, problems(lines)) == (0, [])
    assert f"{upstream.url}/recentchange answers; first event" in said(lines, "ok", "upstream")
    assert "it would be made in" in said(lines, "note", "destination")
    assert "any free port" in said(lines, "ok", "metrics")


def test_a_running_instance_of_files_is_seen_and_left_alone(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    with Relay(*flags(upstream)) as relay:
        relay.until(lambda: published_count(folder) > 20, "events", 30)
        own = folder / ".pleiades"
        before = tree(own / "lock")
        status, lines = with_flags(flags(upstream))
        assert status == 4
        assert f"{folder} already" in said(lines, "problem", "destination")
        assert re.search(r"position stored \d+ s ago in", said(lines, "ok", "destination"))
        assert tree(own / "lock") == before
        count = published_count(folder)
        relay.until(lambda: published_count(folder) > count, "new events", 30)
        assert relay.metric("pleiades_goroutine_restarts", component="publisher") == 0
        assert relay.stop() == 0
    assert "WARNING" not in relay.log
    before = lasting_tree(folder)
    status, lines = with_flags(flags(upstream))
    assert (status, problems(lines)) == (0, [])
    assert lasting_tree(folder) == before


# ---- Kafka ----


def admin_of(configuration: dict[str, str | int | float | bool]) -> AdminClient:
    # Do not log a login that is expected to fail.
    return AdminClient({"log_level": 0, **configuration})


def contents(admin: AdminClient) -> set[str]:
    """All topics, including Kafka's own, and all groups."""
    topics = set(admin.list_topics(timeout=TIMEOUT_SECONDS).topics)
    groups = admin.list_consumer_groups(request_timeout=TIMEOUT_SECONDS).result().valid
    return topics | {group.group_id for group in groups}


def of_topic(names: set[str], topic: str) -> set[str]:
    """The names of one test: others use the same broker at the same time."""
    return {name for name in names if topic in name}


def test_a_running_instance_of_kafka_is_seen_and_left_alone(
    simulate: Simulate, kafka: str, topic: str, to_topic: Flags
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    admin = admin_of({"bootstrap.servers": kafka})
    ours = f"pleiades-{topic}-recentchange"
    status, lines = with_flags(to_topic(upstream), "--kafka.partitions=3")
    assert (status, problems(lines)) == (0, [])
    assert f"the topic {topic} is missing: a start would create it with 3 partitions" in said(
        lines, "note", "destination"
    )
    assert "no position is stored" in said(lines, "ok", "destination")
    assert not of_topic(contents(admin), topic)

    with Relay(*to_topic(upstream)) as relay:
        until(lambda: relay.metric("pleiades_kafka_publish_events_total") > 20, "events")
        before = of_topic(contents(admin), topic)
        status, lines = with_flags(to_topic(upstream))
        assert (status, problems(lines)) == (0, [])
        assert "an instance is running, its position moves" in said(lines, "note", "destination")
        described = said(lines, "ok", "destination")
        assert f"topic {topic}: 1 partition, 1 copy of each" in described
        assert re.search(rf"position stored \d+ s ago as the group {ours}", described)
        assert re.search(r"reads about [\d,]+ records of the topic back", described)
        assert of_topic(contents(admin), topic) == before
        count = relay.metric("pleiades_kafka_publish_events_total")
        until(
            lambda: relay.metric("pleiades_kafka_publish_events_total") > count + 50, "new events"
        )
        assert relay.stop() == 0
    # It was neither fenced nor restarted, and had no error.
    assert "0 restarts" in relay.log
    assert "WARNING" not in relay.log
    assert "ERROR" not in relay.log

    before_records = topic_records(kafka, topic)
    status, lines = with_flags(to_topic(upstream), "--since=-2h")
    assert (status, problems(lines)) == (0, [])
    assert "(--since is for a start without one)" in said(lines, "ok", "destination")
    assert topic_records(kafka, topic) == before_records


def test_a_topic_without_a_position_is_gone_on_with_by_its_ids(
    simulate: Simulate, kafka: str, topic: str, to_topic: Flags
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    admin = admin_of({"bootstrap.servers": kafka})
    with Relay(*to_topic(upstream)) as relay:
        until(lambda: relay.metric("pleiades_kafka_publish_events_total") > 20, "events")
        assert relay.stop() == 0
    ours = f"pleiades-{topic}-recentchange"
    admin.delete_consumer_groups([ours], request_timeout=TIMEOUT_SECONDS)[ours].result()
    status, lines = with_flags(to_topic(upstream))
    assert (status, problems(lines)) == (0, [])
    assert "goes on after the last ones, as far as their ids tell" in said(
        lines, "note", "destination"
    )
    assert of_topic(contents(admin), topic) == {topic, topic + "-dead-letters"}


def test_what_kafka_would_refuse_is_a_problem(simulate: Simulate, to_topic: Flags) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    status, lines = with_flags(to_topic(upstream), "--kafka.replication=5")
    assert status == 1
    assert "only 1 broker" in said(lines, "problem", "destination")
    status, lines = with_flags(to_topic(upstream), "--kafka.property=transaction.timeout.ms=900001")
    assert status == 1
    assert "do not allow transactions of up to 900.001 s, at most 900 s" in said(
        lines, "problem", "destination"
    )
    # Only the producer knows that these two properties are incompatible.
    status, lines = with_flags(
        to_topic(upstream),
        "--kafka.property=transaction.timeout.ms=2000",
        "--kafka.property=message.timeout.ms=3000",
    )
    assert status == 2
    assert "Kafka's client refuses its configuration" in said(lines, "problem", "destination")


def test_settings_that_lose_events_are_warned_of(
    simulate: Simulate, kafka: str, topic: str, to_topic: Flags
) -> None:
    admin = admin_of({"bootstrap.servers": kafka})
    configuration = {"cleanup.policy": "compact,delete", "retention.ms": "60000"}
    made = admin.create_topics([NewTopic(topic, 2, config=configuration)])
    made[topic].result(TIMEOUT_SECONDS)
    status, lines = with_flags(to_topic(simulate(SimulatorSettings(rate=100))))
    assert (status, problems(lines)) == (0, [])
    assert f"topic {topic}: 2 partitions" in said(lines, "ok", "destination")
    warned = said(lines, "warning", "destination")
    assert "is compacted" in warned
    assert "keeps its records for only 60 s" in warned


# ---- Kafka with rights ----


@pytest.fixture
def strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """A fresh broker with access control that creates any requested topic, as Kafka does by default."""
    require(KAFKA)
    home = os.environ.get("JAVA_HOME")
    real = f"{home}/bin/java" if home else shutil.which("java")
    java = tmp_path / "java" / "bin" / "java"
    java.parent.mkdir(parents=True)
    # The last of two lines for one property counts.
    java.write_text(
        "#!/bin/sh\n"
        "for last; do :; done\n"
        'case $last in */server.properties) echo auto.create.topics.enable=true >>"$last";; esac\n'
        f'exec "{real}" "$@"\n'
    )
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(java.parents[1]))
    with Broker(tmp_path / "strict", secure=True) as broker:
        yield broker


def secure_flags(upstream: Simulator, config: Path) -> list[str]:
    return [
        "--kafka.enable",
        f"--kafka.config={config}",
        *upstream_flags(upstream.url),
        "--metricsPort=0",
    ]


def test_a_cluster_is_left_as_it_was_found_whoever_asks(
    simulate: Simulate, strict: Broker, tmp_path: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    admin = admin_of({"bootstrap.servers": strict.bootstrap})
    assert contents(admin) == set()

    status, lines = check(*secure_flags(upstream, strict.secure_config))
    # Not even Kafka's own topics, which it creates at the first request for a group or transaction.
    assert contents(admin) == set()
    assert (status, problems(lines)) == (0, [])
    assert "is missing: a start would create it" in said(lines, "note", "destination")

    status, lines = check(*secure_flags(upstream, strict.nobody_config))
    assert status == 1
    assert "allow Describe, Read and Write" in said(lines, "problem", "destination")
    assert "Write on the transactional id" in said(lines, "note", "destination")

    wrong = tmp_path / "wrong.properties"
    known = strict.secure_config.read_text()
    password = re.search(r"^sasl\.password=(.*)$", known, re.MULTILINE)
    assert password
    wrong.write_text(known.replace(password[1], "hunter2-is-wrong"))
    for verbosity in ((), ("--verbose",)):
        ended = subprocess.run(
            [*COMMAND, "check", *secure_flags(upstream, wrong), *verbosity],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 1
        assert "the broker refused the log-in: check sasl.mechanisms" in ended.stdout
        assert "hunter2" not in ended.stdout + ended.stderr

    assert contents(admin) == set()


def test_rights_are_told_one_by_one(simulate: Simulate, strict: Broker) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    flags = [*secure_flags(upstream, strict.nobody_config), "--kafka.topic=t"]
    admin = admin_of({"bootstrap.servers": strict.bootstrap})
    for made in admin.create_topics([NewTopic("t", 1), NewTopic("t-dead-letters", 1)]).values():
        made.result(TIMEOUT_SECONDS)

    allow = partial(allow_nobody, admin)

    def refused() -> str:
        status, lines = check(*flags)
        assert status == (1 if problems(lines) else 0)
        return said(lines, "problem", "destination")

    allow(ResourceType.TOPIC, "t", AclOperation.READ)
    until(lambda: "use the topic t (Write)" in refused(), "the right to read")
    assert "see the group pleiades-t-recentchange" in refused()
    allow(ResourceType.TOPIC, "t", AclOperation.WRITE)
    allow(ResourceType.GROUP, "pleiades-t", AclOperation.DESCRIBE)
    until(lambda: "commit as the group" in refused(), "the right to see the group")
    allow(ResourceType.GROUP, "pleiades-t", AclOperation.READ)
    until(lambda: not refused(), "all rights")
