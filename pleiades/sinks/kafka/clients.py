"""The three clients of librdkafka, configured alike, and the errors that they report by themselves.

The user's properties reach each of them. The settings that the guarantee needs are made here;
`sinks.kafka.properties` refuses properties that would break it. A client is made in the process that
uses it: threads of librdkafka do not survive a fork, nor are they pickled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, ThrottleEvent
from confluent_kafka.admin import AdminClient

from pleiades import __version__
from pleiades.runtime.errors import UsageError
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.errors import text_of

log = logging.getLogger(__name__)

Client = TypeVar("Client")

TRANSACTION_TIMEOUT_MS = 300_000
"""The broker ends a transaction that lasts longer. Long, so that a broker may hang for minutes: the next
start, not this, ends what a crash leaves open."""
MAX_BATCH_BYTES = 1_000_000
MIN_BATCH_BYTES = 1_000
BATCH_OVERHEAD_BYTES = 1_000
"""A generous bound of what a batch has beyond its messages: its header has 61 bytes."""
PROBE_LINGER_MS = 900_000
"""librdkafka's longest. Records that are produced one after the other are never sent apart."""


class Clients:
    """Makes clients, and remembers the last error that one of them reported by itself."""

    def __init__(self, settings: KafkaDestination) -> None:
        self.settings = settings
        self.last_error: KafkaError | None = None
        self.throttled_until = 0.0
        """Monotonic time until which the brokers let this client wait for its quota."""
        self._polled: list[Any] = []
        self._logger = logging.getLogger(f"{__name__}.librdkafka")
        self._logger.addFilter(_as_debug)

    def listen(self) -> None:
        """Take the errors that the clients report by themselves."""
        for client in self._polled:
            client.poll(0)

    def admin(self) -> AdminClient:
        """For topics, their configuration, offsets and the stored position."""
        return self._made(AdminClient, {})

    def consumer(self) -> Consumer:
        """To read the topic back."""
        return self._made(
            Consumer,
            {
                "group.id": self.settings.group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                # A start reads everything: far more at once than a consumer that keeps up.
                "queued.max.messages.kbytes": 8 * 1024,
                "fetch.queue.backoff.ms": 5,
            },
            {
                # At the end of a partition the broker answers after this time.
                "fetch.wait.max.ms": 10,
                # Compressed; many times as much in memory.
                "fetch.message.max.bytes": 256 * 1024,
            },
        )

    def producer(self, max_batch_bytes: int, on_statistics: Callable[[str], None]) -> Producer:
        """The transactional one.

        Args:
            max_batch_bytes: the topic's limit. A larger batch consists of one message, so that a
                refusal says which.
            on_statistics: gets librdkafka's statistics, JSON.
        """
        batch_bytes = min(MAX_BATCH_BYTES, max_batch_bytes - BATCH_OVERHEAD_BYTES)
        return self._made(
            Producer,
            {
                "transactional.id": self.settings.group,
                "enable.idempotence": True,
                "acks": "all",
                "compression.type": self.settings.compression,
                # More than an event can have (8 MiB and its id): the broker says what is too large.
                "message.max.bytes": 32 * 1024 * 1024,
                # More than is ever in flight, so that no message is refused between two others.
                "queue.buffering.max.kbytes": 128 * 1024,
                "queue.buffering.max.messages": 0,
                "statistics.interval.ms": 5000,
                "stats_cb": on_statistics,
            },
            {
                "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
                "batch.size": max(batch_bytes, MIN_BATCH_BYTES),
                "linger.ms": 100,
                # As Java's producers do, so that topics keyed alike can be joined by partition.
                "partitioner": "murmur2_random",
            },
        )

    def prober(self) -> Producer:
        """For records that the broker must refuse.

        Nothing is sent before a flush. Then all records of a partition are one batch, sent once.
        """
        return self._made(
            Producer,
            {
                "enable.idempotence": False,
                "acks": "all",
                "retries": 0,
                "compression.type": "none",
                # Two names of the same property each: the user may have used the other one.
                "linger.ms": PROBE_LINGER_MS,
                "queue.buffering.max.ms": PROBE_LINGER_MS,
                "message.timeout.ms": PROBE_LINGER_MS + 1000,
                "delivery.timeout.ms": PROBE_LINGER_MS + 1000,
                "batch.num.messages": 10_000,
                "batch.size": 1_000_000,
                "message.max.bytes": 1_000_000,
            },
        )

    def _made(
        self, make: Callable[..., Client], needed: Mapping[str, Any], usual: Mapping[str, Any] = {}
    ) -> Client:
        configuration: dict[str, Any] = {
            # Of each commit one request comes too early for the coordinator: with the default of 100 ms
            # before it is repeated a commit takes 105 ms, with 10 ms it takes 14.
            "retry.backoff.ms": 10,
            # With librdkafka's default a commit that met a broker's restart gets no answer any more: it
            # forgets the coordinator with all brokers (seen with 2.16).
            "metadata.recovery.strategy": "none",
            "client.id": f"pleiades-{__version__}",
            **usual,
            **dict(self.settings.properties),
            **needed,
            # Otherwise asking for a missing topic creates it, with the broker's number of partitions.
            "allow.auto.create.topics": False,
            "bootstrap.servers": self.settings.brokers,
            "error_cb": self._on_error,
            "throttle_cb": self._on_throttle,
        }
        try:
            client = make(configuration, logger=self._logger)
        except KafkaException as error:
            raise UsageError(
                f"Kafka's client refuses its configuration: {text_of(error.args[0], self.settings)}. "
                "Check --kafka.config and --kafka.property"
            ) from None
        if make is not Consumer:
            self._polled.append(client)
        return client

    def _on_throttle(self, throttled: ThrottleEvent) -> None:
        until = time.monotonic() + throttled.throttle_time
        self.throttled_until = max(self.throttled_until, until)

    def _on_error(self, error: KafkaError) -> None:
        # Why one broker is down says more than that all are.
        if error.code() != KafkaError._ALL_BROKERS_DOWN or self.last_error is None:
            self.last_error = error
        log.debug("librdkafka: %s", text_of(error, self.settings))


def _as_debug(record: logging.LogRecord) -> bool:
    """Shows librdkafka's own log at debug level only: the sink reports what an operator must know."""
    record.levelno, record.levelname = logging.DEBUG, "DEBUG"
    # Each client gets all properties, and warns of those that only another one knows.
    return "CONFWARN" not in record.getMessage() and log.isEnabledFor(logging.DEBUG)
