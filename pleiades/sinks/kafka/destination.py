# ruff: noqa: RUF009  # `flag` declares fields of dataclasses
"""The Kafka destination as the command line describes it; see `Destination`.

librdkafka is not imported here: this module is loaded whichever destination is chosen.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from pleiades.config.flags import BOOLEAN, Flag, flag
from pleiades.config.settings import Settings
from pleiades.config.values import Reader, choice, duration, integer
from pleiades.core.checkpoint import Checkpoint
from pleiades.runtime.errors import UsageError
from pleiades.runtime.findings import Finding
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.base import LEAST_COMMIT_BYTES, CommitPolicy, Destination, Sink, SinkContext
from pleiades.sinks.kafka import properties as librdkafka
from pleiades.sinks.kafka.properties import Properties

DEAD_LETTERS_SUFFIX = "-dead-letters"
"""The suffix of the topic that holds the dead letters of a topic."""
MAX_TOPIC_CHARACTERS = 249 - len(DEAD_LETTERS_SUFFIX)
"""Kafka's own bound (org.apache.kafka.common.internals.Topic), for both topics."""
MAX_MESSAGES_IN_FLIGHT = 20_000


def topic_name(text: str) -> str:
    """Reads the name of a Kafka topic that leaves room for the name of its dead letters'."""
    if re.fullmatch(r"[A-Za-z0-9._-]+", text) is None or text in (".", ".."):
        raise ValueError(f"{text[:300]!r} is no topic's name: letters, digits, '.', '_' and '-'")
    if len(text) > MAX_TOPIC_CHARACTERS:
        raise ValueError(
            f"has {len(text)} characters; at most {MAX_TOPIC_CHARACTERS} leave room for the "
            f"{DEAD_LETTERS_SUFFIX} of the topic beside it"
        )
    return text


def field_path(text: str) -> tuple[str, ...]:
    """Reads the path of a field in an event, such as `meta.domain`; empty: no path."""
    path = tuple(text.split(".")) if text else ()
    if not all(part and part == part.strip() and part.isprintable() for part in path):
        raise ValueError(f"{text[:300]!r} is no path of a field, such as wiki or meta.domain")
    return path


