"""Pleiades relays Wikimedia EventStreams into files or Kafka: every event once, in order."""

__version__ = "0.1.0"
PROJECT_URL = "https://github.com/pleiades-relay/pleiades"
