"""The three clients of librdkafka that the sink uses, configured alike, and what they say meanwhile.

The user's properties reach each of them. What the guarantee needs is set here, and what would break it
has been refused before (`sinks.kafka.properties`). A client is made in the process that uses it: threads
of librdkafka do not survive a fork, nor are they pickled.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from pleiades import __version__
from pleiades.runtime.errors import UsageError
from pleiades.runtime.logs import printable
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.kafka.trouble import group_of, said

log = logging.getLogger(__name__)

STATISTICS_MS = 5000
RETRY_BACKOFF_MS = 10
"""The first wait before a request is tried again. Each commit meets one that the coordinator is not
ready for: with librdkafka's 100 ms a commit with its position takes 105 ms, with 10 ms it takes 14."""
LINGER_MS = 100
TRANSACTION_TIMEOUT_MS = 300_000
"""After that long without a commit the broker ends a transaction. Long, so that a broker that hangs for
minutes does not: what a crash leaves open is ended by the next start, not by this."""
MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""More than an event can have (8 MiB and its id): whether it is too large the broker says."""
MAX_QUEUED_KBYTES = 128 * 1024
"""More than is ever in flight, so that no message of a batch is refused between two others."""
MAX_BATCH_BYTES = 1_000_000
MIN_BATCH_BYTES = 1_000
BATCH_OVERHEAD_BYTES = 1_000
"""What a batch may have beyond its messages, generously: its header is 61 bytes."""


class Clients:
    """Makes clients, and remembers the last error that any of them reported by itself."""

    def __init__(self, settings: KafkaDestination) -> None:
        self.settings = settings
        self.last_error: KafkaError | None = None
        self._made_clients: list[Producer | AdminClient] = []
        self._logger = logging.getLogger(f"{__name__}.librdkafka")
        self._logger.addFilter(_without_properties_of_others)

    def admin(self) -> AdminClient:
        """For topics, their configuration and their ends."""
        admin: AdminClient = self._made(AdminClient, {})
        self._made_clients.append(admin)
        return admin

    def listen(self) -> None:
        """Take note of what the clients report by themselves."""
        for client in self._made_clients:
            client.poll(0)

    def consumer(self) -> Consumer:
        """For the stored position, and to read the topic back."""
        consumer: Consumer = self._made(
            Consumer,
            {
                "group.id": group_of(self.settings),
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                # A start reads all there is: far more at once than a consumer that keeps up.
                "queued.max.messages.kbytes": 8 * 1024,
                "fetch.queue.backoff.ms": 5,
            },
            {
                # That a partition ends is known when the broker has nothing more to give: after this.
                "fetch.wait.max.ms": 10,
                # Compressed; in memory it is many times that.
                "fetch.message.max.bytes": 256 * 1024,
            },
        )
        return consumer

    def producer(self, max_batch_bytes: int, on_statistics: Callable[[str], None]) -> Producer:
        """The transactional one.

        Args:
            max_batch_bytes: what the topic takes in one batch. A larger one consists of one message, so
                that a refusal says which.
            on_statistics: gets librdkafka's statistics, JSON.
        """
        batch_bytes = min(MAX_BATCH_BYTES, max_batch_bytes - BATCH_OVERHEAD_BYTES)
        producer: Producer = self._made(
            Producer,
            {
                "transactional.id": group_of(self.settings),
                "enable.idempotence": True,
                "acks": "all",
                "compression.type": self.settings.compression,
                "message.max.bytes": MAX_MESSAGE_BYTES,
                "queue.buffering.max.kbytes": MAX_QUEUED_KBYTES,
                "queue.buffering.max.messages": 0,
                "statistics.interval.ms": STATISTICS_MS,
                "stats_cb": on_statistics,
            },
            {
                "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
                "batch.size": max(batch_bytes, MIN_BATCH_BYTES),
                "linger.ms": LINGER_MS,
                # As Java's producers do, so that topics keyed alike can be joined by partition.
                "partitioner": "murmur2_random",
            },
        )
        self._made_clients.append(producer)
        return producer

    def _made(
        self, make: Callable[..., Any], needed: Mapping[str, Any], usual: Mapping[str, Any] = {}
    ) -> Any:
        configuration: dict[str, Any] = {
            "retry.backoff.ms": RETRY_BACKOFF_MS,
            # With the other strategy, librdkafka's default, a commit that met a broker's restart gets
            # no answer any more: it forgets the coordinator with all brokers (seen with 2.16).
            "metadata.recovery.strategy": "none",
            "client.id": f"pleiades-{__version__}",
            **usual,
            **dict(self.settings.properties),
            **needed,
            # A look at a missing topic must not make it, with whatever partitions the broker likes.
            "allow.auto.create.topics": False,
            "bootstrap.servers": self.settings.brokers,
            "error_cb": self._on_error,
        }
        try:
            return make(configuration, logger=self._logger)
        except KafkaException as error:
            raise UsageError(
                f"Kafka's client refuses its configuration: {said(error.args[0], self.settings)}. "
                "Look at --kafka.config and --kafka.property"
            ) from None

    def _on_error(self, error: KafkaError) -> None:
        # That all are down says less than why one is.
        if error.code() != KafkaError._ALL_BROKERS_DOWN or self.last_error is None:
            self.last_error = error
        log.debug("librdkafka: %s", said(error, self.settings))


def new_writer() -> str:
    """A name for this process in what it stores."""
    return secrets.token_hex(8)


def _without_properties_of_others(record: logging.LogRecord) -> bool:
    """Each client gets all properties, and complains of those that only another one knows."""
    message = record.getMessage()
    record.msg, record.args = printable(message, 500), ()
    # librdkafka's levels are for its developers: what an operator must know is said by the sink.
    record.levelno, record.levelname = logging.DEBUG, "DEBUG"
    return "CONFWARN" not in message and log.isEnabledFor(logging.DEBUG)
