"""What the processes count: kept whatever happens to the files, and read whatever lies there."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from pleiades.runtime import metric_files, metric_format, metric_scrape
from pleiades.runtime import metrics as catalogue
from pleiades.runtime.errors import MetricsUnavailable
from pleiades.runtime.logs import Seldom
from pleiades.runtime.metrics import FOLDER_VARIABLE, Metrics, collected, metrics_folder

EVENTS = "pleiades_file_publish_events_total"
UNREADABLE = "pleiades_metrics_files_unreadable"
UNWRITTEN = "pleiades_metrics_processes_unwritten"
COUNTERS = "counter_test.db"
ROOM_FOR_ALL = 1 << 30


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of another test, and what is said once a minute is said in each."""
    monkeypatch.setattr(catalogue, "_run", catalogue._Run())
    monkeypatch.setattr(metric_scrape, "_SELDOM", Seldom(metric_files.WARNING_SECONDS))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are compared with memory at each figure, not every few seconds."""
    monkeypatch.setattr(metric_files, "LOOK_SECONDS", 0.0)


class Disk:
    """A disk that refuses to be written, or has room for so many more bytes at the ends of files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: int | None = None
        self.room = ROOM_FOR_ALL
        self._pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", self._write)

    def _write(self, descriptor: int, content: bytes, place: int) -> int:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        grows = place + len(content) - max(place, os.fstat(descriptor).st_size)
        if grows > self.room:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            content = content[: len(content) - grows + self.room]
            grows = self.room
        self.room -= max(0, grows)
        return self._pwrite(descriptor, content, place)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def shown(name: str, **labels: str) -> float | None:
    return collected().get_sample_value(name, labels)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


# ---- what is counted ----


def test_all_processes_figures_are_taken_together(metrics: Metrics) -> None:
    # One after the other: labels are made in the files of whoever began last.
    for role, count in (("reader", 3), ("other", 4)):
        process = Metrics(role)
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
    assert shown("pleiades_window_identities") is None, "nobody has set it"
    assert shown("pleiades_commit_seconds_bucket", le="0.0025") == 0
    assert shown("pleiades_commit_seconds_bucket", le="0.005") == 2
    assert shown("pleiades_commit_seconds_bucket", le="+Inf") == 4
    assert shown("pleiades_commit_seconds_count") == 4
    assert shown("pleiades_commit_seconds_sum") == pytest.approx(200.006)
    assert (shown(UNREADABLE), shown(UNWRITTEN)) == (0, 0)


def test_the_files_are_those_of_prometheus_client(metrics: Metrics, tmp_path: Path) -> None:
    """Its own collector reads the same out of them."""
    metrics.describe(["reader", "pärser-0"])
    metrics.file_events.inc(3)
    metrics.lag_seconds.observe(0.15)
    metrics.position.labels("a", "0").set(5)
    theirs = CollectorRegistry()
    MultiProcessCollector(theirs, str(tmp_path))  # type: ignore[no-untyped-call]  # untyped there

    def samples(registry: CollectorRegistry) -> set[object]:
        page = generate_latest(registry).decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items())), sample.value)
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if not sample.name.startswith("pleiades_metrics_")
        }

    assert samples(collected()) == samples(theirs)


@pytest.mark.usefixtures("at_once")
def test_a_successor_goes_on_with_the_counters(metrics: Metrics) -> None:
    metrics.file_events.inc(3)
    metrics.recv_errors.labels("connect").inc()
    successor = Metrics("test")
    successor.file_events.inc()
    assert successor.file_events._value.get() == 4
    assert shown(EVENTS) == 4
    assert shown("pleiades_recv_errors_total", type="connect") == 1


