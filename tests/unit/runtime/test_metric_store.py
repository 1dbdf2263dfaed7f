"""The metrics files: restarts, kills, a full disk, a full file."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pleiades.runtime import metric_store
from pleiades.runtime.errors import MetricsUnavailable
from pleiades.runtime.logs import Throttle
from pleiades.runtime.metric_store import (
    FILE_BYTES,
    FOLDER_VARIABLE,
    ComponentCollector,
    PreallocatedFile,
    collected,
    metrics_folder,
)
from pleiades.runtime.metrics import Metrics

EVENTS = "pleiades_file_publish_events_total"
RUNS = 5
MEBIBYTE = 1024 * 1024


def shown(name: str, **labels: str) -> float | None:
    return collected().get_sample_value(name, labels)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)


# ---- several processes ----


def test_the_metrics_of_all_processes_are_combined(metrics: Metrics, tmp_path: Path) -> None:
    # One after the other: a series is created in the files of the latest role.
    for role, count in (("reader", 3), ("other", 4)):
        process = Metrics(role, str(tmp_path))
        process.file_events.inc(count)
        process.recv_lines.labels("id").inc(count)
        process.goroutine_restarts.labels("x").set(count)
        process.goroutine_restarts.labels("y").set(-count)
        process.commit_seconds.observe(0.003)
        process.commit_seconds.observe(100)
        process.last_event.set(count)
    metrics.last_event.set(1)
    assert shown(EVENTS) == 7
    assert shown("pleiades_recv_event_lines_total", type="id") == 7
    assert shown("pleiades_goroutine_restarts", component="x") == 4
    assert shown("pleiades_goroutine_restarts", component="y") == -3
    assert shown("pleiades_last_event_time_seconds") == 1, "the latest, not the greatest"
    assert shown("pleiades_window_identities") is None, "it was never set"
    assert shown("pleiades_commit_seconds_bucket", le="0.0025") == 0
    assert shown("pleiades_commit_seconds_bucket", le="0.005") == 2
    assert shown("pleiades_commit_seconds_bucket", le="+Inf") == 4
    assert shown("pleiades_commit_seconds_count") == 4
    assert shown("pleiades_commit_seconds_sum") == pytest.approx(200.006)


def test_a_restarted_process_continues_its_counters(metrics: Metrics, tmp_path: Path) -> None:
    metrics.file_events.inc(3)
    metrics.recv_errors.labels("connect").inc()
    files = set(tmp_path.iterdir())
    Metrics("test", str(tmp_path)).file_events.inc()
    assert shown(EVENTS) == 4
    assert shown("pleiades_recv_errors_total", type="connect") == 1
    assert set(tmp_path.iterdir()) == files, "files pile up"


def test_a_restarted_process_continues_a_file_with_a_half_written_entry(
    metrics: Metrics, tmp_path: Path
) -> None:
    """The entry is there, but the file's used length does not cover it yet."""
    metrics.file_events.inc(3)
    with (tmp_path / "counter_test.db").open("r+b") as file:
        (used,) = struct.unpack("=i", file.read(4))
        file.seek(used)
        file.write(struct.pack("=i", 999) + b"half an entry")
    assert shown(EVENTS) == 3
    Metrics("test", str(tmp_path)).recv_errors.labels("connect").inc(2)
    assert shown(EVENTS) == 3
    assert shown("pleiades_recv_errors_total", type="connect") == 2


# The role and the folder become known after the imports, as in a process with preloaded modules.
COUNTING = """
import sys
from pleiades.runtime.metrics import Metrics
_, folder, run = sys.argv
metrics = Metrics("reader", folder)
while True:
    for number in range(20):
        metrics.file_events.inc()
        metrics.recv_errors.labels(f"{run}-{number}").inc()
        metrics.queue_depth.labels(f"{run}-{number}").set(number)
        metrics.commit_seconds.observe(0.01)
"""


