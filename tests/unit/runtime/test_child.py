"""How a child shows that it lives while something in it blocks."""

from __future__ import annotations

import contextlib
import gc
import select
import threading
import weakref
from multiprocessing import Pipe

import pytest

from pleiades.runtime import child
from pleiades.runtime.child import Life

PATIENCE_SECONDS = 10


def test_it_beats_and_says_how_long_while_a_call_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(child, "SLOW_SECONDS", 0.05)
    beats, own = Pipe(duplex=False)
    life = Life(own)
    enough = threading.Event()
    said: list[float] = []

    def announce(seconds: float) -> None:
        said.append(seconds)
        if len(said) == 3:
            enough.set()

    assert life.aside(lambda: enough.wait(PATIENCE_SECONDS), announce)
    assert len(said) == 3
    assert said == sorted(said)
    assert said[0] >= 0.05
    came = 0
    while beats.poll():
        beats.recv()
        came += 1
    assert came > 3


def test_what_a_call_raises_comes_out_even_if_it_is_a_timeout() -> None:
    life = Life(Pipe(duplex=False)[1])

    def timed_out() -> None:
        raise TimeoutError(110, "Connection timed out")

    with pytest.raises(TimeoutError, match="Connection timed out"):
        life.aside(timed_out, lambda _: None)
    assert life.aside(lambda: 7, lambda _: None) == 7


def test_the_last_beat_waits_for_a_parent_that_is_busy() -> None:
    beats, own = Pipe(duplex=False)
    life = Life(own)
    while select.select([], [own], [], 0)[1]:
        life.beat(at_once=True)
    life.published_total = 7
    life.beat(at_once=True)
    leaving = threading.Thread(target=life.farewell)
    leaving.start()
    told = 0
    while told != 7:
        assert beats.poll(PATIENCE_SECONDS), "the last beat did not come"
        told = beats.recv().published_total
    leaving.join(PATIENCE_SECONDS)


def test_what_a_failed_call_had_in_hand_is_let_go_at_once() -> None:
    """A destination that stalls fails for hours, with a batch in hand each time."""
    life = Life(Pipe(duplex=False)[1])
    held: list[weakref.ref[set[int]]] = []

    def fails() -> None:
        batch = {1}
        held.append(weakref.ref(batch))
        raise OSError(28, "No space left on device")

    gc.disable()
    try:
        # Not by pytest, which keeps what it has caught.
        with contextlib.suppress(OSError):
            life.aside(fails, lambda _: None)
        assert [batch() for batch in held] == [None]
    finally:
        gc.enable()
