"""A private real Kafka, started by `scripts/kafka`, and the contents of its topics."""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import NamedTuple, cast

import psutil
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from tests.harness.prerequisites import KAFKA, require
from tests.harness.waiting import until

SCRIPT = Path(__file__).parents[2] / "scripts" / "kafka"

# The script bounds its own waits; the very first start also downloads Kafka.
SCRIPT_TIMEOUT_SECONDS = 280
KILL_TIMEOUT_SECONDS = 10

# Between the ports chosen by the script and the kernel's ports for outgoing connections.
LOWEST_PORT, HIGHEST_PORT = 16_384, 32_000
PORT_TRIES = 100

FETCH_MESSAGES = 10_000
FETCH_SECONDS = 0.05

# A broker has no parent process: without a guard it would outlive a killed test process.
_GUARD = """
import os, select, subprocess, sys
owner, *stop = sys.argv[1:]
try:
    select.select([os.pidfd_open(int(owner))], [], [])
except ProcessLookupError:
    pass
subprocess.run(stop)
"""


def free_port(span: int = 3) -> int:
    """A free port, followed by free ones for SASL_SSL or for more nodes."""
    for _ in range(PORT_TRIES):
        port = LOWEST_PORT + secrets.randbelow(HIGHEST_PORT - LOWEST_PORT)
        if all(_free(neighbour) for neighbour in range(port, port + span)):
            return port
    raise AssertionError(f"no free port found in {PORT_TRIES} tries")


def _free(port: int) -> bool:
    with socket.socket() as trial:
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def script_environment() -> dict[str, str]:
    """This process's environment, but `scripts/kafka` always starts its own broker."""
    return {name: text for name, text in os.environ.items() if name != "KAFKA_BOOTSTRAP"}


def guard_command(folder: Path, owner: int) -> list[str]:
    """The command that waits for the end of process `owner`, then stops the broker of a folder."""
    return [sys.executable, "-c", _GUARD, str(owner), str(SCRIPT), "stop", "--dir", str(folder)]


def run_script(*arguments: str) -> str:
    """Run `scripts/kafka` and return its output; an error fails the test."""
    done = subprocess.run(
        [SCRIPT, *arguments],
        env=script_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SCRIPT_TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"scripts/kafka {' '.join(arguments)}: {done.stderr}"
    return done.stdout


class Guard:
    """Stops the Kafka of a folder when this process ends, however that happens."""

    def __init__(self, folder: Path) -> None:
        self._command = guard_command(folder, os.getpid())
        self._process: subprocess.Popen[bytes] | None = None

    def post(self) -> None:
        """Start guarding; called before the broker's start, during which this process may be killed."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                env=script_environment(),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def dismiss(self) -> None:
        """Stop guarding; called after the broker's stop."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(KILL_TIMEOUT_SECONDS)
            self._process = None


class Node:
    """The JVM of a broker, or of one node in a cluster."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port

    @property
    def pid(self) -> int:
        """The JVM's process id."""
        return int((self.folder / "pid").read_text())

    def kill(self) -> None:
        """Send SIGKILL; returns when the process is dead."""
        process = os.pidfd_open(self.pid)
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            ended, _, _ = select.select([process], [], [], KILL_TIMEOUT_SECONDS)
        finally:
            os.close(process)
        assert ended, f"the broker {self.pid} survived SIGKILL"

    def suspend(self) -> None:
        """Send SIGSTOP; returns when the process is stopped."""
        process = psutil.Process(self.pid)
        process.suspend()
        until(lambda: process.status() == psutil.STATUS_STOPPED, "the broker to stop")

    def resume(self) -> None:
        """Send SIGCONT."""
        psutil.Process(self.pid).resume()


class Broker(Node):
    """One broker; the `with` block starts and stops it, and it never outlives this process.

    Args:
        folder: its data, configuration and log; existing data is kept.
        port: None: any free one.
        secure: adds the SASL_SSL listener.
        advertise: host:port of a proxy in front of it, which it advertises to its clients.
    """

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        secure: bool = False,
        advertise: str | None = None,
    ) -> None:
        super().__init__(folder, port or free_port())
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.secure_config = folder / "client.properties"
        self.nobody_config = folder / "nobody.properties"
        self._options = ["--secure"] if secure else []
        self._options += ["--advertise", advertise] if advertise else []
        self._guard = Guard(folder)

    def __enter__(self) -> Broker:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def direct(self) -> str:
        """The address that bypasses the proxy."""
        return (self.folder / "bootstrap-direct").read_text().strip()

    def start(self) -> None:
        """Start, or restart with the same data and port; returns when the broker answers."""
        require(KAFKA)
        self._guard.post()
        self.run()

    def run(self) -> None:
        """Start without a guard."""
        run_script("start", "--dir", str(self.folder), "--port", str(self.port), *self._options)

    def stop(self) -> None:
        """Shut down cleanly; also a frozen broker, or one that is not running."""
        run_script("stop", "--dir", str(self.folder))
        self._guard.dismiss()


class Record(NamedTuple):
    """A record in a topic."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def _record(message: Message) -> Record:
    partition, offset, headers = message.partition(), message.offset(), message.headers()
    assert partition is not None
    assert offset is not None
    # The client's types allow values here that only a producer may pass.
    read = cast("list[tuple[str, bytes | None]]", headers or [])
    return Record(
        partition, offset, message.timestamp()[1], message.key(), message.value(), list(read)
    )


def topic_records(
    bootstrap: str, topic: str, read_committed: bool = True, timeout_seconds: float = 30.0
) -> list[Record]:
    """Read a topic from scratch, all partitions from beginning to end.

    In each partition the records come in order. Offsets have gaps at the markers of committed or
    aborted transactions.

    Args:
        bootstrap: host:port of the broker.
        topic: a missing topic is read as empty.
        read_committed: leave out uncommitted records; a partition then ends where its first open
            transaction begins. Otherwise everything is read, including aborted records.
        timeout_seconds: for the whole call.

    Raises:
        TimeoutError: the end was not reached in time.
        KafkaException: the broker refuses, or does not answer.
    """
    deadline = time.monotonic() + timeout_seconds
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"test-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed" if read_committed else "read_uncommitted",
            # The broker reports the end of an empty partition only after this time; the default is 500.
            "fetch.wait.max.ms": 10,
        }
    )
    records: list[Record] = []
    try:
        described = consumer.list_topics(topic, timeout=timeout_seconds).topics[topic]
        if described.error is not None:
            if described.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return []
            raise KafkaException(described.error)
        unfinished = set(described.partitions)
        consumer.assign([TopicPartition(topic, part, OFFSET_BEGINNING) for part in unfinished])
        while unfinished:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{topic}: {len(records)} records in {timeout_seconds:g} s, "
                    f"but not the end of the partitions {sorted(unfinished)}"
                )
            for message in consumer.consume(FETCH_MESSAGES, FETCH_SECONDS):
                error = message.error()
                if error is None:
                    records.append(_record(message))
                elif error.code() == KafkaError._PARTITION_EOF:
                    unfinished.discard(message.partition())
                else:
                    raise KafkaException(error)
    finally:
        consumer.close()
    return records