@dataclass(frozen=True)
class KafkaDestination(Destination):
    """A topic."""

    brokers: str = flag(
        "localhost:9092",
        "brokers to find the cluster by, joined by commas",
        Reader("host:port", librdkafka.brokers),
        name="kafka.broker",
    )
    topic: str = flag(
        "pleiades-events",
        "topic to publish to; created if missing. Dead letters go into the one beside it whose name "
        f"ends with {DEAD_LETTERS_SUFFIX}",
        Reader("name", topic_name),
    )
    partitions: int = flag(
        "1",
        "partitions of a topic that is created; one that exists stays as it is",
        integer(1, 10_000),
    )
    replication: int = flag(
        "0", "copies of a topic that is created; 0: the cluster's default", integer(0, 32_767)
    )
    compression: str = flag(
        "zstd", "how batches are compressed", choice("none", "gzip", "snappy", "lz4", "zstd")
    )
    commit_interval_seconds: float = flag(
        "200ms",
        "least time from one transaction to the next; consumers see events at its end",
        duration(0.005, 60.0),
    )
    key_field: tuple[str, ...] = flag(
        "",
        "field of the event that becomes the message's key, such as wiki or meta.domain; empty: the key "
        "is the SSE id",
        Reader("path", field_path),
    )
    properties_file: str = flag(
        "",
        "a file of librdkafka properties, key=value lines as for kcat -F: the place for passwords",
        Reader("file", str),
        name="kafka.config",
    )
    properties: Properties = flag(
        "",
        "one librdkafka property; may be repeated. In the environment one a line, in the file of "
        "--config a list. Outranks the same one in --kafka.config. Passwords are refused on the command "
        "line, where everybody can see them",
        Reader("key=value", librdkafka.properties_in),
        name="kafka.property",
        repeated=True,
        secret=True,
    )
    """All of them, those of the file included. They may hold secrets."""

    modules = ("pleiades.sinks.kafka.sink",)
    prefix = "kafka."
    enable = Flag(
        "kafka.enable", "false", "publish to Kafka (exactly one publisher must be enabled)", BOOLEAN
    )

    @classmethod
    def from_flags(cls, given: Mapping[str, Any], position_name: str) -> Self:
        """See `Destination.from_flags`; also if a property is refused or can't be read."""
        made = super().from_flags(given, position_name)
        from_file = librdkafka.read_file(made.properties_file) if made.properties_file else ()
        brokers, others = librdkafka.settled(from_file, made.properties)
        if brokers is not None and "kafka.broker" in given["given"] and brokers != made.brokers:
            raise UsageError(
                "--kafka.broker says something else than bootstrap.servers in the Kafka properties: "
                "take one of them away"
            )
        timeout_ms = dict(others).get("transaction.timeout.ms", "")
        # Cut, for int() refuses thousands of digits; librdkafka reports what is wrong with so many.
        if timeout_ms.isdecimal() and int(timeout_ms[:18]) <= made.commit_interval_seconds * 1000:
            raise UsageError(
                "the Kafka property transaction.timeout.ms must be longer than --kafka.commitInterval: "
                "otherwise the cluster would break off each transaction before its end"
            )
        return replace(made, brokers=brokers or made.brokers, properties=others)

    @staticmethod
    def refused_argument(words: Sequence[str]) -> str | None:
        """See `Destination.refused_argument`: `ps` shows a secret to everybody."""
        secret = librdkafka.secret_in(words)
        return secret and (
            f"{secret} is secret, and everybody can read a command line (ps): put it into the "
            "file of --kafka.config, or into the environment as $PLEIADES_KAFKA_PROPERTY"
        )

    @property
    def place(self) -> str:
        """See `Destination.place`."""
        return f"the topic {self.topic} of Kafka at {self.brokers}"

    @property
    def dead_letters(self) -> str:
        """The topic of the dead letters."""
        return self.topic + DEAD_LETTERS_SUFFIX

    @property
    def group(self) -> str:
        """The consumer group that holds the position, which is also the transactional id."""
        return f"pleiades-{self.topic}-{self.position_name}"

    def make_sink(self, context: SinkContext) -> Sink:
        """See `Destination.make_sink`."""
        from pleiades.sinks.kafka.sink import KafkaSink

        return KafkaSink(self, context)

    @property
    def commit_policy(self) -> CommitPolicy:
        """See `Destination.commit_policy`."""
        # It begins small: how fast the brokers are is seen at the first commits.
        return CommitPolicy(
            self.commit_interval_seconds, MAX_MESSAGES_IN_FLIGHT, max_bytes=LEAST_COMMIT_BYTES
        )

    def record_commit(self, metrics: Metrics, published: int, reached_ms: int) -> None:
        """See `Destination.record_commit`."""
        metrics.kafka_events.inc(published)
        if reached_ms:
            metrics.kafka_lag_ms.set(max(time.time() * 1000 - reached_ms, 0.0))

    def inspect(self, settings: Settings) -> Iterator[Finding]:
        """See `Destination.inspect`."""
        from pleiades.sinks.kafka.inspect import inspect

        return inspect(settings, self)

    def clock_refusal(self, ahead_seconds: float) -> str:
        """See `Destination.clock_refusal`; a topic that exists is asked by `inspect`."""
        from pleiades.sinks.kafka.inspect_clock import refusal_of_new_topic

        return refusal_of_new_topic(self, ahead_seconds)

    def stored_checkpoint(self, is_replay: bool = True) -> Checkpoint | None:
        """See `Destination.stored_checkpoint`."""
        from pleiades.sinks.kafka.inspect import stored_checkpoint

        return stored_checkpoint(self)
