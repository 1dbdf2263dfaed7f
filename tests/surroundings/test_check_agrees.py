"""`pleiades check` and `pleiades ingest` give the same answer, whatever they are started in.

Each row prepares a destination and an upstream, runs both commands with the same flags, and compares. If
`ingest` publishes, `check` ends with status 0; if it waits for somebody, with 1; if it ends, likewise.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    AclOperation,
    AdminClient,
    ResourceType,
)

from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.answers import Server
from tests.harness.broker import Broker, free_port
from tests.harness.clock import Clock
from tests.harness.kafka import allow_nobody
from tests.harness.prerequisites import MOUNT, SETPRIV
from tests.harness.relay import COMMAND, Relay, kafka_flags, upstream_flags
from tests.harness.waiting import until
from tests.integration.test_kafka import make_topic

PUBLISHES, WAITS = "publishes", "waits"
PUBLISHED = ("pleiades_kafka_publish_events_total", "pleiades_file_publish_events_total")
WAITING = r"(WARNING|ERROR) +(reader|publisher): (can't publish: .*retries until|.*trying again)"
"""Not that a transaction begins again, which is a matter of milliseconds."""
REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"


@dataclass
class World:
    """What a row may change."""

    broker: Broker
    folder: Path
    upstream: str
    stack: ExitStack
    topic: str = field(default_factory=lambda: f"agree-{uuid.uuid4().hex}")
    environment: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = COMMAND

    @property
    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.broker.bootstrap})

    def to_kafka(self, *more: str, **topic: str) -> list[str]:
        """Into the row's topic, which is made if it is configured."""
        if topic:
            for name in (self.topic, f"{self.topic}-dead-letters"):
                make_topic(self.broker.bootstrap, name, **topic)
        return [*kafka_flags(self.broker.bootstrap, self.topic), *more]

    def to_files(self) -> list[str]:
        return ["--file.enable", f"--file.publishDir={self.folder}"]

    def as_nobody(self, *rights: tuple[ResourceType, str, AclOperation]) -> list[str]:
        """Into the topic, as the user that has these rights only."""
        self.to_kafka(retention_ms="-1")
        for kind, prefix, right in rights:
            allow_nobody(self.admin, kind, prefix + self.topic, right)
        config = self.broker.nobody_config
        return ["--kafka.enable", f"--kafka.topic={self.topic}", f"--kafka.config={config}"]

    def at(self, seconds_ahead: int) -> None:
        """Set the relay's clock."""
        clock = Clock(self.folder.parent)
        clock.set_ahead(seconds_ahead)
        self.environment = clock.environment

    def held_files(self) -> list[str]:
        other = self.stack.enter_context(_start(self, self.to_files()))
        other.wait_for("connected to")
        return self.to_files()

    def held_topic(self) -> list[str]:
        other = self.stack.enter_context(_start(self, self.to_kafka()))
        other.wait_for("connected to")
        return self.to_kafka()

    def forbidden_files(self) -> list[str]:
        self.folder.mkdir(mode=0o500)
        # As root, too.
        without = "--bounding-set=-dac_override,-dac_read_search"
        self.command = ("setpriv", without, *COMMAND)
        return self.to_files()

    def full_disk(self) -> list[str]:
        self.folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(self.folder)]
        subprocess.run(mount, check=True)
        unmount = ["umount", "--lazy", str(self.folder)]
        self.stack.callback(lambda: subprocess.run(unmount, check=True))
        with (self.folder / "full").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        return self.to_files()

    def upstream_answers(self, answer: bytes) -> list[str]:
        server = Server(answer)
        self.stack.callback(server.close)
        self.upstream = server.url
        return self.to_files()


TOPIC, GROUP = ResourceType.TOPIC, ResourceType.GROUP
TRANSACTION = ResourceType.TRANSACTIONAL_ID
ON_TOPIC = (
    (TOPIC, "", AclOperation.READ),
    (TOPIC, "", AclOperation.WRITE),
)
ON_GROUP = (GROUP, "pleiades-", AclOperation.READ)


class Row(NamedTuple):
    """A row of the table."""

    prepare: Callable[[World], list[str]]
    ingest: str | int
    """What an ingest does, or the status that it ends with."""
    check_says: str
    """A pattern that one of the lines of the check has."""
    check: int | None = None
    """The status of the check, where it can't be that of the ingest."""


