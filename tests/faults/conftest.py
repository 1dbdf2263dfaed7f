"""Imports the fixtures of the end-to-end tests."""

from tests.integration.conftest import (
    flags,
    folder,
    kafka,
    own_broker,
    secure,
    simulate,
    to_topic,
    topic,
)

__all__ = ["flags", "folder", "kafka", "own_broker", "secure", "simulate", "to_topic", "topic"]
