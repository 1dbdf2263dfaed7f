"""Kafka's failures: brokers die, freeze, fill up and move; topics disappear, or refuse events."""

from __future__ import annotations

import time

import psutil
from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    AdminClient,
    NewTopic,
    OffsetSpec,
)

from pleiades.simulator.settings import Faults
from pleiades.simulator.simulator import Simulator
from tests.faults.matrix import row
from tests.faults.rows.disk import fill, mount_tmpfs
from tests.faults.taped import tape
from tests.faults.trial import KAFKA, Trial, restarts, without_tracebacks
from tests.harness.broker import Broker
from tests.harness.cluster import Cluster
from tests.harness.destinations import Topic

RATE = 500
ADMIN_SECONDS = 30
BROKER_SECONDS = 15.0
"""Counted from when a broker answers again."""
SHORT_WINDOW = ["--upstream.overlap=3s", "--dedup.window=3s"]
"""Keeps a start from reading back the whole of a topic that is a minute old."""
DISK_BYTES = 128 * 1024 * 1024
SMALL_EVENT_BYTES = 5_000
"""`max.message.bytes` of a topic that refuses larger events; usual events are about 1,000 bytes."""
FAILED = 1
"""The exit status of a final error."""
LARGE_EVENT_BYTES = 20_000


def busy(trial: Trial) -> Simulator:
    """An upstream that also cuts connections."""
    return trial.simulate(rate=RATE, faults=Faults(cut_every_seconds=5))


def in_transaction(trial: Trial) -> bool:
    """True if the topic holds records that are neither committed nor aborted."""
    admin = AdminClient({"bootstrap.servers": trial.topic.bootstrap})
    first = TopicPartition(trial.topic.topic, 0)
    latest = {first: OffsetSpec.latest()}  # type: ignore[no-untyped-call]

    def end(isolation: IsolationLevel) -> int:
        found = admin.list_offsets(latest, isolation_level=isolation, request_timeout=ADMIN_SECONDS)
        return int(found[first].result().offset)

    return end(IsolationLevel.READ_COMMITTED) < end(IsolationLevel.READ_UNCOMMITTED)


@row(
    "broker killed inside a transaction and started again",
    on=(KAFKA,),
    within_seconds=BROKER_SECONDS,
)
def broker_killed(trial: Trial) -> None:
    """Recovery is measured from the moment the broker answers again."""
    broker = trial.own_broker()
    upstream = busy(trial)
    relay = trial.relay(*trial.flags(upstream), *SHORT_WINDOW, "--kafka.commitInterval=500ms")
    trial.wait_for_more(relay)
    for _ in range(trial.times(5, at_least=1)):
        trial.wait(lambda: in_transaction(trial), "a transaction", relay)
        broker.kill()
        trial.survived()
        with trial.recovery(upstream, relay):
            broker.start()
        trial.wait_for_more(relay, RATE)
    without_tracebacks([relay])
    assert " hangs" not in relay.log, relay.log
    trial.note(f"{restarts(relay)} restarts")
    trial.finish(upstream, relay)


@row(
    "broker frozen beyond message.timeout.ms and transaction.timeout.ms",
    on=(KAFKA,),
    long=True,
    within_seconds=BROKER_SECONDS,
)
def broker_frozen(trial: Trial) -> None:
    """It neither answers nor closes connections; when it wakes, it ends the transaction itself."""
    broker = trial.own_broker()
    upstream = busy(trial)
    timeouts = ["--kafka.property=transaction.timeout.ms=5000"]
    timeouts += ["--kafka.property=message.timeout.ms=5000"]
    relay = trial.relay(*trial.flags(upstream), *SHORT_WINDOW, *timeouts)
    trial.wait_for_more(relay)
    frozen_seconds = trial.seconds(60, at_least=8)
    for _ in range(trial.times(1, at_least=1)):
        said = len(relay.lines)
        broker.suspend()
        begun = time.monotonic()
        trial.wait(lambda: time.monotonic() - begun > frozen_seconds, "the freeze", relay)  # noqa: B023  # waited for here
        relay.wait_for("can't |did not answer", 1, after=said)
        trial.survived()
        with trial.recovery(upstream, relay):
            broker.resume()
    trial.note(f"frozen for {frozen_seconds:.0f} s; {restarts(relay)} restarts")
    without_tracebacks([relay])
    trial.finish(upstream, relay)


