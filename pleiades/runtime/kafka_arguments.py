"""The flags of the Kafka publisher, and the `KafkaSettings` that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pleiades.runtime import properties
from pleiades.runtime import settings as read
from pleiades.runtime.errors import UsageError
from pleiades.runtime.flags import Flags
from pleiades.runtime.settings import KafkaSettings


def add_kafka_flags(flags: Flags) -> None:
    """All flags that begin with `--kafka.`."""
    flags.toggle(
        "--kafka.enable",
        default=False,
        meaning="publish to Kafka (exactly one publisher must be enabled)",
    )
    flags.add(
        "--kafka.broker",
        default="localhost:9092",
        reads=read.brokers,
        meaning="brokers to find the cluster by, joined by commas",
        unit="host:port",
    )
    flags.add(
        "--kafka.topic",
        default="pleiades-events",
        reads=read.topic,
        meaning="topic to publish to; created if missing. Dead letters go into the one beside it "
        f"whose name ends with {read.DEAD_LETTERS_SUFFIX}",
        unit="name",
    )
    flags.add(
        "--kafka.partitions",
        default="1",
        reads=read.integer(1, read.MAX_PARTITIONS),
        meaning="partitions of a topic that is created; one that exists stays as it is",
        unit="number",
    )
    flags.add(
        "--kafka.replication",
        default="0",
        reads=read.integer(0, read.MAX_REPLICATION),
        meaning="copies of a topic that is created; 0: the cluster's default",
        unit="number",
    )
    flags.add(
        "--kafka.compression",
        default="zstd",
        reads=read.choice(*read.COMPRESSIONS),
        meaning="how batches are compressed",
        unit="|".join(read.COMPRESSIONS),
    )
    flags.add(
        "--kafka.commitInterval",
        default="200ms",
        reads=read.duration(read.MIN_COMMIT_INTERVAL_SECONDS, read.MAX_COMMIT_INTERVAL_SECONDS),
        meaning="least time from one transaction to the next; consumers see events at its end",
        unit="duration",
    )
    flags.add(
        "--kafka.keyField",
        default="",
        reads=read.key_field,
        meaning="field of the event that becomes the message's key, such as wiki or meta.domain; "
        "empty: the key is the SSE id",
        unit="path",
    )
    flags.add(
        "--kafka.config",
        default="",
        meaning="a file of librdkafka properties, key=value lines as for kcat -F: the place for "
        "passwords",
        unit="file",
    )
    flags.add(
        "--kafka.property",
        default="",
        reads=properties.properties_in,
        repeated=True,
        meaning="one librdkafka property; may be repeated. In the environment one a line, in the "
        "file of --config a list. Outranks the same one in --kafka.config. Passwords are refused "
        "on the command line, where everybody can see them",
        unit="key=value",
    )


def kafka_settings(flag: Mapping[str, Any], position_name: str) -> KafkaSettings:
    """The settings behind parsed flags, by their names without dashes.

    Raises:
        UsageError: a property is refused or can't be read, or the flags contradict each other.
    """
    path = flag["kafka.config"]
    from_file = properties.read_file(path) if path else ()
    merged = properties.merged(from_file, flag["kafka.property"])
    brokers, others = properties.without_brokers(merged)
    properties.refuse(others)
    if brokers is None:
        brokers = flag["kafka.broker"]
    elif "kafka.broker" in flag["given"] and brokers != flag["kafka.broker"]:
        raise UsageError(
            "--kafka.broker says something else than bootstrap.servers in the Kafka properties: "
            "take one of them away"
        )
    timeout_ms = dict(others).get("transaction.timeout.ms", "")
    # Cut, for int() refuses thousands of digits; librdkafka says what is wrong with so long a number.
    if timeout_ms.isdecimal() and int(timeout_ms[:18]) <= flag["kafka.commitInterval"] * 1000:
        raise UsageError(
            "the Kafka property transaction.timeout.ms must be longer than --kafka.commitInterval: "
            "otherwise the cluster would break off each transaction before its end"
        )
    return KafkaSettings(
        brokers=brokers,
        topic=flag["kafka.topic"],
        partitions=flag["kafka.partitions"],
        replication=flag["kafka.replication"],
        compression=flag["kafka.compression"],
        commit_interval_seconds=flag["kafka.commitInterval"],
        key_field=flag["kafka.keyField"],
        properties=others,
        position_name=position_name,
    )
