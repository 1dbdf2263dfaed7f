"""Several private Kafka nodes, and control over partition leaders and transaction coordinators."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from confluent_kafka import ElectionType, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    AdminClient,
    PartitionMetadata,
)

from tests.harness.broker import Guard, Node, free_port, run_script
from tests.harness.prerequisites import KAFKA, require
from tests.harness.waiting import until

TRANSACTIONS_TOPIC = "__transaction_state"
"""The leader of one of its partitions coordinates the transactions recorded there."""

ASK_SECONDS = 5
MOVE_SECONDS = 60

_ALTER_PARTITION_REASSIGNMENTS = 45


class Cluster:
    """Nodes 1 to `nodes`; the `with` block starts and stops them, and none outlives this process.

    Args:
        folder: their data; data of an earlier cluster is kept.
        nodes: from 3 on, every partition has three replicas, two of which must be in sync.
        port: of node 1, the others follow; None: any free ones.
    """

    def __init__(self, folder: Path, nodes: int = 3, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port(nodes)
        self.nodes = {
            number: Node(folder / str(number), self.port + number - 1)
            for number in range(1, nodes + 1)
        }
        self.bootstrap = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes.values())
        self._guard = Guard(folder)

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, number: int | None = None) -> None:
        """Start that node, or all that are not running; returns when they answer."""
        require(KAFKA)
        self._guard.post()
        nodes = ["--nodes", str(len(self.nodes))]
        self._run("start", number, "--port", str(self.port), *nodes)

    def stop(self, number: int | None = None) -> None:
        """Shut down that node, or all, cleanly; a node hands over its leaderships first."""
        self._run("stop", number)
        if number is None:
            self._guard.dismiss()

    def _run(self, command: str, number: int | None, *arguments: str) -> None:
        one = [] if number is None else ["--node", str(number)]
        run_script(command, "--dir", str(self.folder), *arguments, *one)

    # ---- who leads ----

    def leader(self, topic: str, partition: int = 0) -> int:
        """The leader of a partition; waits until there is one."""

        def leader() -> int | None:
            found = self._partitions(topic).get(partition)
            return found.leader if found and found.leader in self.nodes else None

        found = until(leader, f"a leader of {topic} {partition}", MOVE_SECONDS)
        assert found is not None
        return found

    def in_sync(self, topic: str, partition: int = 0) -> set[int]:
        """The nodes whose replica of a partition is in sync."""
        found = self._partitions(topic).get(partition)
        return set(found.isrs) if found else set()

    def wait_in_sync(self, topic: str, partition: int = 0) -> None:
        """Wait until all replicas have caught up."""

        def complete() -> bool:
            found = self._partitions(topic).get(partition)
            return found is not None and set(found.isrs) == set(found.replicas)

        until(complete, f"all replicas of {topic} {partition} to be in sync", MOVE_SECONDS)

    def move_leader(self, topic: str, partition: int = 0, to: int | None = None) -> int:
        """Move a partition's leadership to another node without stopping any; returns the new leader."""
        before = self.leader(topic, partition)
        self.wait_in_sync(topic, partition)
        replicas = self._partitions(topic)[partition].replicas
        goal = to or next(number for number in sorted(replicas) if number != before)
        assert goal in replicas
        self._reassign(topic, partition, [goal, *(each for each in replicas if each != goal)])
        until(
            lambda: self._partitions(topic)[partition].replicas[0] == goal,
            f"node {goal} to be the preferred leader of {topic} {partition}",
            MOVE_SECONDS,
        )
        at = TopicPartition(topic, partition)
        # Without a reference the admin client is collected, and its request cancelled.
        admin = self._admin()
        election = admin.elect_leaders(ElectionType.PREFERRED, [at])
        error = election.result(MOVE_SECONDS)[at]
        if error is not None and error.code() != KafkaError.ELECTION_NOT_NEEDED:
            raise KafkaException(error)
        until(lambda: self.leader(topic, partition) == goal, "the new leader", MOVE_SECONDS)
        return goal

    # ---- who coordinates ----

    def transaction_partition(self, transactional_id: str) -> int:
        """The partition that records a transactional id."""
        count = until(lambda: len(self._partitions(TRANSACTIONS_TOPIC)), "the first transaction")
        number = abs(java_hash(transactional_id))
        # As in Kafka: this value has no positive counterpart in Java.
        return 0 if number == 1 << 31 else number % count

    def transaction_coordinator(self, transactional_id: str) -> int:
        """The node that coordinates an id's transactions; waits until there is one."""
        return self.leader(TRANSACTIONS_TOPIC, self.transaction_partition(transactional_id))

    def move_transaction_coordinator(self, transactional_id: str, to: int | None = None) -> int:
        """Make another node the coordinator without stopping any; returns its number."""
        partition = self.transaction_partition(transactional_id)
        return self.move_leader(TRANSACTIONS_TOPIC, partition, to)

    def kill_transaction_coordinator(self, transactional_id: str) -> int:
        """Kill the coordinator; returns its number. Another node takes over within a few seconds."""
        number = self.transaction_coordinator(transactional_id)
        self.nodes[number].kill()
        return number

    # ---- the cluster's answers ----

    def _admin(self) -> AdminClient:
        # A fresh client each time: it has no connection to a frozen or dead node.
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def _partitions(self, topic: str) -> dict[int, PartitionMetadata]:
        """Empty if the topic is missing, or nothing answers at the moment."""
        try:
            return dict(
                self._admin().list_topics(topic, timeout=ASK_SECONDS).topics[topic].partitions
            )
        except KafkaException:
            return {}

    def _reassign(self, topic: str, partition: int, replicas: list[int]) -> None:
        """Reassign the replicas; librdkafka does not offer this (KIP-455, version 0)."""
        name = topic.encode()
        body = struct.pack(
            f">hhihB iBB{len(name)}sB iB{len(replicas)}i BBB",
            *(_ALTER_PARTITION_REASSIGNMENTS, 0, 0, -1, 0),
            # The length of compact arrays and strings is stored plus one. Each structure ends with its
            # tags.
            *(MOVE_SECONDS * 1000, 2, len(name) + 1, name, 2),
            *(partition, len(replicas) + 1, *replicas),
            *(0, 0, 0),
        )
        node = self.nodes[self.leader(topic, partition)]
        with socket.create_connection(("127.0.0.1", node.port), ASK_SECONDS) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            connection.settimeout(MOVE_SECONDS)
            with connection.makefile("rb") as answers:
                (size,) = struct.unpack(">i", answers.read(4))
                answer = answers.read(size)
        # Skip correlation id, tags and throttle time; the error follows.
        (error,) = struct.unpack_from(">h", answer, 9)
        assert error == 0, f"{topic} {partition} is not reassigned: {KafkaError(error)}, {answer!r}"


def java_hash(text: str) -> int:
    """`String.hashCode()`: over UTF-16 units, a signed 32-bit number."""
    units = text.encode("utf-16-be")
    value = 0
    for (unit,) in struct.iter_unpack(">H", units):
        value = (31 * value + unit) & 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value