@row(
    "disk full at the broker, then freed and the broker started again",
    on=(KAFKA,),
    within_seconds=BROKER_SECONDS,
)
def broker_disk_full(trial: Trial) -> None:
    """Kafka halts when it cannot write."""
    folder = trial.folder / "kafka"
    (folder / "data").mkdir(parents=True)
    mount_tmpfs(trial, folder / "data", DISK_BYTES)
    broker: Broker = trial.enter(Broker(folder))
    trial.publish_to(Topic(broker.bootstrap))
    upstream = busy(trial)
    relay = trial.relay(*trial.flags(upstream), *SHORT_WINDOW)
    for _ in range(trial.times(3, at_least=1)):
        trial.wait_for_more(relay, RATE)
        pid = broker.pid
        filling = fill(folder / "data")
        trial.wait(lambda: not _runs(pid), "the broker to halt", relay)  # noqa: B023  # waited for here
        trial.survived()
        filling.unlink()
        with trial.recovery(upstream, relay):
            broker.start()
    without_tracebacks([relay])
    trial.note(f"{restarts(relay)} restarts")
    trial.finish(upstream, relay)


def _runs(pid: int) -> bool:
    # It may stay a zombie, because the script that started it is gone.
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@row("too few replicas in sync, then enough (3 brokers)", on=(KAFKA,), long=True)
def too_few_replicas(trial: Trial) -> None:
    """The cluster answers, and refuses each batch with a transient error."""
    cluster: Cluster = trial.enter(Cluster(trial.folder / "cluster"))
    topic = Topic(cluster.bootstrap, "events")
    trial.publish_to(topic)
    make_topic(topic, 3, {"min.insync.replicas": "3"})
    upstream = busy(trial)
    relay = trial.relay(*trial.flags(upstream), *SHORT_WINDOW)
    trial.wait_for_more(relay)
    for _ in range(trial.times(3, at_least=1)):
        said = len(relay.lines)
        killed = trial.chance.choice(sorted(cluster.nodes))
        cluster.nodes[killed].kill()
        relay.wait_for("can't commit", 60, after=said)
        trial.survived()
        with trial.recovery(upstream, relay):
            cluster.start(killed)
            for name in ("events", "__transaction_state", "__consumer_offsets"):
                cluster.wait_in_sync(name)
        assert "Kafka takes events again" in "\n".join(relay.lines[said:]) or restarts(relay)
    without_tracebacks([relay])
    trial.note(f"{restarts(relay)} restarts")
    trial.finish(upstream, relay)


def make_topic(topic: Topic, replication: int, config: dict[str, str]) -> None:
    """Create the topic before the relay does, which would use the cluster's defaults."""
    admin = AdminClient({"bootstrap.servers": topic.bootstrap})
    new = NewTopic(topic.topic, 1, replication, config=config)
    for made in admin.create_topics([new]).values():
        made.result(ADMIN_SECONDS)


@row("transaction coordinator moved, and killed (3 brokers)", on=(KAFKA,), long=True)
def coordinator_moved(trial: Trial) -> None:
    """It moves cleanly, as in a rolling restart, and by the death of its broker."""
    cluster: Cluster = trial.enter(Cluster(trial.folder / "cluster"))
    trial.publish_to(Topic(cluster.bootstrap, "events"))
    upstream = busy(trial)
    relay = trial.relay(*trial.flags(upstream), *SHORT_WINDOW)
    trial.wait_for_more(relay)
    name = "pleiades-events-recentchange"
    for _ in range(trial.times(3, at_least=1)):
        with trial.recovery(upstream, relay):
            cluster.move_transaction_coordinator(name)
        trial.survived()
        with trial.recovery(upstream, relay):
            cluster.move_leader("events")
        trial.survived()
        with trial.recovery(upstream, relay):
            killed = cluster.kill_transaction_coordinator(name)
        trial.survived()
        cluster.start(killed)
        for topic in ("events", "__transaction_state", "__consumer_offsets"):
            cluster.wait_in_sync(topic)
    without_tracebacks([relay])
    trial.note(f"{restarts(relay)} restarts")
    trial.finish(upstream, relay)


