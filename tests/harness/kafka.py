"""Fixtures: a Kafka for all tests of a run, a topic in it, and a broker that a test may kill.

A conftest imports the ones that its tests need.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.harness.broker import Broker, guard_command, script_environment
from tests.harness.prerequisites import KAFKA, require

ADMIN_TIMEOUT_SECONDS = 30
DEAD_LETTERS = "-dead-letters"


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> str:
    """`host:port` for private topics: `KAFKA_BOOTSTRAP` if set, else the shared broker."""
    if given := os.environ.get("KAFKA_BOOTSTRAP"):
        return given
    broker: Broker = request.getfixturevalue("secure")
    return broker.bootstrap


@pytest.fixture(scope="session")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Broker:
    """The broker that all workers of this run share, including the SASL_SSL listener.

    The first test that needs it starts it. It ends with pytest's main process, whatever happens to the
    workers. No test may disturb it.
    """
    require(KAFKA)
    base, owner = tmp_path_factory.getbasetemp(), os.getpid()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base, owner = base.parent, os.getppid()
    folder = base / "kafka"
    with (base / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _guard(folder, owner)
        # If another worker has started it, the script only says so.
        broker = Broker(folder, _port_of(folder), secure=True)
        broker.run()
    return broker


def _port_of(folder: Path) -> int | None:
    try:
        return int((folder / "bootstrap").read_text().rpartition(":")[2])
    except FileNotFoundError:
        return None


def _guard(folder: Path, owner: int) -> None:
    """Start one guard per worker: another worker may have been killed before its guard ran."""
    subprocess.run(
        ["setsid", "--fork", *guard_command(folder, owner)],
        env=script_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )


@pytest.fixture
def topic(kafka: str) -> Iterator[str]:
    """A name that no other test uses; its topics, if any were created, are deleted afterwards."""
    name = f"test-{uuid.uuid4()}"
    yield name
    admin = AdminClient({"bootstrap.servers": kafka})
    deletions = admin.delete_topics(
        [name, name + DEAD_LETTERS], request_timeout=ADMIN_TIMEOUT_SECONDS
    )
    for deletion in deletions.values():
        try:
            deletion.result(ADMIN_TIMEOUT_SECONDS)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that this test may kill, freeze and restart."""
    with Broker(tmp_path / "kafka") as broker:
        yield broker


def allow_nobody(
    admin: AdminClient, kind: ResourceType, prefix: str, *rights: AclOperation
) -> None:
    """Give the user `nobody` rights on everything of a kind whose name begins so."""
    wanted = [
        AclBinding(
            kind,
            prefix,
            ResourcePatternType.PREFIXED,
            "User:nobody",
            "*",
            right,
            AclPermissionType.ALLOW,
        )
        for right in rights
    ]
    for allowed in admin.create_acls(wanted).values():
        allowed.result(ADMIN_TIMEOUT_SECONDS)