def _clock(seconds_ahead: int, **topic: str) -> Callable[[World], list[str]]:
    def prepare(world: World) -> list[str]:
        world.at(seconds_ahead)
        return world.to_kafka(**topic)

    return prepare


def _unreachable(world: World) -> list[str]:
    world.upstream = f"http://127.0.0.1:{free_port()}/v2/stream"
    return world.to_files()


def _wrong_password(world: World) -> list[str]:
    text = world.broker.secure_config.read_text()
    wrong = world.folder.parent / "wrong.properties"
    wrong.write_text(re.sub("(?m)^sasl.password=.*", "sasl.password=wrong", text))
    return ["--kafka.enable", f"--kafka.topic={world.topic}", f"--kafka.config={wrong}"]


def _a_file(world: World) -> list[str]:
    world.folder.write_text("")
    return world.to_files()


def _taken_port(world: World) -> list[str]:
    taken = world.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return [*world.to_files(), f"--metricsPort={taken.getsockname()[1]}"]


TABLE = {
    "missing topic": Row(World.to_kafka, PUBLISHES, "is missing: a start would create it"),
    "one copy, two in sync": Row(
        lambda world: world.to_kafka(min_insync_replicas="2"),
        PUBLISHES,
        "warning .*can never have as many copies in sync as min.insync.replicas",
    ),
    "clock ahead": Row(
        _clock(7200, retention_ms="-1"), WAITS, "problem +destination .*this machine's clock"
    ),
    "clock ahead, missing topic": Row(
        _clock(7200), WAITS, "problem +upstream .*Kafka refuses records that are dated too far"
    ),
    "clock behind": Row(_clock(-7200), PUBLISHES, "warning +upstream .*behind the upstream's"),
    "clock behind, limited topic": Row(
        _clock(-7200, message_timestamp_before_max_ms="3600000"), WAITS, "problem .*machine's clock"
    ),
    "clock ahead, the broker's time": Row(
        _clock(7200, message_timestamp_type="LogAppendTime"), PUBLISHES, "warning +upstream"
    ),
    "no rights": Row(World.as_nobody, 1, "problem .*allow Describe, Read and Write"),
    "no right to write": Row(
        lambda world: world.as_nobody(ON_TOPIC[0], ON_GROUP), 1, r"problem .*\(Write\)"
    ),
    "no right on the group": Row(
        lambda world: world.as_nobody(*ON_TOPIC, (TRANSACTION, "pleiades-", AclOperation.WRITE)),
        1,
        "problem .*allow Read on the group",
    ),
    # To try it would end a running instance.
    "no right on the transactional id": Row(
        lambda world: world.as_nobody(*ON_TOPIC, ON_GROUP),
        1,
        "note .*not tried.*Write on the transactional id",
        check=0,
    ),
    "all rights": Row(
        lambda world: world.as_nobody(
            *ON_TOPIC, ON_GROUP, (TRANSACTION, "pleiades-", AclOperation.WRITE)
        ),
        PUBLISHES,
        "ok .*topic agree",
    ),
    "no room for any record": Row(
        lambda world: world.to_kafka(max_message_bytes="100"), 1, "problem .*max.message.bytes"
    ),
    "little room": Row(
        lambda world: world.to_kafka(max_message_bytes="20000"),
        PUBLISHES,
        "warning .*longer events become dead letters",
    ),
    "compacted, short retention": Row(
        lambda world: world.to_kafka(cleanup_policy="compact,delete", retention_ms="60000"),
        PUBLISHES,
        "warning .*is compacted",
    ),
    "held topic": Row(World.held_topic, PUBLISHES, "a start would end it and go on in its place"),
    "too few brokers": Row(
        lambda world: world.to_kafka("--kafka.replication=5"), 1, "problem .*only 1 broker"
    ),
    "long transactions": Row(
        lambda world: world.to_kafka("--kafka.property=transaction.timeout.ms=900001"),
        1,
        "problem .*do not allow transactions",
    ),
    "no broker": Row(
        lambda world: kafka_flags(f"127.0.0.1:{free_port()}", world.topic),
        1,
        "problem .*can't reach Kafka",
    ),
    "wrong password": Row(_wrong_password, 1, "problem .*the broker refused the log-in"),
    "files": Row(World.to_files, PUBLISHES, "ok .*room for about"),
    "held files": Row(World.held_files, 4, "problem .*already"),
    "forbidden directory": Row(World.forbidden_files, 1, "problem .*may not write into"),
    "a file in the way": Row(_a_file, 1, "problem .*it is no directory"),
    "full disk": Row(World.full_disk, WAITS, "problem .*there is no room"),
    "taken port": Row(_taken_port, 1, "problem +metrics"),
    "unknown stream": Row(
        lambda world: [*world.to_files(), "--upstream.stream=nosuch"], 3, "Invalid streams: nosuch"
    ),
    "upstream away": Row(_unreachable, WAITS, "problem +upstream .*can't reach"),
    "upstream refuses": Row(lambda world: world.upstream_answers(REFUSED), 3, "status 403"),
    "upstream fails": Row(
        lambda world: world.upstream_answers(REFUSED.replace(b"403", b"503")), WAITS, "answered 503"
    ),
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Simulator]:
    """One for all rows, which read no more than its latest events."""
    settings = SimulatorSettings(
        rate=100, history_events=20, faults=Faults(cut_every_seconds=0, deaf_seconds=0)
    )
    with Simulator(settings) as simulator:
        yield simulator


