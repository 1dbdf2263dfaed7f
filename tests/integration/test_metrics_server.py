"""Metrics of a real relay with a full disk and slow HTTP clients."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pleiades.simulator.settings import SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.oracle import judge, published_count
from tests.harness.prerequisites import MOUNT, require
from tests.harness.relay import Relay, since_ms

Simulate = Callable[[SimulatorSettings], Simulator]
Flags = Callable[[Simulator], list[str]]

EVENTS = "pleiades_file_publish_events_total"
CLIENTS = 60


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system for temporary files."""
    disk = tmp_path / "temporary"
    disk.mkdir()
    require(MOUNT)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    subprocess.run(mount, check=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path, left_bytes: int) -> None:
    with (disk / "ballast").open("wb") as ballast:
        ballast.write(bytes((4 << 20) - left_bytes))


@pytest.mark.parametrize(
    "left_bytes", [64 << 10, 700 << 10], ids=["for nothing", "for the parent alone"]
)
def test_a_disk_that_is_full_at_the_start_is_a_clear_end(
    simulate: Simulate, flags: Flags, small_disk: Path, left_bytes: int
) -> None:
    fill(small_disk, left_bytes)
    environment = {"TMPDIR": str(small_disk)}
    with Relay(*flags(simulate(SimulatorSettings())), environment=environment) as relay:
        assert relay.wait() == 1
    assert "can't allocate the metrics file" in relay.log
    assert "No space left on device. No event is lost" in relay.log
    assert "Traceback" not in relay.log
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_disk_that_fills_up_later_harms_nobody(
    simulate: Simulate, flags: Flags, folder: Path, small_disk: Path
) -> None:
    """A killed process's counters continue, because their space is allocated."""
    upstream = simulate(SimulatorSettings(rate=200))
    with Relay(*flags(upstream), environment={"TMPDIR": str(small_disk)}) as relay:
        relay.until(lambda: relay.metric(EVENTS) > 50, "events", 30)
        with pytest.raises(OSError, match="No space left"):
            fill(small_disk, 0)
        before = relay.metric(EVENTS)
        relay.child("publisher").kill()
        relay.wait_for("starting all processes again")
        published = published_count(folder)
        relay.until(lambda: published_count(folder) > published + 50, "new events", 30)
        relay.until(lambda: relay.metric(EVENTS) > before + 50, "the counter to continue", 30)
        assert relay.stop() == 0
    assert relay.log.count("starting all processes again") == 1
    assert "Traceback" not in relay.log
    verdict = judge(folder, upstream.journal(), since_ms(upstream), finished=False)
    assert verdict.flawless, verdict


def test_slow_clients_keep_neither_prometheus_nor_the_relay_waiting(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=200))
    with Relay(*flags(upstream)) as relay, ExitStack() as stack:
        relay.wait_ready()
        address = ("127.0.0.1", int(relay.address.rpartition(":")[2]))
        for number in range(CLIENTS):
            client = stack.enter_context(socket.create_connection(address, 30))
            client.sendall(b"GET /metrics HTTP/1.1\r\n" * (number % 2))
        assert relay.status("/metrics") == 200
        assert relay.status("/healthz") == 200
        published = published_count(folder)
        relay.until(lambda: published_count(folder) > published + 50, "new events", 30)
        assert relay.stop() == 0
    assert "Traceback" not in relay.log
