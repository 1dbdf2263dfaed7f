from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.gathering import GATHERED_BYTES, MAX_SECONDS, MIN_SECONDS, Gathering

EVENT_BYTES = 1400


@pytest.mark.parametrize(
    ("received_bytes", "elapsed_seconds", "pause_seconds"),
    [
        (EVENT_BYTES, 60.0, MAX_SECONDS),
        (20 * EVENT_BYTES, 0.4, MAX_SECONDS),
        (GATHERED_BYTES, 0.1, 0.1),
        (GATHERED_BYTES // 2, 0.1, 0.2),
        (GATHERED_BYTES, MIN_SECONDS / 2, 0.0),
        (2 * GATHERED_BYTES, 10.0, 0.0),
        (EVENT_BYTES, 0.0, 0.0),
        (0, 1.0, MAX_SECONDS),
    ],
    ids=["rare", "live", "busy", "slower", "fast", "history", "at once", "nothing whole"],
)
def test_pauses(received_bytes: int, elapsed_seconds: float, pause_seconds: float) -> None:
    gathering = Gathering()
    assert gathering.pause_seconds(5, 100.0) == 0, "the greeting"
    paused = gathering.pause_seconds(received_bytes, 100.0 + elapsed_seconds)
    assert paused == pytest.approx(pause_seconds)


@given(st.floats(1.0, 1e9))
def test_a_steady_stream_never_fills_the_receive_buffer(bytes_a_second: float) -> None:
    gathering, now, waiting = Gathering(), 0.0, bytes_a_second * 0.01
    for _ in range(50):
        now += 0.01
        paused = gathering.pause_seconds(int(waiting), now)
        now += paused
        waiting = bytes_a_second * (paused + 0.01)
        # What comes while nobody reads.
        assert bytes_a_second * paused <= GATHERED_BYTES * 1.01 + bytes_a_second * MIN_SECONDS
