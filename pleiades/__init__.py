"""Pleiades relays Wikimedia EventStreams into files or Kafka: every event once, in order."""

__version__ = "0.1.0"
