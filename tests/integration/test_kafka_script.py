"""`scripts/kafka`: its output, data and access control; and that its brokers outlive no test."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.harness.broker import (
    SCRIPT,
    SCRIPT_TIMEOUT_SECONDS,
    Broker,
    free_port,
    script_environment,
    topic_records,
)
from tests.harness.cluster import Cluster, java_hash
from tests.harness.prerequisites import KAFKA
from tests.harness.waiting import until

CLIENT_TIMEOUT_SECONDS = 30

Configuration = dict[str, str | int | float | bool]


def run(*arguments: str | Path, bootstrap: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = script_environment() | ({"KAFKA_BOOTSTRAP": bootstrap} if bootstrap else {})
    return subprocess.run(
        [SCRIPT, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SCRIPT_TIMEOUT_SECONDS,
        check=False,
    )


def brokers_of(folder: Path) -> list[int]:
    """Processes with the configuration of that folder, or of a node's folder in it."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        for argument in process.info["cmdline"] or []
        if argument.endswith("/server.properties") and Path(argument).is_relative_to(folder)
    ]


def login(path: Path) -> Configuration:
    """The client configuration in a property file of the script."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    # The wrong password is intended: do not log it.
    configuration: Configuration = {"log_level": 0}
    for line in path.read_text().splitlines():
        name, _, value = line.partition("=")
        configuration[name] = value
    return configuration


def make_topic(configuration: Configuration) -> str:
    name = f"test-{uuid.uuid4()}"
    # Assigned to a variable, because its answer ends with it.
    admin = AdminClient(configuration)
    admin.create_topics([NewTopic(name, 1)])[name].result(CLIENT_TIMEOUT_SECONDS)
    return name


def publish(configuration: Configuration, topic: str, value: bytes) -> KafkaError | None:
    """The broker's answer to one record."""
    answers: list[KafkaError | None] = []

    def answered(error: KafkaError | None, _: Message) -> None:
        answers.append(error)

    producer = Producer(configuration)
    producer.produce(topic, value, on_delivery=answered)
    assert producer.flush(CLIENT_TIMEOUT_SECONDS) == 0
    return answers[0]


def values(broker: Broker, topic: str) -> list[bytes | None]:
    return [record.value for record in topic_records(broker.bootstrap, topic)]


def test_keeps_its_data_over_stop_kill_and_freeze(tmp_path: Path) -> None:
    with Broker(tmp_path / "kafka") as broker:
        plain: Configuration = {"bootstrap.servers": broker.bootstrap}
        topic = make_topic(plain)
        assert publish(plain, topic, b"before the stop") is None
        broker.stop()
        assert brokers_of(broker.folder) == []
        broker.start()
        assert values(broker, topic) == [b"before the stop"]
        assert publish(plain, topic, b"before the kill") is None
        broker.kill()
        assert run("status", "--dir", broker.folder).returncode == 1
        broker.start()
        assert values(broker, topic) == [b"before the stop", b"before the kill"]
        broker.suspend()
        with pytest.raises(Exception, match="Failed to get metadata"):
            AdminClient(plain).list_topics(topic, timeout=1)
        broker.resume()
        assert publish(plain, topic, b"after the freeze") is None
        broker.suspend()
    # A frozen broker is ended too.
    assert brokers_of(broker.folder) == []


@pytest.mark.needs(KAFKA)
def test_two_starts_at_once_are_one(tmp_path: Path) -> None:
    broker = Broker(tmp_path / "a folder")
    start = ("start", "--dir", broker.folder, "--port", str(broker.port))
    try:
        with ThreadPoolExecutor() as pool:
            first, second = (pool.submit(run, *start) for _ in range(2))
        said = sorted((first.result().stdout, second.result().stdout))
        assert f"answers at {broker.bootstrap}; stop it with ./scripts/kafka stop" in said[0]
        assert f"runs already at {broker.bootstrap};" in said[1]
        assert len(brokers_of(broker.folder)) == 1
        status = run("status", "--dir", broker.folder)
        assert (status.returncode, status.stdout) == (0, f"{broker.bootstrap}\n")
        other_port = run("start", "--dir", broker.folder, "--port", str(free_port()))
        assert other_port.returncode == 1
        assert f"runs at another port already: {broker.bootstrap}" in other_port.stderr
        other_kind = run(*start, "--secure")
        assert other_kind.returncode == 1
        assert "without --secure: stop it first" in other_kind.stderr
        second_broker = run("start", "--dir", tmp_path / "other", "--port", str(broker.port))
        assert second_broker.returncode == 1
        assert f"port {broker.port} is taken by something else" in second_broker.stderr
    finally:
        stopped = run("stop", "--dir", broker.folder)
    assert stopped.returncode == 0
    assert brokers_of(broker.folder) == []
    status = run("status", "--dir", broker.folder)
    assert (status.returncode, status.stdout) == (1, "")
    assert run("stop", "--dir", broker.folder).returncode == 0


