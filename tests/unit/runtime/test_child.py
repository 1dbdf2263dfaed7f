"""A child's signs of life while something in it blocks."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import socket
import threading
import weakref
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from pleiades.runtime import child as child_module
from pleiades.runtime.child import Beat, ChildContext
from tests.harness.waiting import until

PATIENCE_SECONDS = 10
BEAT_BYTES = 512 * 1024


class Parent:
    """The other end of a child's heartbeats, as `ChildProcess` makes it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(PATIENCE_SECONDS)
        self._socket = ours
        self.childs = Connection(theirs.detach())

    def hear(self) -> Beat:
        """Wait for the next heartbeat."""
        beat: Beat = pickle.loads(self._socket.recv(BEAT_BYTES))  # noqa: S301  # our own
        return beat

    def heard(self) -> list[Beat]:
        """All heartbeats that have arrived."""
        self._socket.setblocking(False)
        beats = []
        with contextlib.suppress(BlockingIOError):
            while True:
                beats.append(self.hear())
        self._socket.settimeout(PATIENCE_SECONDS)
        return beats

    def close(self) -> None:
        """Close the parent's end."""
        self._socket.close()


@pytest.fixture
def parent() -> Iterator[Parent]:
    parent = Parent()
    yield parent
    parent.close()


def test_it_beats_and_says_how_long_while_a_call_blocks(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(child_module, "SLOW_SECONDS", 0.05)
    child = ChildContext(parent.childs)
    enough = threading.Event()
    said: list[float] = []

    def announce(seconds: float) -> None:
        said.append(seconds)
        if len(said) == 3:
            enough.set()

    assert child.run_in_thread(lambda: enough.wait(PATIENCE_SECONDS), announce)
    # On a busy machine the call ends some announcements later.
    assert len(said) >= 3
    assert said == sorted(said)
    assert said[0] >= 0.05
    assert len(parent.heard()) > 3


def test_what_a_call_raises_comes_out_even_if_it_is_a_timeout(parent: Parent) -> None:
    child = ChildContext(parent.childs)

    def timed_out() -> None:
        raise TimeoutError(110, "Connection timed out")

    with pytest.raises(TimeoutError, match="Connection timed out"):
        child.run_in_thread(timed_out, lambda _: None)
    assert child.run_in_thread(lambda: 7, lambda _: None) == 7


def test_no_beat_waits_for_a_parent_that_is_stopped_however_large_it_is(parent: Parent) -> None:
    """More than a pipe takes atomically (4,096 bytes): a position of 40 topics."""
    child = ChildContext(parent.childs)
    child.position = "x" * 10_000

    def beat_often() -> None:
        for child.published_total in range(1000):
            child.beat(at_once=True)

    beating = threading.Thread(target=beat_often, daemon=True)
    beating.start()
    beating.join(PATIENCE_SECONDS)
    assert not beating.is_alive(), "a beat waits for the parent"
    beats = parent.heard()
    assert 0 < len(beats) < 1000
    assert [beat.published_total for beat in beats] == list(range(len(beats)))
    assert {beat.position for beat in beats} == {child.position}
    child.beat(at_once=True)
    assert parent.hear().published_total == 999


def test_the_last_beat_waits_for_a_parent_that_is_busy(parent: Parent) -> None:
    child = ChildContext(parent.childs)
    child.position = "x" * 10_000
    for _ in range(1000):
        child.beat(at_once=True)
    child.published_total = 7
    leaving = threading.Thread(target=child.farewell)
    leaving.start()
    until(
        lambda: os.get_blocking(parent.childs.fileno()), "a last beat that waits", PATIENCE_SECONDS
    )
    while parent.hear().published_total != 7:
        pass
    leaving.join(PATIENCE_SECONDS)


def test_a_parent_that_is_gone_holds_up_nothing(parent: Parent) -> None:
    child = ChildContext(parent.childs)
    parent.close()
    child.beat(at_once=True)
    child.farewell()


def test_what_a_failed_call_had_in_hand_is_let_go_at_once(parent: Parent) -> None:
    """A stalled destination fails for hours, each time with a batch in hand."""
    child = ChildContext(parent.childs)
    held: list[weakref.ref[set[int]]] = []

    def fails() -> None:
        batch = {1}
        held.append(weakref.ref(batch))
        raise OSError(28, "No space left on device")

    gc.disable()
    try:
        # Not pytest.raises, which keeps the exception.
        with contextlib.suppress(OSError):
            child.run_in_thread(fails, lambda _: None)
        assert [batch() for batch in held] == [None]
    finally:
        gc.enable()
