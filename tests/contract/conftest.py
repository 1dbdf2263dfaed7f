"""The context that the suite gives to a sink."""

from __future__ import annotations

from multiprocessing import Pipe

import pytest

from pleiades.runtime.child import ChildContext
from tests.harness.kafka import kafka, secure, topic
from tests.unit.conftest import metrics

__all__ = ["child", "kafka", "metrics", "secure", "topic"]


@pytest.fixture
def child() -> ChildContext:
    """A process whose heartbeats nobody reads."""
    _, nowhere = Pipe(duplex=False)
    return ChildContext(nowhere)