@pytest.mark.needs(KAFKA)
def test_a_start_that_fails_shows_the_cause_and_leaves_nothing(tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as occupied:
        # Bound but not listening: a connection attempt does not find it, only Kafka's own bind does.
        occupied.bind(("127.0.0.1", port))
        failed = run("start", "--dir", tmp_path, "--port", str(port))
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "Kafka ended before it answered" in failed.stderr
    assert "Address already in use" in failed.stderr
    assert brokers_of(tmp_path) == []
    assert run("status", "--dir", tmp_path).returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["restart"],
        ["start", "--port", "x"],
        ["start", "--port", "65535"],
        ["start", "--fast"],
        ["start", "--nodes", "10"],
        ["start", "--nodes", "3", "--secure"],
        ["start", "--nodes", "3", "--advertise", "localhost:1"],
        ["start", "--secure", "--advertise", "localhost:1"],
        ["start", "--advertise", "localhost"],
    ],
)
def test_wrong_arguments(arguments: list[str], tmp_path: Path) -> None:
    wrong = run(*arguments, "--dir", tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "usage: scripts/kafka start|stop|status" in wrong.stderr


def test_secure_lets_in_whom_it_should(secure: Broker) -> None:
    pleiades, nobody = login(secure.secure_config), login(secure.nobody_config)
    topic = make_topic(pleiades)
    assert publish(pleiades, topic, b"mine") is None
    refused = publish(nobody, topic, b"not mine")
    assert refused is not None
    assert refused.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
    assert topic not in AdminClient(nobody).list_topics(timeout=CLIENT_TIMEOUT_SECONDS).topics
    # The plain listener has all rights.
    assert values(secure, topic) == [b"mine"]

    errors: list[int] = []
    stranger = Producer(
        pleiades | {"sasl.password": "wrong", "error_cb": lambda error: errors.append(error.code())}
    )
    until(lambda: stranger.poll(0.1) or errors, "the broker's refusal of a wrong password")
    assert errors[0] == KafkaError._AUTHENTICATION


TRANSACTIONAL_ID = "pleiades-events-recentchange"


def test_three_nodes_of_which_one_may_be_missing(tmp_path: Path) -> None:
    with Cluster(tmp_path / "kafka") as cluster:
        status = run("status", "--dir", cluster.folder)
        assert status.stdout == f"{cluster.bootstrap}\n"
        assert len(brokers_of(cluster.folder)) == 3
        plain: Configuration = {"bootstrap.servers": cluster.bootstrap}
        topic = make_topic(plain)
        cluster.wait_in_sync(topic)
        assert cluster.in_sync(topic) == {1, 2, 3}
        producer = Producer(plain | {"transactional.id": TRANSACTIONAL_ID})
        producer.init_transactions(CLIENT_TIMEOUT_SECONDS)

        def commit(value: bytes) -> None:
            producer.begin_transaction()
            producer.produce(topic, value)
            producer.commit_transaction(CLIENT_TIMEOUT_SECONDS)

        first = cluster.transaction_coordinator(TRANSACTIONAL_ID)
        second = cluster.move_transaction_coordinator(TRANSACTIONAL_ID)
        assert second != first
        commit(b"after the move")
        assert cluster.kill_transaction_coordinator(TRANSACTIONAL_ID) == second
        assert len(brokers_of(cluster.folder)) == 2
        commit(b"after the kill")
        assert cluster.transaction_coordinator(TRANSACTIONAL_ID) != second
        others = {cluster.nodes[number].pid for number in {1, 2, 3} - {second}}
        again = run("start", "--dir", cluster.folder, "--port", str(cluster.port))
        assert again.returncode == 0, again.stderr
        assert others < set(brokers_of(cluster.folder))
        cluster.wait_in_sync(topic)
        other_size = run("start", "--dir", cluster.folder, "--nodes", "2")
        assert other_size.returncode == 1
        assert "consists of 3 node(s), not of 2" in other_size.stderr
        cluster.stop(second)
        assert len(brokers_of(cluster.folder)) == 2
        read = topic_records(cluster.bootstrap, topic)
        assert [record.value for record in read] == [b"after the move", b"after the kill"]
    assert brokers_of(cluster.folder) == []


def test_java_hash() -> None:
    # The values of Java's String.hashCode().
    assert java_hash("hello") == 99162322
    assert java_hash("polygenelubricants") == -(2**31)


def sent_to(bootstrap: str) -> str | None:
    """The address to which the broker sends clients; None while nothing answers there."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        (node,) = admin.list_topics(timeout=CLIENT_TIMEOUT_SECONDS / 6).brokers.values()
    except KafkaException:
        return None
    return f"{node.host}:{node.port}"


def test_sends_its_clients_where_it_should(tmp_path: Path) -> None:
    elsewhere = f"127.0.0.1:{free_port()}"
    with Broker(tmp_path / "kafka", advertise=elsewhere) as broker:
        for bootstrap, said in ((broker.bootstrap, elsewhere), (broker.direct, broker.direct)):
            assert until(partial(sent_to, bootstrap), "an answer", CLIENT_TIMEOUT_SECONDS) == said
        other = run(
            *("start", "--dir", broker.folder, "--port", str(broker.port)),
            *("--advertise", broker.bootstrap),
        )
        assert other.returncode == 1
        assert f"without --advertise {broker.bootstrap}: stop it first" in other.stderr


def test_uses_a_broker_that_is_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bootstrap = f"127.0.0.1:{server.getsockname()[1]}"
        for command, said in (
            ("start", f"Kafka answers at {bootstrap}"),
            ("status", bootstrap),
            ("stop", f"{bootstrap} is not this script's to stop"),
        ):
            done = run(command, "--dir", tmp_path, bootstrap=bootstrap)
            assert done.returncode == 0, done.stderr
            assert said in done.stdout
    for command, status in (("start", 1), ("status", 1), ("stop", 0)):
        done = run(command, "--dir", tmp_path, bootstrap=bootstrap)
        assert done.returncode == status, done
    assert list(tmp_path.iterdir()) == []


OWNER = """
import signal, sys
from pathlib import Path
from tests.harness.broker import Broker
with Broker(Path(sys.argv[1])) as broker:
    print("ready", flush=True)
    signal.pause()
"""


@pytest.mark.needs(KAFKA)
def test_a_broker_does_not_outlive_a_killed_test_process(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path],
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])},
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        assert len(brokers_of(tmp_path)) == 1
        owner.send_signal(signal.SIGKILL)
    until(lambda: not brokers_of(tmp_path), "the end of the broker")
