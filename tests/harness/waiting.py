"""Waiting for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.02


def until(condition: Callable[[], T], what: str, timeout_seconds: float = 30.0) -> T:
    """Poll until the condition is true; returns its value.

    Raises:
        TimeoutError: it was not, with `what` was waited for.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        asked = time.monotonic()
        if value := condition():
            return value
        now = time.monotonic()
        if now > deadline:
            raise TimeoutError(f"waited {timeout_seconds:g} s for {what}")
        # A condition that is dear to ask must not take the processor from what it waits for.
        time.sleep(max(POLL_SECONDS, 2 * (now - asked)))