def _start(world: World, target: list[str]) -> Relay:
    arguments = [*upstream_flags(world.upstream), "--metricsHost=127.0.0.1", "--metricsPort=0"]
    return Relay(
        "ingest", *arguments, *target, command=world.command, environment=world.environment
    )


def _check(world: World, target: list[str]) -> subprocess.CompletedProcess[str]:
    arguments = [*upstream_flags(world.upstream), "--metricsHost=127.0.0.1", "--metricsPort=0"]
    return subprocess.run(
        [*world.command, "check", *arguments, *target],
        env=os.environ | world.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _answer(relay: Relay) -> str | int:
    """What an ingest does, as soon as that is clear."""

    def seen() -> tuple[str | int] | None:
        status = relay.process.poll()
        if status is not None:
            return (status,)
        if any(re.search(WAITING, line) for line in relay.lines):
            return (WAITS,)
        if not any("metrics on http" in line for line in relay.lines):
            return None
        # It may end meanwhile.
        with suppress(requests.RequestException):
            if any(relay.metric(name) for name in PUBLISHED):
                return (PUBLISHES,)
        return None

    answer = until(seen, "an answer", 60)
    assert answer is not None
    return answer[0]


def _outcome(row: Row, world: World) -> str:
    """Both logs if the commands differ from the row; empty: they do not."""
    with world.stack:
        target = row.prepare(world)
        checked = _check(world, target)
        with _start(world, target) as relay:
            answer = _answer(relay)
    status = {PUBLISHES: 0, WAITS: 1}.get(str(answer), row.check)
    if (
        answer == row.ingest
        and checked.returncode == (answer if status is None else status)
        and re.search(row.check_says, checked.stdout)
    ):
        return ""
    return f"check: {checked.returncode}, ingest: {answer}\n{checked.stdout}\n{relay.log}"


GROUPS = 3
_ALONE = {"forbidden directory": SETPRIV, "full disk": MOUNT}
"""With what not every machine has."""
_TOGETHER = [name for name in TABLE if name not in _ALONE]


@pytest.mark.parametrize(
    "names",
    [_TOGETHER[first::GROUPS] for first in range(GROUPS)]
    + [pytest.param([name], marks=pytest.mark.needs(needs)) for name, needs in _ALONE.items()],
    ids=", ".join,
)
def test_check_and_ingest_agree(
    names: list[str], upstream: Simulator, secure: Broker, tmp_path: Path
) -> None:
    """Several rows at once, because most of their time is waiting."""
    worlds = []
    for number in range(len(names)):
        own = tmp_path / str(number)
        own.mkdir()
        worlds.append(World(secure, own / "events", upstream.url, ExitStack()))
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(_outcome, map(TABLE.__getitem__, names), worlds))
    wrong = [f"{name}: {outcome}" for name, outcome in zip(names, outcomes, strict=True) if outcome]
    assert not wrong, "\n\n".join(wrong)
