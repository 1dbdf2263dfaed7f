"""Tries again after what passes, with the pauses that are due."""

from __future__ import annotations

import random
from collections.abc import Callable

from tenacity import RetryCallState, Retrying, retry_if_exception_type

from pleiades.core.pauses import Pauses
from pleiades.runtime.errors import Transient


def retrying(
    pauses: Pauses,
    announce: Callable[[Transient, float], None],
    sleep: Callable[[float], None],
) -> Retrying:
    """Tries again after each `Transient`, for ever, with the pauses that are due.

    Args:
        announce: told before each pause: why, and for how many seconds.
        sleep: waits that many seconds; may raise to end it.
    """

    def failure(state: RetryCallState) -> Transient:
        error = state.outcome.exception() if state.outcome else None
        if not isinstance(error, Transient):
            raise AssertionError("only what is transient is tried again")  # noqa: TRY004  # a bug
        return error

    def wait_seconds(state: RetryCallState) -> float:
        # Jitter spreads out instances that failed together; it guards no secret.
        jitter = random.random()  # noqa: S311
        return pauses.after_failure(
            state.attempt_number, jitter, failure(state).retry_after_seconds
        )

    return Retrying(
        retry=retry_if_exception_type(Transient),
        wait=wait_seconds,
        before_sleep=lambda state: announce(failure(state), state.upcoming_sleep),
        sleep=sleep,
    )
