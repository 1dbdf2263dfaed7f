"""Publishes into a Kafka topic: events and position in one transaction."""

from pleiades.sinks.kafka.sink import KafkaSink

__all__ = ["KafkaSink"]