@row(
    "two of three brokers killed, then back",
    on=(KAFKA,),
    long=True,
    within_seconds=BROKER_SECONDS,
)
def two_of_three_killed(trial: Trial) -> None:
    """Without a majority nothing can be committed until one of them returns."""
    cluster: Cluster = trial.enter(Cluster(trial.folder / "cluster"))
    trial.publish_to(Topic(cluster.bootstrap, "events"))
    upstream = busy(trial)
    relay = trial.relay(*trial.flags(upstream), *SHORT_WINDOW)
    trial.wait_for_more(relay)
    for _ in range(trial.times(2, at_least=1)):
        said = len(relay.lines)
        killed = trial.chance.sample(sorted(cluster.nodes), 2)
        for number in killed:
            cluster.nodes[number].kill()
        relay.wait_for("can't |did not answer", 60, after=said)
        trial.survived()
        with trial.recovery(upstream, relay):
            cluster.start()
        for topic in ("events", "__transaction_state", "__consumer_offsets"):
            cluster.wait_in_sync(topic)
    without_tracebacks([relay])
    trial.note(f"{restarts(relay)} restarts")
    trial.finish(upstream, relay)


@row("events larger than the topic takes", on=(KAFKA,))
def message_too_large(trial: Trial) -> None:
    """Each large event becomes a dead letter in the same transaction; its neighbours are published."""
    make_topic(trial.topic, 1, {"max.message.bytes": str(SMALL_EVENT_BYTES)})
    upstream = tape(trial)
    large = trial.times(20, at_least=3)
    places = []
    for _ in range(large):
        upstream.write(times=trial.chance.randrange(1, 20))
        places.append(len(upstream))
        # Random data, so that compression cannot make it small.
        upstream.write(text=trial.chance.randbytes(LARGE_EVENT_BYTES).hex())
    upstream.write(times=10)
    relay = trial.relay(*trial.flags(upstream), *SHORT_WINDOW)
    kept = len(upstream) - large
    trial.wait(lambda: trial.destination.count() >= kept, "all that fits", relay)
    relay.child("publisher").kill()
    upstream.write(times=10)
    trial.wait(lambda: trial.destination.count() >= kept + 10, "the rest", relay)
    trial.survived(large)
    assert relay.stop() == 0, relay.log
    without_tracebacks([relay])
    journal = [entry for place, entry in enumerate(upstream.journal()) if place not in places]
    trial.compare(journal, upstream.started_ms)
    assert trial.outcome.dead_letters == large


@row("topic deleted under the relay, then made again", on=(KAFKA,))
def topic_deleted(trial: Trial) -> None:
    """Somebody deleted its contents; the relay reports it, and publishes all later events."""
    upstream = busy(trial)
    relay = trial.relay(*trial.flags(upstream), *SHORT_WINDOW)
    trial.wait_for_more(relay, RATE)
    admin = AdminClient({"bootstrap.servers": trial.topic.bootstrap})
    for deleted in admin.delete_topics([trial.topic.topic]).values():
        deleted.result(ADMIN_SECONDS)
    # Waiting would not bring back the records: somebody must look at it.
    assert relay.wait(60) == FAILED, relay.log
    assert "nknown topic or partition" in relay.log, relay.log
    assert restarts(relay) == 0, relay.log
    trial.survived()
    trial.publish_to(Topic(trial.topic.bootstrap, trial.topic.topic))
    # The next start creates the topic again; its position is gone, so it begins at --since.
    with trial.recovery(upstream):
        relay = trial.relay(*trial.flags(upstream), *SHORT_WINDOW)
    without_tracebacks([relay])
    trial.finish(upstream, relay)
