from __future__ import annotations

import pytest

from pleiades.core.restart import (
    HEALTHY_SECONDS,
    MAX_RESTARTS,
    STABLE_SECONDS,
    Ended,
    Restart,
    RestartPolicy,
)

CRASHED = Ended("parser-0", fatal=False, progressed=False, lived_seconds=1.0)
PROGRESSED = Ended("reader", fatal=False, progressed=True, lived_seconds=1.0)
HEALTHY = Ended("reader", fatal=False, progressed=True, lived_seconds=HEALTHY_SECONDS)
STABLE = Ended("reader", fatal=False, progressed=False, lived_seconds=STABLE_SECONDS)
WAITING = Ended("publisher", fatal=False, progressed=False, lived_seconds=20.0, waiting=True)
FATAL = Ended("publisher", fatal=True, progressed=True, lived_seconds=STABLE_SECONDS)
GIVEN_UP = "given up"


@pytest.mark.parametrize(
    ("ends", "pauses"),
    [
        ([CRASHED], [0.1]),
        ([CRASHED] * 5, [0.1, 0.2, 0.4, 0.8, 1.6]),
        ([CRASHED] * 6, [0.1, 0.2, 0.4, 0.8, 1.6, GIVEN_UP]),
        ([CRASHED, CRASHED, PROGRESSED, CRASHED], [0.1, 0.2, 0.4, 0.8]),
        ([CRASHED] * 4 + [PROGRESSED] + [CRASHED] * 4, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * 3]),
        ([CRASHED, CRASHED, HEALTHY, CRASHED], [0.1, 0.2, 0.1, 0.2]),
        ([CRASHED, CRASHED, STABLE, CRASHED], [0.1, 0.2, 0.1, 0.2]),
        ([PROGRESSED] * 20, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * 14]),
        ([HEALTHY] * 20, [0.1] * 20),
        ([WAITING] * 20, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * 14]),
        ([CRASHED] * 5 + [WAITING, CRASHED], [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, GIVEN_UP]),
        ([FATAL], [GIVEN_UP]),
        ([CRASHED, FATAL], [0.1, GIVEN_UP]),
    ],
)
def test_decisions(ends: list[Ended], pauses: list[float | str]) -> None:
    policy = RestartPolicy()
    decisions = [policy.decide(ended, jitter=0.0) for ended in ends]
    shown = [
        decision.after_seconds if isinstance(decision, Restart) else GIVEN_UP
        for decision in decisions
    ]
    assert shown == pauses


def test_jitter_lengthens_the_pause() -> None:
    decision = RestartPolicy().decide(CRASHED, jitter=0.5)
    assert isinstance(decision, Restart)
    assert decision.after_seconds == pytest.approx(0.15)


def test_the_last_restart_is_the_fifth() -> None:
    assert MAX_RESTARTS == 5
