"""A disk that is really full, and then has room again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pleiades.simulator.settings import SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.oracle import judge
from tests.harness.relay import Relay

SMALL = "1m"
LARGE = "64m"


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """The publish directory as a file system of its own, of one mebibyte."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_waited_for_and_nothing_is_skipped(
    simulate: Callable[[SimulatorSettings], Simulator],
    flags: Callable[[Simulator], list[str]],
    small_disk: Path,
) -> None:
    upstream = simulate(SimulatorSettings(rate=200, max_events=2000))
    with Relay(*flags(upstream)) as relay:
        relay.wait_for("No space left on device.*trying again")
        before = relay.metric("pleiades_file_publish_errors_total")
        assert before >= 1
        # It keeps trying, stays alive, and says so.
        relay.until(
            lambda: relay.metric("pleiades_file_publish_errors_total") > before + 2, "tries", 60
        )
        assert relay.status("/healthz") == 200
        since_ms = upstream.started_ms - 60_000
        full = judge(small_disk, upstream.journal(), since_ms, finished=False)
        assert full.flawless, full
        subprocess.run(
            ["mount", "-o", f"remount,size={LARGE}", str(small_disk)], check=True, timeout=30
        )
        upstream.wait_until(lambda stats: stats.events_appended_total >= 2000, 30)
        relay.until(
            lambda: judge(small_disk, upstream.journal(), since_ms).flawless, "all events", 60
        )
        assert relay.stop() == 0
    assert relay.log.count(" hangs") == 0, relay.log
