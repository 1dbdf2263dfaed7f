"""Fixtures of the tests about what surrounds a relay."""

from __future__ import annotations

from tests.harness.kafka import kafka, secure, topic
from tests.integration.conftest import flags, folder, simulate, to_topic

__all__ = ["flags", "folder", "kafka", "secure", "simulate", "to_topic", "topic"]
