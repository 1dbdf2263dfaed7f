from __future__ import annotations

import socket
import threading

import pytest

from pleiades.simulator.body import Body, CutShort, plan
from pleiades.simulator.settings import NO_DISORDER, Cut, Faults, SimulatorSettings
from pleiades.simulator.upstream import LocalUpstream


def test_events_that_are_appended_early_are_not_dated_in_the_future() -> None:
    settings = SimulatorSettings(rate=0.001, history_events=3, disorder=NO_DISORDER)
    upstream = LocalUpstream(settings)
    assert upstream.append(5) == 5
    # Both are rounded to milliseconds.
    elapsed_ms = upstream.now() * 1000 + 1
    assert all(entry.timestamp <= upstream.started_ms + elapsed_ms for entry in upstream.journal())


def test_a_lagging_mirror_has_the_history() -> None:
    upstream = LocalUpstream(SimulatorSettings(history_events=100))
    for partition in upstream.log.partitions.values():
        assert partition.end_as_of(upstream.now() - 3600) == partition.end > 0


def test_new_events_wake_who_waits_for_them() -> None:
    upstream = LocalUpstream(SimulatorSettings(history_events=1))
    with upstream.changed:
        # It gets the lock while this thread waits.
        thread = threading.Thread(target=upstream.append, args=(1,))
        thread.start()
        assert upstream.grown.wait(30)
    thread.join()


def test_a_cut_after_some_time_falls_inside_what_is_being_written() -> None:
    faults = Faults(cut_every_seconds=1e-9, cuts=(Cut.CLEAN,))
    lengths = set()
    for number in range(1, 10):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            body = Body(ours, plan(faults, 1, number), 0, compress=False)
            with pytest.raises(CutShort):
                body.write(b"x" * 1000)
            lengths.add(body.bytes_total)
    assert len(lengths) > 1
    assert max(lengths) <= 1000