def test_counters_never_go_back_while_processes_are_killed_and_restarted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No scrape fails either."""
    environment = dict(os.environ)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    scraped = [0.0]
    for run in range(RUNS):
        before = scraped[-1]
        with subprocess.Popen(
            [sys.executable, "-c", COUNTING, str(tmp_path), str(run)], env=environment
        ) as process:
            while scraped[-1] < before + 50:
                assert process.poll() is None
                scraped.append(shown(EVENTS) or 0.0)
            process.kill()
            scraped.append(shown(EVENTS) or 0.0)
        scraped.append(shown(EVENTS) or 0.0)
    assert scraped == sorted(scraped)
    errors = sum(
        sample.value
        for family in collected().collect()
        for sample in family.samples
        if sample.name == "pleiades_recv_errors_total"
    )
    assert abs(errors - scraped[-1]) <= RUNS, "a killed process was between two of its counters"


# ---- room ----


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(MetricsUnavailable, match="No space left on device.*No event is lost"):
        Metrics("test", str(tmp_path))
    assert not list(tmp_path.glob("*.db")), "a scrape would fail on it"


def test_a_restarted_process_needs_no_more_room(
    metrics: Metrics, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    metrics.file_events.inc(3)
    request.getfixturevalue("full_disk")
    Metrics("test", str(tmp_path)).file_events.inc()
    assert shown(EVENTS) == 4


def test_a_file_is_allocated_before_a_scrape_can_see_it(
    metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics.file_events.inc(3)
    allocate = os.posix_fallocate
    scraped = []

    def scrape(*arguments: int) -> None:
        scraped.append(shown(EVENTS))
        allocate(*arguments)
        scraped.append(shown(EVENTS))

    monkeypatch.setattr(os, "posix_fallocate", scrape)
    Metrics("other", str(tmp_path))
    assert scraped == [3] * 8
    assert {file.stat().st_size for file in tmp_path.iterdir()} == {FILE_BYTES}
    assert all(file.stat().st_blocks * 512 >= FILE_BYTES for file in tmp_path.iterdir())


def test_series_that_find_no_room_are_missing_and_harm_nobody(
    metrics: Metrics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(metric_store, "_WARNINGS", Throttle(60.0))
    metrics.file_events.inc(3)
    for number in range(3000):
        metrics.position.labels("ä" * (number % 300), str(number)).set(number)
        metrics.recv_errors.labels(f"kind {number}").inc(number)
    metrics.file_events.inc(4)
    assert shown(EVENTS) == 7
    assert shown("pleiades_recv_errors_total", type="kind 300") == 300
    assert shown("pleiades_recv_errors_total", type="kind 2999") is None
    kept = {
        float(sample.labels["partition"]): sample.value
        for family in collected().collect()
        for sample in family.samples
        if sample.name == "pleiades_upstream_position_seconds"
    }
    assert len(kept) > 50
    assert all(value == number for number, value in kept.items())
    assert {file.stat().st_size for file in tmp_path.iterdir()} == {FILE_BYTES}
    (warning,) = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert "is full: new series of this process" in warning
    assert "No event is lost" in warning
    Metrics("test", str(tmp_path)).recv_errors.labels("kind 300").inc()
    assert shown("pleiades_recv_errors_total", type="kind 300") == 301


@pytest.mark.parametrize("length", range(20, 60, 3))
def test_what_finds_no_room_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(metric_store, "FILE_BYTES", 1024)
    path = str(tmp_path / "counter_test.db")
    file = PreallocatedFile(path)
    for number in range(40):
        file.write_value(f"{number}".zfill(length), number, number)  # type: ignore[no-untyped-call]
    read = list(PreallocatedFile.read_all_values_from_file(path))  # type: ignore[no-untyped-call]
    assert [(value, timestamp) for _, value, timestamp, _ in read] == [
        (number, number) for number in range(len(read))
    ]
    assert 1024 - 8 - len(read) * (length + 28) < 2 * (length + 28)
    file.close()  # type: ignore[no-untyped-call]


# ---- the folder ----


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    yield tmp_path
    assert FOLDER_VARIABLE not in os.environ


def test_the_folder_is_private_and_removed_at_the_end(temporary: Path) -> None:
    with metrics_folder() as folder:
        assert Path(folder).parent == temporary
        assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
        assert os.environ[FOLDER_VARIABLE] == folder
        Metrics("test", folder).file_events.inc(3)
        assert shown(EVENTS) == 3
    assert not list(temporary.iterdir())


def test_folders_of_dead_parents_are_removed_and_those_of_live_ones_stay(temporary: Path) -> None:
    dead = temporary / "pleiades-metrics-dead"
    new = temporary / "pleiades-metrics-new"
    for folder in (dead, new):
        folder.mkdir()
    (dead / "counter_reader.db").touch()
    (temporary / "pleiades-metrics-link").symlink_to("/dev/null")
    with metrics_folder() as live:
        Metrics("test", live).file_events.inc()
        with metrics_folder() as other:
            assert not dead.exists()
            assert new.exists(), "its owner may not have locked it yet"
            assert Path(live).exists()
            os.environ[FOLDER_VARIABLE] = live
        assert not Path(other).exists()
        os.environ[FOLDER_VARIABLE] = live


@pytest.mark.parametrize("step", ["scandir", "open", "listdir"])
def test_another_relay_may_remove_its_folder_at_any_step(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    ending = temporary / "pleiades-metrics-ending"
    ending.mkdir()
    (ending / "counter_reader.db").touch()
    original = getattr(os, step)

    def removed_before(path: Any, *others: Any, **flags: Any) -> Any:
        if str(path) == str(ending):
            patched.undo()
            shutil.rmtree(ending)
        return original(path, *others, **flags)

    with monkeypatch.context() as patched:
        patched.setattr(os, step, removed_before)
        with metrics_folder() as folder:
            assert Path(folder).is_dir()
    assert not ending.exists()


def test_a_folder_that_can_not_be_created_is_an_error_at_the_start(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(temporary / "missing"))
    with pytest.raises(MetricsUnavailable, match="No event is lost.*TMPDIR"):
        metrics_folder().__enter__()


# ---- figures of the operating system ----


def test_memory_and_cpu_are_those_of_the_process() -> None:
    registry = CollectorRegistry()
    registry.register(ComponentCollector(lambda: {"parent": os.getpid(), "reader": 2**22 + 1}))

    def taken(name: str, component: str = "parent") -> float | None:
        return registry.get_sample_value(f"pleiades_process_{name}", {"component": component})

    cpu, memory = taken("cpu_seconds_total"), taken("resident_memory_bytes")
    assert cpu is not None
    assert memory is not None
    held = bytearray(b"x") * (64 * MEBIBYTE)
    assert 60 * MEBIBYTE < (taken("resident_memory_bytes") or 0) - memory < 80 * MEBIBYTE
    del held
    while taken("cpu_seconds_total") == cpu:
        pass
    assert (taken("cpu_seconds_total") or 0) <= sum(os.times()[:2]) + 0.02
    assert taken("resident_memory_bytes", "reader") is None, "it has ended"
    assert taken("cpu_seconds_total", "reader") is None
