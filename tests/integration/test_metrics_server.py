"""The metrics' folder full, damaged or gone: /metrics says so, and the relay goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pleiades.runtime.metrics import FOLDER_VARIABLE
from pleiades.simulator.settings import SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.oracle import judge, published_count
from tests.harness.prerequisites import MOUNT, require
from tests.harness.relay import Relay, since_ms

Simulate = Callable[[SimulatorSettings], Simulator]
Flags = Callable[[Simulator], list[str]]

EVENTS = "pleiades_file_publish_events_total"
UNREADABLE = "pleiades_metrics_files_unreadable"
UNWRITTEN = "pleiades_metrics_processes_unwritten"
SMALL = "64k"
"""Two processes' files at most."""
LARGE = "4m"


def goes_on_publishing(relay: Relay, folder: Path) -> None:
    before = published_count(folder)
    relay.until(lambda: published_count(folder) > before + 50, "new events", 30)


def figures_are_whole(relay: Relay, folder: Path) -> None:
    """All that was published until now is on the page, and the page says that it is all."""
    published = published_count(folder)
    relay.until(lambda: relay.metric(EVENTS) >= published, "the figures of before", 30)
    relay.until(lambda: relay.metric(UNREADABLE) == relay.metric(UNWRITTEN) == 0, "its word", 30)
    assert relay.metric("pleiades_build_info", **build_of(relay)) == 1, "the parent's own figures"


def build_of(relay: Relay) -> dict[str, str]:
    return next((dict(labels) for name, labels in relay.metrics() if "build_info" in name), {})


def stops_without_a_restart(relay: Relay, upstream: Simulator, folder: Path) -> None:
    assert relay.stop() == 0
    assert "starting all processes again" not in relay.log
    assert "Traceback" not in relay.log
    verdict = judge(folder, upstream.journal(), since_ms(upstream), finished=False)
    assert verdict.flawless, verdict


# ---- a full disk ----


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for the metrics."""
    disk = tmp_path / "metrics"
    disk.mkdir()
    require(MOUNT)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(disk)]
    subprocess.run(mount, check=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path, left_bytes: int = 0) -> None:
    room = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_bsize - left_bytes))


@pytest.mark.parametrize("left_bytes", [0, 4 << 10, 24 << 10])
def test_a_disk_that_is_full_at_the_start(
    simulate: Simulate, flags: Flags, folder: Path, small_disk: Path, left_bytes: int
) -> None:
    upstream = simulate(SimulatorSettings(rate=200))
    fill(small_disk, left_bytes)
    with Relay(*flags(upstream), environment={FOLDER_VARIABLE: str(small_disk)}) as relay:
        relay.wait_for("can't write the metrics of this process.*No space left on device")
        goes_on_publishing(relay, folder)
        relay.until(lambda: relay.metric(UNWRITTEN) >= 1, "its word", 30)
        assert relay.metric(UNREADABLE) == 0
        assert relay.status("/healthz") == 200
        (small_disk / "ballast").unlink()
        subprocess.run(
            ["mount", "-o", f"remount,size={LARGE}", str(small_disk)], check=True, timeout=30
        )
        figures_are_whole(relay, folder)
        stops_without_a_restart(relay, upstream, folder)
    assert "written again, and whole" in relay.log


def test_a_disk_that_fills_up_while_children_begin_anew(
    simulate: Simulate, flags: Flags, folder: Path, small_disk: Path
) -> None:
    """The counters of those that were killed go on, for they have their place on the disk."""
    upstream = simulate(SimulatorSettings(rate=200))
    subprocess.run(["mount", "-o", f"remount,size={LARGE}", str(small_disk)], check=True)
    with Relay(*flags(upstream), environment={FOLDER_VARIABLE: str(small_disk)}) as relay:
        goes_on_publishing(relay, folder)
        figures_are_whole(relay, folder)
        fill(small_disk)
        relay.child("reader").kill()
        relay.wait_for("starting all processes again")
        goes_on_publishing(relay, folder)
        published = published_count(folder)
        relay.until(lambda: relay.metric(EVENTS) >= published, "the figures of before", 30)
        assert relay.stop() == 0
    assert relay.log.count("starting all processes again") == 1


# ---- somebody else in the folder ----


def cut_short(folder: Path) -> None:
    for file in folder.glob("*.db"):
        os.truncate(file, 10)


def overwrite(folder: Path) -> None:
    for file in folder.glob("*.db"):
        file.write_bytes(os.urandom(5000))


def remove(folder: Path) -> None:
    for file in folder.glob("*.db"):
        file.unlink(missing_ok=True)


def remove_all(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("damage", [cut_short, overwrite, remove, remove_all])
def test_files_that_somebody_damages_are_written_anew(
    simulate: Simulate,
    flags: Flags,
    folder: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
) -> None:
    upstream = simulate(SimulatorSettings(rate=200))
    metrics = tmp_path / "metrics"
    with Relay(*flags(upstream), environment={FOLDER_VARIABLE: str(metrics)}) as relay:
        goes_on_publishing(relay, folder)
        children = {child.pid for child in relay.children()}
        damage(metrics)
        assert relay.status("/metrics") == 200
        goes_on_publishing(relay, folder)
        relay.wait_for("publisher: somebody overwrote, cut or removed.*No event and no count is")
        figures_are_whole(relay, folder)
        assert {child.pid for child in relay.children()} == children
        stops_without_a_restart(relay, upstream, folder)


def test_a_file_that_can_not_be_read_is_left_out_and_said(
    simulate: Simulate, flags: Flags, folder: Path, tmp_path: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=200))
    metrics = tmp_path / "metrics"
    with Relay(*flags(upstream), environment={FOLDER_VARIABLE: str(metrics)}) as relay:
        goes_on_publishing(relay, folder)
        # It claims 64 used bytes and holds none of the entries that should lie there.
        (metrics / "counter_damaged.db").write_bytes(b"\x40\0\0\0" + b"\x7f" * 96)
        os.mkfifo(metrics / "counter_fifo.db")
        assert relay.metric(UNREADABLE) == 2
        relay.until(lambda: relay.metric(EVENTS) > 0, "figures", 30)
        relay.wait_for(r"/metrics leaves out 2 of the files.*counter_damaged\.db")
        goes_on_publishing(relay, folder)
        stops_without_a_restart(relay, upstream, folder)


def test_a_folder_that_can_not_be_made_is_a_clear_end(
    simulate: Simulate, flags: Flags, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    environment = {FOLDER_VARIABLE: str(tmp_path / "file" / "metrics")}
    with Relay(*flags(simulate(SimulatorSettings())), environment=environment) as relay:
        assert relay.wait() == 1
    assert f"can't make the folder that {FOLDER_VARIABLE} names" in relay.log
    assert "Traceback" not in relay.log
