"""`pleiades check` on topics and positions that no test broker can produce."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError, KafkaException, Node, TopicPartitionInfo, Uuid
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names
    AclOperation,
    DescribeClusterResult,
    TopicDescription,
)

from pleiades.config.settings import Settings
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.readback import OutputPartition, Readback
from pleiades.runtime.errors import Fatal
from pleiades.runtime.findings import Finding, Kind, now_ms
from pleiades.sinks.kafka import inspect
from pleiades.sinks.kafka.admin import Admin, Configuration
from pleiades.sinks.kafka.clients import Clients
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.inspect import inspect_position, inspect_transactions, may_hold_groups
from pleiades.sinks.kafka.inspect_topics import inspect_topics
from pleiades.sinks.kafka.offset_metadata import Stored, encode, read_stored
from tests.harness.settings import kafka_of, settings_of

ALL = frozenset({"DESCRIBE", "READ", "WRITE", "DELETE"})
REFUSED = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
DEFAULTS = {
    "max.message.bytes": "1048588",
    "cleanup.policy": "delete",
    "retention.ms": "604800000",
    "min.insync.replicas": "2",
    "message.timestamp.type": "CreateTime",
}

TOPIC = "pleiades-events"
AT = (TOPIC, 0)


def partition(number: int, leader: int = 1, in_sync: int = 3) -> TopicPartitionInfo:
    nodes = [Node(each, "broker", 9092) for each in (1, 2, 3)]
    return TopicPartitionInfo(number, Node(leader, "broker", 9092), nodes, nodes[:in_sync])


def described(
    *partitions: TopicPartitionInfo, rights: frozenset[str] | None = ALL, name: str = TOPIC
) -> TopicDescription:
    topic = TopicDescription(name, Uuid(0, 1), False, [*(partitions or [WELL])])
    # Set here, because the constructor treats no rights as unknown rights.
    if rights is not None:
        topic.authorized_operations = [AclOperation[right] for right in sorted(rights)]
    return topic


WELL = partition(0)
ADMINISTRATOR = DescribeClusterResult(
    Node(1, "broker", 9092), [Node(1, "broker", 9092)], "c", ["ALTER"]
)

Look = Callable[..., list[Finding]]


@pytest.fixture
def kafka_settings_of() -> Callable[..., tuple[Settings, KafkaDestination]]:
    def settings(*flags: str) -> tuple[Settings, KafkaDestination]:
        made = settings_of("--kafka.enable", *flags, command="check")
        return made, kafka_of(made)

    return settings


SettingsOf = Callable[..., tuple[Settings, KafkaDestination]]


@pytest.fixture
def look(kafka_settings_of: SettingsOf) -> Look:
    """Returns the findings on one topic."""

    def looked(
        *partitions: TopicPartitionInfo,
        rights: frozenset[str] | None = ALL,
        configuration: Configuration | None = DEFAULTS,
        flags: tuple[str, ...] = (),
    ) -> list[Finding]:
        settings, kafka = kafka_settings_of(*flags)
        topic = described(*partitions, rights=rights, name="t")
        admin: Any = Mock(settings=kafka)
        return list(inspect_topics(settings, admin, {"t": topic}, {"t": configuration}))

    return looked


def test_a_topic_that_is_well_is_one_line(look: Look) -> None:
    (finding,) = look()
    assert finding.kind is Kind.OK
    assert finding.text == (
        "topic t: 1 partition, 3 copies of each, accepts batches of 1,048,588 bytes, "
        "keeps them for 7 days"
    )


def test_partitions_that_cannot_be_written_are_problems(look: Look) -> None:
    _, *findings = look(WELL, partition(1, leader=-1, in_sync=0), partition(2, in_sync=1))
    assert [finding.kind for finding in findings] == [Kind.PROBLEM, Kind.PROBLEM]
    leaderless, short = findings
    assert "can't write to partition 1 of t: no broker leads it" in leaderless.text
    assert "can't write to partition 2 of t: fewer copies are in sync" in short.text


@pytest.mark.parametrize(
    ("rights", "says"),
    [
        (frozenset({"DESCRIBE", "READ"}), "(Write)"),
        (frozenset({"DESCRIBE"}), "(Read and Write)"),
        (frozenset(), "(Describe and Read and Write)"),
        (None, ""),
    ],
)
def test_missing_rights_are_named(look: Look, rights: frozenset[str] | None, says: str) -> None:
    _, *findings = look(rights=rights)
    assert [says in finding.text for finding in findings] == ([True] if says else [])


def test_settings_that_may_not_be_seen_are_no_problem(look: Look) -> None:
    topic, unseen = look(configuration=None)
    assert topic.text == "topic t: 1 partition, 3 copies of each"
    assert unseen.kind is Kind.NOTE
    assert "1,000,000 bytes" in unseen.text


def test_a_compacted_topic_loses_events(look: Look) -> None:
    compacted = {**DEFAULTS, "cleanup.policy": "compact"}
    _, by_id = look(configuration=compacted)
    _, by_field = look(configuration=compacted, flags=("--kafka.keyField=wiki",))
    assert by_id.kind is by_field.kind is Kind.WARNING
    assert "events of one millisecond" in by_id.text
    assert "--kafka.keyField" in by_field.text


@pytest.mark.parametrize(
    ("retention_ms", "warned"), [(-1, False), (1_199_999, True), (1_200_000, False)]
)
def test_what_is_kept_shorter_than_the_window_is_warned_of(
    look: Look, retention_ms: int, warned: bool
) -> None:
    _, *findings = look(configuration={**DEFAULTS, "retention.ms": str(retention_ms)})
    assert [finding.kind for finding in findings] == [Kind.WARNING] * warned


def test_the_brokers_time_is_mentioned(look: Look) -> None:
    (finding,) = look(configuration={**DEFAULTS, "message.timestamp.type": "LogAppendTime"})
    assert "the broker's time" in finding.text


# ---- the position ----


class FakeAdmin:
    """Returns prepared answers."""

    settings: KafkaDestination
    position_at = AT

    def __init__(
        self,
        records: int | KafkaError = 7,
        metadata: tuple[str, ...] = ("",),
        rights: frozenset[str] | None = ALL,
        broker: Configuration | None = None,
    ) -> None:
        self._records = records
        self._metadata = list(metadata)
        self._rights = rights
        self._broker = broker or {}

    def ends(self, of: Iterable[OutputPartition]) -> dict[OutputPartition, int]:
        if isinstance(self._records, KafkaError):
            raise KafkaException(self._records)
        return dict.fromkeys(of, self._records)

    def starts(self, partitions: Iterable[OutputPartition]) -> dict[OutputPartition, int]:
        return dict.fromkeys(partitions, 2)

    def stored(self, _partitions: Iterable[OutputPartition]) -> Stored | None:
        text = self._metadata.pop(0) if len(self._metadata) > 1 else self._metadata[0]
        return read_stored({AT: text}, AT) if text else None

    def group_rights(self) -> frozenset[str] | None:
        return self._rights

    def configuration(self, _kind: object, _name: str) -> Configuration:
        return self._broker


def stored(clock_ms: int) -> str:
    checkpoint = Checkpoint({("t", 0): clock_ms}, 0, clock_ms)
    reached = {("t", 0): clock_ms}
    readback = Readback({AT: 2}, clock_ms - 60_000, reached, reached)
    return encode(checkpoint, readback, "ab", AT)[AT]


def position(
    admin: Any, of: tuple[Settings, KafkaDestination], configuration: Configuration = DEFAULTS
) -> list[Finding]:
    settings, admin.settings = of
    return list(inspect_position(settings, admin, [described()], configuration, True))


def test_a_position_that_moves_is_a_running_instances(kafka_settings_of: SettingsOf) -> None:
    at_ms = now_ms()
    admin = FakeAdmin(metadata=(stored(at_ms), stored(at_ms), stored(at_ms + 1)))
    *_, running = position(admin, kafka_settings_of())
    assert "an instance is running" in running.text


def test_what_a_start_reads_back_is_counted_by_offsets(kafka_settings_of: SettingsOf) -> None:
    findings = position(FakeAdmin(metadata=(stored(100_000),)), kafka_settings_of())
    assert any("reads about 5 records of the topic back" in each.text for each in findings)


def test_without_a_position_all_records_of_the_topic_are_counted(
    kafka_settings_of: SettingsOf,
) -> None:
    *_, finding = position(FakeAdmin(records=9), kafka_settings_of())
    assert "holds about 7 records" in finding.text


def test_a_recent_position_that_stands_still_may_be_one(
    kafka_settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "MOVE_SECONDS", 0.0)
    *_, running = position(FakeAdmin(metadata=(stored(now_ms()),)), kafka_settings_of())
    assert "an instance may be running" in running.text


def test_an_older_position_is_nobodys(kafka_settings_of: SettingsOf) -> None:
    admin = FakeAdmin(metadata=(stored(now_ms() - 31_000),))
    findings = position(admin, kafka_settings_of())
    assert not [finding for finding in findings if "running" in finding.text]


def test_a_window_that_the_topic_no_longer_has_is_warned_of(kafka_settings_of: SettingsOf) -> None:
    admin = FakeAdmin(metadata=(stored(now_ms() - 3_600_000),))
    *_, gone = position(admin, kafka_settings_of(), {**DEFAULTS, "retention.ms": "3600000"})
    assert gone.kind is Kind.WARNING
    assert "may be published a second time" in gone.text


def test_a_position_of_somebody_else_is_warned_of(kafka_settings_of: SettingsOf) -> None:
    unusable, found = position(FakeAdmin(metadata=("hello",)), kafka_settings_of())
    assert unusable.kind is Kind.WARNING
    assert "unusable" in unusable.text
    assert "the topic holds about 5 records" in found.text


def test_brokers_that_cannot_be_reached_by_their_own_addresses(
    kafka_settings_of: SettingsOf,
) -> None:
    lost = KafkaError(KafkaError._TIMED_OUT)
    for metadata in ("", stored(100_000)):
        findings = position(FakeAdmin(lost, (metadata,)), kafka_settings_of())
        (problem,) = [finding for finding in findings if finding.kind is Kind.PROBLEM]
        assert "advertised.listeners" in problem.text


def test_a_group_that_may_not_be_written_is_a_problem(kafka_settings_of: SettingsOf) -> None:
    admin = FakeAdmin(rights=frozenset({"DESCRIBE"}))
    refused, *_ = position(admin, kafka_settings_of())
    assert refused.kind is Kind.PROBLEM
    assert "Read on the group pleiades-pleiades-events-recentchange" in refused.text


@pytest.mark.parametrize(
    ("events", "groups", "expected"),
    [
        (None, None, True),
        (None, KafkaError.TOPIC_AUTHORIZATION_FAILED, True),
        (None, KafkaError.UNKNOWN_TOPIC_OR_PART, False),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, None, True),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED, False),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED, None),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART, False),
    ],
)
def test_a_group_is_asked_for_only_where_there_can_be_one(
    events: int | None, groups: int | None, expected: bool | None
) -> None:
    seen = described()
    answers = [seen if code is None else KafkaError(code) for code in (events, groups)]
    assert may_hold_groups(answers[0], answers[1]) is expected


# ---- the cluster ----


@pytest.mark.parametrize(
    ("broker", "kinds"),
    [
        ({"transaction.max.timeout.ms": "300000"}, [Kind.OK]),
        ({"transaction.max.timeout.ms": "299999"}, [Kind.PROBLEM]),
        ({}, [Kind.OK]),
        ({"offset.metadata.max.bytes": "4096"}, [Kind.OK]),
        ({"offset.metadata.max.bytes": "4095"}, [Kind.OK, Kind.WARNING]),
    ],
)
def test_limits_of_the_brokers(
    kafka_settings_of: SettingsOf, broker: Configuration, kinds: list[Kind]
) -> None:
    admin: Any = FakeAdmin(broker=broker)
    _, admin.settings = kafka_settings_of()
    findings = list(inspect_transactions(admin, ADMINISTRATOR))
    assert [finding.kind for finding in findings] == kinds


def test_a_timeout_of_the_users_own_counts(kafka_settings_of: SettingsOf) -> None:
    admin: Any = FakeAdmin(broker={"transaction.max.timeout.ms": "900000"})
    _, admin.settings = kafka_settings_of("--kafka.property=transaction.timeout.ms=900001")
    (finding,) = inspect_transactions(admin, ADMINISTRATOR)
    assert finding.kind is Kind.PROBLEM


def test_nobody_answers_and_what_librdkafka_reported_is_told(
    kafka_settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "CONNECT_SECONDS", 0.0)

    def report(clients: Clients) -> None:
        clients.last_error = KafkaError(KafkaError._RESOLVE)

    def silent(_admin: Admin, _seconds: float) -> None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    monkeypatch.setattr(Clients, "listen", report)
    monkeypatch.setattr(Admin, "cluster", silent)
    _, kafka = kafka_settings_of("--kafka.broker=nowhere.invalid")
    with pytest.raises(
        Fatal, match="can't reach Kafka at nowhere.invalid:9092.*check its spelling"
    ):
        inspect.stored_checkpoint(kafka)
