"""Restarts as the relay reports them, and giving up, for which the matrix has no row."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from pleiades.simulator.settings import SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.answers import Held, Server
from tests.harness.oracle import judge, more_than, published_count
from tests.harness.prerequisites import FREEZE, FREEZER, require
from tests.harness.relay import Relay, ingest_flags, since_ms
from tests.harness.waiting import until

Simulate = Callable[[SimulatorSettings], Simulator]
Flags = Callable[[Simulator], list[str]]


def restarted_once(relay: Relay, role: str) -> bool:
    return relay.metric("pleiades_process_restarts_total", component=role) == 1


def test_restarts_are_counted_by_component_and_metrics_survive(
    simulate: Simulate, flags: Flags, folder: Path, tmp_path: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=200))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with Relay(*flags(upstream), environment={"TMPDIR": str(temporary)}) as relay:
        relay.wait_ready()
        relay.until(lambda: relay.metric("pleiades_file_publish_events_total") > 50, "events", 30)
        before = relay.metric("pleiades_file_publish_events_total")
        for role in ("publisher", "parser-0", "reader"):
            published = published_count(folder)
            relay.child(role).kill()
            relay.until(
                partial(restarted_once, relay, role),
                f"the restart of {role}",
                30,
            )
            assert relay.metric("pleiades_goroutine_restarts", component=role) == 1
            relay.until(more_than(folder, published), "new events", 30)
        files = sorted(path.name for path in temporary.glob("pleiades-metrics-*/*.db"))
        # It lacks the events of commits that a kill cut short.
        relay.until(
            lambda: relay.metric("pleiades_file_publish_events_total") > before, "a count", 30
        )
        assert relay.stop() == 0
    # One file per kind of metric and role, whatever the number of processes.
    assert len(files) <= 4 * 4, files
    assert not [name for name in files if any(char.isdigit() for char in name.replace("-0", ""))]


def test_to_publish_the_same_again_is_no_progress(folder: Path) -> None:
    """Without an id an event cannot be recognised as published, so each start publishes it again."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    upstream = Server(Held(head + b":ok\n\ndata: 7\n\n"))
    killed: set[int] = set()
    dead_letters = folder / ".pleiades" / "dead-letters"

    def kill_when_it_is_published() -> bool:
        for child in relay.children():
            if (
                relay.role(child) == "parser-0"
                and child.pid not in killed
                and len(list(dead_letters.glob("*.raw"))) > len(killed)
            ):
                killed.add(child.pid)
                child.kill()
        return relay.process.poll() is not None

    flags = (*ingest_flags(upstream.url, 0), "--file.enable", f"--file.publishDir={folder}")
    with Relay(*flags) as relay:
        until(kill_when_it_is_published, "the end", 90)
        assert relay.wait() == 1
    upstream.close()
    assert len(killed) == 6
    assert "gave up: parser-0 ended 6 times in a row" in relay.log


@pytest.fixture
def freezer() -> Iterator[Path]:
    """A group whose processes are frozen in the kernel: even SIGKILL does not end them (cgroup v1)."""
    require(FREEZE)
    group = FREEZER / f"pleiades-{uuid.uuid4()}"
    group.mkdir()
    yield group
    until(lambda: not (group / "cgroup.procs").read_text(), "the end of its processes")
    group.rmdir()


@contextmanager
def frozen(group: Path, pid: int) -> Iterator[None]:
    state = group / "freezer.state"
    (group / "cgroup.procs").write_text(str(pid))
    state.write_text("FROZEN")
    until(lambda: state.read_text().strip() == "FROZEN", "the freeze")
    try:
        yield
    finally:
        # The process holds the log's pipe too, and the reader of the log waits for its end.
        state.write_text("THAWED")


def test_one_that_can_not_be_killed_is_waited_for(
    simulate: Simulate, flags: Flags, folder: Path, freezer: Path
) -> None:
    """Like a publisher that waits for a disk in the kernel: it holds the directory until it is gone."""
    upstream = simulate(SimulatorSettings(rate=200))
    with Relay(*flags(upstream)) as relay:
        relay.until(more_than(folder, 100), "events", 30)
        with frozen(freezer, relay.child("publisher").pid):
            relay.child("reader").kill()
            relay.wait_for("publisher can't be killed: a disk does not answer it. Waiting")
            assert relay.status("/metrics") == 200
        relay.until(more_than(folder, published_count(folder) + 200), "new events", 30)
        assert relay.stop() == 0
    assert "another instance" not in relay.log
    verdict = judge(folder, upstream.journal(), since_ms(upstream), finished=False)
    assert verdict.flawless, verdict


def test_a_stop_leaves_one_behind_that_can_not_be_killed(
    simulate: Simulate, flags: Flags, folder: Path, freezer: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=200))
    with Relay(*flags(upstream)) as relay:
        relay.until(more_than(folder, 100), "events", 30)
        publisher = relay.child("publisher")
        with frozen(freezer, publisher.pid):
            relay.signal(signal.SIGTERM)
            relay.wait_for("leaving publisher behind, which can't be killed")
            assert relay.process.wait(30) == 1
            assert publisher.is_running()