def test_a_file_left_half_written_by_a_killed_predecessor_is_gone_on_with(
    metrics: Metrics, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The entry is there, but not yet how far the file is used."""
    metrics.file_events.inc(3)
    with (tmp_path / COUNTERS).open("ab") as file:
        file.write(struct.pack("=i", 999) + b"half an entry")
    Metrics("test").recv_errors.labels("connect").inc(2)
    assert shown(EVENTS) == 3
    assert shown("pleiades_recv_errors_total", type="connect") == 2
    assert not warnings(caplog)


# ---- files that somebody damages ----


def truncated(file: Path) -> None:
    os.truncate(file, 100)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def overwritten(file: Path) -> None:
    file.write_bytes(b"\x7f" * 500)


def zeroed(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def removed(file: Path) -> None:
    file.unlink()


def replaced(file: Path) -> None:
    copy = file.read_bytes()
    file.unlink()
    file.write_bytes(copy[:-3])


def made_a_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def made_a_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def folder_removed(file: Path) -> None:
    for each in file.parent.iterdir():
        each.unlink()
    file.parent.rmdir()


DAMAGES = (
    *(truncated, emptied, overwritten, zeroed, removed, replaced, made_a_fifo, made_a_link),
    folder_removed,
)
Damage = Callable[[Path], None]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.usefixtures("at_once")
def test_a_file_damaged_in_mid_run_is_written_anew_and_no_count_is_lost(
    metrics: Metrics,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Damage,
) -> None:
    metrics.file_events.inc(3)
    metrics.recv_errors.labels("connect").inc()
    damage(tmp_path / COUNTERS)
    metrics.file_events.inc(4)
    metrics.recv_errors.labels("status_5xx").inc()
    assert shown(EVENTS) == 7
    assert shown("pleiades_recv_errors_total", type="connect") == 1
    assert shown("pleiades_recv_errors_total", type="status_5xx") == 1
    assert (shown(UNREADABLE), shown(UNWRITTEN)) == (0, 0)
    (warning,) = warnings(caplog)
    assert "written anew from memory. No event and no count is lost" in warning


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("damage", DAMAGES)
def test_each_process_notices_by_itself_when_it_counts(
    metrics: Metrics, tmp_path: Path, damage: Damage
) -> None:
    """In whichever of its files."""
    metrics.commit_seconds.observe(1)
    Metrics("parent")
    damage(tmp_path / "histogram_test.db")
    metrics.file_events.inc()
    assert shown("pleiades_commit_seconds_count") == 1
    assert (shown(UNREADABLE), shown(UNWRITTEN)) == (0, 0)


@pytest.mark.parametrize("damage", [one for one in DAMAGES if one is not folder_removed])
def test_a_damaged_file_of_another_process_is_left_out_and_said(
    metrics: Metrics, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Damage
) -> None:
    """Until that process counts again and notices."""
    metrics.file_events.inc(3)
    Metrics("other").file_events.inc(4)
    # Who reads is the last to have begun here.
    Metrics("parent")
    damage(tmp_path / "counter_other.db")
    assert shown(EVENTS) == 3
    if damage is removed:
        assert (shown(UNREADABLE), warnings(caplog)) == (0, [])
        return
    assert shown(UNREADABLE) == 1
    (warning,) = warnings(caplog)
    assert "counter_other.db (" in warning
    assert "Events are relayed all the same and nothing is lost" in warning


@pytest.mark.parametrize("damage", [one for one in DAMAGES if one not in (removed, folder_removed)])
def test_a_damaged_file_found_at_start_is_replaced(
    metrics: Metrics, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Damage
) -> None:
    metrics.file_events.inc(3)
    damage(tmp_path / COUNTERS)
    metrics_again = Metrics("test")
    metrics_again.file_events.inc(4)
    assert shown(EVENTS) == 4
    assert shown(UNREADABLE) == 0
    (warning,) = warnings(caplog)
    assert "its counters begin again at 0" in warning
    assert "No event is lost" in warning


@pytest.mark.usefixtures("at_once")
def test_a_directory_in_a_files_place_is_trouble_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / COUNTERS).mkdir()
    metrics = Metrics("test")
    metrics.file_events.inc(3)
    assert (shown(UNREADABLE), shown(UNWRITTEN)) == (1, 1)
    (tmp_path / COUNTERS).rmdir()
    metrics.file_events.inc(4)
    assert shown(EVENTS) == 7
    assert (shown(UNREADABLE), shown(UNWRITTEN)) == (0, 0)


# ---- a disk that refuses ----


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES])
@pytest.mark.usefixtures("at_once")
def test_what_can_not_be_written_is_kept_and_written_later(
    metrics: Metrics, disk: Disk, caplog: pytest.LogCaptureFixture, error: int
) -> None:
    caplog.set_level(logging.INFO)
    metrics.file_events.inc(3)
    disk.error = error
    for _ in range(50):
        metrics.file_events.inc(1)
        metrics.recv_errors.labels("connect").inc()
    metrics.lag_seconds.observe(1)
    assert shown(EVENTS) == 3
    assert shown(UNWRITTEN) == 1
    (warning,) = warnings(caplog)
    assert os.strerror(error) in warning
    assert "Events are relayed all the same and nothing is lost" in warning
    disk.error = None
    metrics.file_events.inc(1)
    assert shown(EVENTS) == 54
    assert shown("pleiades_recv_errors_total", type="connect") == 50
    assert shown("pleiades_publish_lag_seconds_count") == 1
    assert shown(UNWRITTEN) == 0
    assert "the metrics of this process are written again, and whole" in caplog.text


@pytest.mark.usefixtures("at_once")
def test_a_full_disk_takes_what_needs_no_room(metrics: Metrics, disk: Disk) -> None:
    """Only a new series needs some; the others' figures go on, for whoever looks meanwhile."""
    metrics.file_events.inc(3)
    disk.room = 0
    metrics.recv_errors.labels("connect").inc()
    metrics.file_events.inc(4)
    assert shown(EVENTS) == 7
    assert shown("pleiades_recv_errors_total", type="connect") is None
    assert (shown(UNREADABLE), shown(UNWRITTEN)) == (0, 1)
    disk.room = ROOM_FOR_ALL
    metrics.file_events.inc(4)
    assert shown(EVENTS) == 11
    assert shown("pleiades_recv_errors_total", type="connect") == 1
    assert (shown(UNREADABLE), shown(UNWRITTEN)) == (0, 0)


def test_however_much_room_there_is_a_file_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk
) -> None:
    for room in itertools.chain(range(0, 300, 7), range(300, 20_000, 997)):
        folder = tmp_path / str(room)
        folder.mkdir()
        monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
        disk.room = room
        Metrics("parent").file_events.inc(3)
        assert shown(UNREADABLE) == 0, f"{room} bytes of room"
        assert shown(EVENTS) in (3, None), f"{room} bytes of room"
        assert not list(folder.glob("*.new")), "what it could not finish takes up room"
        disk.room = ROOM_FOR_ALL
        assert (shown(EVENTS), shown(UNWRITTEN)) == (3, 0), f"{room} bytes of room"


