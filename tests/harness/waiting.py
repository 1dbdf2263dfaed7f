"""Waits for conditions, never for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.02


def until(condition: Callable[[], T], what: str, timeout_seconds: float = 30.0) -> T:
    """Poll until the condition is true; returns its value.

    Raises:
        TimeoutError: it did not become true; the message names `what`.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        asked = time.monotonic()
        if value := condition():
            return value
        now = time.monotonic()
        if now > deadline:
            raise TimeoutError(f"waited {timeout_seconds:g} s for {what}")
        # An expensive condition must not take the processor from the work that it waits for.
        time.sleep(max(POLL_SECONDS, 4 * (now - asked)))
