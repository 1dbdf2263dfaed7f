from __future__ import annotations

import pytest

from pleiades.core.restart import (
    HEALTHY_SECONDS,
    MAX_RESTARTS,
    STABLE_SECONDS,
    Ended,
    RestartPolicy,
)

CRASHED = Ended("parser-0", fatal=False, progressed=False, lived_seconds=1.0)
PROGRESSED = Ended("reader", fatal=False, progressed=True, lived_seconds=1.0)
HEALTHY = Ended("reader", fatal=False, progressed=True, lived_seconds=HEALTHY_SECONDS)
STABLE = Ended("reader", fatal=False, progressed=False, lived_seconds=STABLE_SECONDS)
WAITING = Ended("publisher", fatal=False, progressed=False, lived_seconds=20.0, waiting=True)
FATAL = Ended("publisher", fatal=True, progressed=True, lived_seconds=STABLE_SECONDS)
IDLE = Ended("reader", fatal=False, progressed=False, lived_seconds=HEALTHY_SECONDS)
GIVEN_UP = None


@pytest.mark.parametrize(
    ("ends", "pauses"),
    [
        ([CRASHED], [0.1]),
        ([CRASHED] * 5, [0.1, 0.2, 0.4, 0.8, 1.6]),
        ([CRASHED] * 6, [0.1, 0.2, 0.4, 0.8, 1.6, GIVEN_UP]),
        ([CRASHED, CRASHED, PROGRESSED, CRASHED], [0.1, 0.2, 0.4, 0.8]),
        ([CRASHED] * 4 + [PROGRESSED] + [CRASHED] * 4, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * 3]),
        ([HEALTHY], [0.0]),
        ([CRASHED, CRASHED, HEALTHY, CRASHED], [0.1, 0.2, 0.0, 0.1]),
        ([CRASHED, CRASHED, STABLE, CRASHED], [0.1, 0.2, 0.0, 0.1]),
        ([CRASHED, IDLE, IDLE], [0.1, 0.2, 0.4]),
        ([PROGRESSED] * 20, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * 14]),
        ([HEALTHY] * 20, [0.0] * 20),
        ([WAITING] * 20, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * 14]),
        ([CRASHED] * 5 + [WAITING, CRASHED], [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, GIVEN_UP]),
        ([FATAL], [GIVEN_UP]),
        ([CRASHED, FATAL], [0.1, GIVEN_UP]),
    ],
)
def test_decisions(ends: list[Ended], pauses: list[float | None]) -> None:
    policy = RestartPolicy()
    assert [policy.pause_seconds(ended, jitter=0.0) for ended in ends] == pauses


def test_jitter_lengthens_the_pause() -> None:
    assert RestartPolicy().pause_seconds(CRASHED, jitter=0.5) == pytest.approx(0.15)


def test_the_last_restart_is_the_fifth() -> None:
    assert MAX_RESTARTS == 5