def test_between_any_two_writes_each_file_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a scrape or a SIGKILL may come at any moment."""
    pwrite = os.pwrite
    moments = 0

    def write(descriptor: int, content: bytes, place: int) -> int:
        nonlocal moments
        written = pwrite(descriptor, content, place)
        for file in tmp_path.glob("*.db"):
            metric_format.parse(metric_format.read_file(file))
            moments += 1
        return written

    monkeypatch.setattr(os, "pwrite", write)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    Metrics("test").describe(["reader"])
    assert moments > 100


def test_a_disk_that_can_not_be_written_shows_before_there_is_anything_to_write(
    metrics: Metrics, disk: Disk
) -> None:
    metrics.file_events.inc(3)
    disk.error = errno.EROFS
    assert (shown(EVENTS), shown(UNWRITTEN)) == (3, 1)
    disk.error = None
    assert (shown(EVENTS), shown(UNWRITTEN)) == (3, 0)


def test_a_successor_goes_on_in_place_while_the_disk_is_full(metrics: Metrics, disk: Disk) -> None:
    metrics.file_events.inc(3)
    disk.room = 0
    Metrics("test").file_events.inc()
    Metrics("parent")
    assert shown(EVENTS) == 4


def test_a_successor_completes_what_its_predecessor_could_not_write(
    metrics: Metrics, disk: Disk
) -> None:
    metrics.file_events.inc(3)
    disk.room = 0
    metrics.recv_errors.labels("a new series").inc()
    disk.room = ROOM_FOR_ALL
    Metrics("test")
    Metrics("parent")
    assert (shown(EVENTS), shown(UNWRITTEN)) == (3, 0)


def test_another_process_that_could_not_write_says_so_in_its_file(
    metrics: Metrics, disk: Disk
) -> None:
    metrics.describe(["test"])
    disk.room = 0
    metrics.recv_errors.labels("a new series").inc()
    disk.room = ROOM_FOR_ALL
    Metrics("parent")
    assert shown(UNWRITTEN) == 1


def test_a_process_without_files_is_said_once_it_had_time(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics.describe(["test", "reader"])
    assert shown(UNWRITTEN) == 0, "it may not have begun"
    monkeypatch.setattr(catalogue, "STARTING_SECONDS", -1.0)
    assert shown(UNWRITTEN) == 1
    Metrics("reader")
    assert shown(UNWRITTEN) == 0


# ---- what else may lie in the folder ----


def entry(key: str, value: float = 1.0) -> bytes:
    text = key.encode()
    return (struct.pack("=i", len(text)) + text + b" " * (8 - (len(text) + 4) % 8)) + struct.pack(
        "=dd", value, 1.0
    )


def file_of(*entries: bytes, used: int | None = None) -> bytes:
    body = b"".join(entries)
    return struct.pack("=ii", 8 + len(body) if used is None else used, 0) + body


STRANGE = {
    "counter_x.db": [
        b"",
        b"\x08\0\0",
        file_of(used=2_000_000_000),
        file_of(used=-1),
        file_of(used=4),
        file_of(struct.pack("=i", 2_000_000_000), used=12),
        file_of(struct.pack("=i", -100) + b"x" * 200, used=208),
        # A negative length that leads back to its own beginning, again and again.
        file_of(entry(""), struct.pack("=i", -28) + bytes(60)),
        file_of(struct.pack("=i", 4) + b"\xff\xff\xff\xff" + bytes(24), used=40),
        file_of(entry("no json")),
        file_of(entry("[" * 100_000)),
        file_of(entry('["a"]')),
        file_of(entry('["m", "m_total", {"a": 1}, "help"]')),
        file_of(entry('["m", "m_total", {"a": {}}, "help"]')),
        file_of(entry('["m", "m_total", [], "help"]')),
        file_of(entry('["m", "other_total", {}, "help"]')),
        file_of(entry('["m\\n# evil 1", "m\\n# evil 1_total", {}, "help"]')),
        file_of(entry('["m", "m_total", {"a": "\\ud800"}, "help"]')),
        file_of(entry('["m", "m_total", {}, "\\ud800"]')),
        file_of(entry('["pleiades_connected", "pleiades_connected_total", {"é": "a"}, "help"]')),
    ],
    "histogram_x.db": [
        file_of(entry('["m", "m_bucket", {"le": "x"}, "help"]')),
        file_of(entry('["m", "m_bucket", {}, "help"]')),
        file_of(entry('["pleiades_recv_events", "pleiades_recv_events_sum", {}, "help"]')),
    ],
    "nonsense.db": [file_of()],
    "gauge_all_x.db": [file_of()],
    "_.db": [file_of()],
}


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, one) for name, several in STRANGE.items() for one in several],
    ids=itertools.count(),
)
def test_a_strange_file_is_left_out_whole(
    metrics: Metrics, tmp_path: Path, name: str, content: bytes
) -> None:
    metrics.file_events.inc(3)
    (tmp_path / name).write_bytes(content)
    page = generate_latest(collected()).decode()
    assert f"{EVENTS} 3.0" in page
    assert f"{UNREADABLE} 1.0" in page
    assert "evil" not in page


def test_nothing_that_lies_there_blocks_a_scrape(metrics: Metrics, tmp_path: Path) -> None:
    metrics.file_events.inc(3)
    os.mkfifo(tmp_path / "counter_fifo.db")
    (tmp_path / "counter_directory.db").mkdir()
    (tmp_path / "counter_nowhere.db").symlink_to("nowhere")
    (tmp_path / "counter_zero.db").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "counter_socket.db"))
    with (tmp_path / "counter_huge.db").open("wb") as huge:
        huge.write(struct.pack("=ii", 2_000_000_000, 0))
        huge.truncate(1 << 40)
    assert shown(EVENTS) == 3
    assert shown(UNREADABLE) == 6


def test_many_large_files_crowd_out_none_of_ours(
    metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics.file_events.inc(3)
    own = sum(file.stat().st_size for file in tmp_path.iterdir())
    monkeypatch.setattr(metric_scrape, "MAX_SCRAPE_BYTES", own + 100_000)
    for number in range(5):
        (tmp_path / f"counter_a{number}.db").write_bytes(file_of() + bytes(60_000))
    assert shown(EVENTS) == 3
    assert shown(UNREADABLE) == 4


def test_many_names_crowd_out_none_of_ours(
    metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics.file_events.inc(3)
    monkeypatch.setattr(metric_scrape, "MAX_NAMES", 2)
    for number in range(50):
        (tmp_path / f"counter_a{number}.db").write_bytes(file_of())
    # They are listed in any order: once with ours at either end.
    with os.scandir(tmp_path) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for order in (entries, entries[::-1]):
        kept = list(metric_scrape._first_ours(order, {"test"}))
        assert {entry.name for entry in kept} > {COUNTERS}
        assert sum(entry.name.startswith("counter_a") for entry in kept) == 2


# ---- the folder ----


def test_a_folder_that_can_not_be_made_is_a_clear_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "file" / "metrics"))
    with pytest.raises(MetricsUnavailable, match=f"{FOLDER_VARIABLE} names.*Nothing was read"):
        metrics_folder().__enter__()


def test_a_temporary_folder_that_can_not_be_made_is_a_clear_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(prefix: str) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), prefix)

    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr("tempfile.mkdtemp", refuses)
    with pytest.raises(MetricsUnavailable, match="Make room"):
        metrics_folder().__enter__()


def test_what_an_earlier_run_left_is_removed_and_the_rest_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    for name in ("counter_parser-7.db", "counter_parser-7.db.new", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "directory.db").mkdir()
    with metrics_folder():
        assert {file.name for file in tmp_path.iterdir()} == {"notes.txt", "directory.db"}
