"""File systems that refuse calls, links in place of the relay's files, and real file systems."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.values import close_all_multiprocess_files

from pleiades.core.checkpoint import Checkpoint, UnreadableCheckpoint
from pleiades.core.event import Event
from pleiades.core.range import Bound, Range
from pleiades.replay.arguments import Arguments
from pleiades.replay.report import Report
from pleiades.runtime import metric_store
from pleiades.runtime.errors import Fatal, MetricsUnavailable, Stopped
from pleiades.runtime.file_systems import REFUSALS, file_system_of
from pleiades.runtime.findings import Kind
from pleiades.runtime.metric_store import FOLDER_VARIABLE
from pleiades.runtime.metrics import Metrics
from pleiades.simulator.settings import Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from pleiades.sinks import disk
from pleiades.sinks.checkpoints import CheckpointFile
from pleiades.sinks.files import staging
from pleiades.sinks.files.destination import FilesDestination
from pleiades.sinks.files.names import event_name
from pleiades.sinks.files.sink import FilesSink
from pleiades.sinks.retry import Once, Retry
from tests.harness.oracle import judge, published_count
from tests.harness.preload import preload
from tests.harness.prerequisites import MOUNT, require
from tests.harness.relay import COMMAND, Relay, ingest_flags, since_ms
from tests.harness.settings import files_of, settings_of
from tests.harness.tree import tree
from tests.unit.conftest import FakeChildContext

SOURCE = ("eqiad.mediawiki.recentchange", 0)
NOON_MS = 1_769_860_800_000  # 2026-01-31T12:00:00Z
CHECKPOINT = Checkpoint({SOURCE: NOON_MS + 1}, NOON_MS, NOON_MS)
NOBODY_LISTENS = "http://127.0.0.1:9/v2/stream"
IMAGE_BYTES = 64 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The relay's publish directory."""
    return tmp_path / "events"


def event(number: int) -> Event:
    return Event(f"id-{number}", SOURCE, NOON_MS + number + 1, "", b"[]", b'{"n":%d}' % number)


LETTER = Event("sha256-1", SOURCE, NOON_MS, "", b"[]", b"no event", "not_json")


def sink_of(folder: Path, **options: bool) -> FilesSink:
    """A sink whose errors are raised, not retried."""
    return FilesSink(FilesDestination("recentchange", folder), Once(), 1000, **options)


def commit(sink: FilesSink, *events: Event) -> None:
    sink.write(events)
    sink.commit(CHECKPOINT)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/*.json"))


# ---- calls that are refused for ever ----

SUBSTITUTED = {
    # CIFS, SMB and some FUSE file systems; EPERM by filters of system calls.
    "fsync-folder": errno.EINVAL,
    "renameat2": errno.EPERM,
    "syncfs": errno.ENOSYS,
    "posix_fallocate": errno.EOPNOTSUPP,
}


def refusing(tmp_path: Path, below: str, calls: Mapping[str, int]) -> dict[str, str]:
    """The environment of a process to which everything below `tmp_path / below` refuses these calls."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    return {
        **preload("disk", tmp_path),
        "DISK_REFUSES": ",".join(f"{call}={number}" for call, number in calls.items()),
        "DISK_BELOW": str(tmp_path / below),
        "TMPDIR": str(temporary),
    }


def check(folder: Path, environment: dict[str, str]) -> list[str]:
    """The problems that `pleiades check` reports, those of the upstream left out."""
    flags = [f"--file.publishDir={folder}", "--metricsPort=0", f"--upstream.url={NOBODY_LISTENS}"]
    done = subprocess.run(
        [*COMMAND, "check", "--file.enable", *flags],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    return [text for kind, part, text in lines if kind == "problem" and part != "upstream"]


def test_every_call_with_a_substitute_may_be_refused(tmp_path: Path, folder: Path) -> None:
    """All of them in one run, in which the publisher is killed once."""
    environment = refusing(tmp_path, "", SUBSTITUTED)
    settings = SimulatorSettings(rate=300, faults=Faults(cut_every_seconds=0))
    with Simulator(settings) as upstream:
        flags = ingest_flags(upstream.url, since_ms(upstream))
        arguments = [*flags, "--file.enable", f"--file.publishDir={folder}"]
        with Relay(*arguments, environment=environment) as relay:
            relay.until(lambda: published_count(folder) > 100, "events", 30)
            relay.child("publisher").kill()
            count = published_count(folder)
            relay.until(lambda: published_count(folder) > count + 100, "events again", 30)
            assert relay.stop() == 0
        verdict = judge(folder, upstream.journal(), since_ms(upstream), finished=False)
    assert verdict.flawless, verdict
    assert "Nothing is skipped: trying again" not in relay.log
    assert check(folder, environment) == []
    assert not list(folder.rglob("*probe*"))


@pytest.mark.parametrize("number", sorted(REFUSALS))
def test_whatever_the_refusal_is_called(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """An event that has its name already stays as it is; so does the number of the events."""

    def refused(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(disk, "_renameat2", refused)
    monkeypatch.setattr(disk, "_libc", SimpleNamespace(syncfs=refused))
    sync = os.fsync

    def sync_no_folder(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_no_folder)
    sink = sink_of(folder)
    sink.open(resume=True)
    commit(sink, event(1), event(2), LETTER)
    before = tree(folder / "2026-01-31T12")
    sink.write([event(2), event(3)])
    assert sink.commit(CHECKPOINT).repeated == 1
    sink.close()
    assert names(folder) == [f"20260131T120000.00{n}Z-id-{n}.json" for n in (1, 2, 3)]
    files = {path: entry for path, entry in before.items() if path.endswith(".json")}
    assert len(files) == 2
    assert files.items() <= tree(folder).items()


def test_without_syncfs_all_is_on_the_disk_before_the_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync, replace = os.fsync, Path.replace

    def noting(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    def replacing(path: Path, target: Path) -> Path:
        synced.append("replaced")
        return replace(path, target)

    sink = sink_of(folder)
    sink.open(resume=True)
    monkeypatch.setattr(disk, "_libc", SimpleNamespace())
    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(Path, "replace", replacing)
    commit(sink, event(1), event(2))
    sink.close()
    before = synced[: synced.index("replaced")]
    assert sorted(before) == sorted(
        [
            *(f"0000000{n}.20260131T120000.00{n + 1}Z-id-{n + 1}.json.part" for n in (0, 1)),
            "recentchange.1",
            "staging",
            "identities-recentchange.1",
            ".pleiades",
            "checkpoint-recentchange.new",
        ]
    )


def both_refuse(folder: Path, environment: dict[str, str]) -> tuple[str, str]:
    """What an ingest and a check say, which must both end with a problem."""
    folder.mkdir()
    flags = [*ingest_flags(NOBODY_LISTENS, "now"), "--file.enable", f"--file.publishDir={folder}"]
    with Relay(*flags, environment=environment) as relay:
        assert relay.wait() == 1
    (problem,) = check(folder, environment)
    return relay.log, problem


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("flock", errno.ENOSYS),  # Lustre without -o flock
        ("flock", errno.ENOLCK),  # NFS without lockd
        ("fsync", errno.EINVAL),
    ],
)
def test_a_call_without_a_substitute_is_refused_at_the_start_and_by_check(
    tmp_path: Path, folder: Path, call: str, number: int
) -> None:
    for text in both_refuse(folder, refusing(tmp_path, "events", {call: number})):
        assert f"{call}: {os.strerror(number)}" in text
        assert f"(file system: {file_system_of(tmp_path)})" in text
        assert "Choose another --file.publishDir" in text


@pytest.mark.parametrize(
    ("call", "number"),
    [("flock", errno.ENOLCK), ("bind", errno.EPERM), ("mmap", errno.ENODEV)],
)
def test_a_folder_for_metrics_that_can_not_be_used(
    tmp_path: Path, folder: Path, call: str, number: int
) -> None:
    """9p maps no file, and a socket can't lie on vfat."""
    said = both_refuse(folder, refusing(tmp_path, "tmp", {call: number}))
    for text in said:
        assert os.strerror(number) in text
        assert f"(file system: {file_system_of(tmp_path)})" in text
        assert "choose another folder with TMPDIR" in text
    assert "Traceback" not in said[0]
    assert not list((tmp_path / "tmp").iterdir())


def test_no_file_is_truncated_to_the_size_that_it_has(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fusefat refuses that."""
    truncate = os.ftruncate

    def refusing_nothing_to_do(descriptor: int, length: int) -> None:
        if length and os.fstat(descriptor).st_size == length:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        truncate(descriptor, length)

    monkeypatch.setattr(os, "ftruncate", refusing_nothing_to_do)
    for number in (1, 3):
        sink = sink_of(folder)
        sink.open(resume=True)
        commit(sink, event(number))
        commit(sink, event(number + 1))
        sink.close()
    assert len(names(folder)) == 4


def test_a_call_that_only_a_later_commit_makes_is_tried_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    lseek = os.lseek

    def refusing_to_append(descriptor: int, at: int, how: int) -> int:
        if at:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return lseek(descriptor, at, how)

    monkeypatch.setattr(os, "lseek", refusing_to_append)
    with pytest.raises(OSError, match="Operation not supported"):
        sink_of(folder, probes=True).open(resume=True)
    assert any("Operation not supported" in text for text in problems(folder))


def test_a_name_can_be_too_long_for_a_file_system(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """eCryptfs takes 143 characters, and an event's name may have 168 while it is staged."""
    folder.mkdir()
    write_new = disk.write_new

    def short(name: str, content: bytes, at: int) -> None:
        if len(name) > 143:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
        write_new(name, content, at)

    monkeypatch.setattr(staging, "write_new", short)
    with pytest.raises(OSError, match="File name too long"):
        sink_of(folder, probes=True).open(resume=True)
    assert any("File name too long" in text for text in problems(folder))
    longest = f"00000000.{'/'.join(event_name(event(1)._replace(identity='x' * 128))[1:])}.part"
    assert len(longest) == 168


def problems(folder: Path) -> list[str]:
    """The problems that an inspection in this process finds."""
    settings = settings_of("--file.enable", f"--file.publishDir={folder}")
    found = files_of(settings).inspect(settings)
    return [finding.text for finding in found if finding.kind is Kind.PROBLEM]


# ---- links ----


class Impatient(FakeChildContext):
    """Ends where a relay would wait for the disk."""

    def __init__(self) -> None:
        super().__init__(stop_at_pause=1)


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    own = tmp_path / "metrics"
    own.mkdir()
    monkeypatch.setenv(FOLDER_VARIABLE, str(own))
    yield Metrics("test", str(own))
    close_all_multiprocess_files()  # type: ignore[no-untyped-call]


OWN_FOLDERS = (".pleiades", ".pleiades/staging", ".pleiades/dead-letters")
OWN_FILES = ("lock", "checkpoint-recentchange", "identities-recentchange.1")


def moved_behind_a_link(place: Path, precious: Path) -> None:
    """What was at a place can be reached through a link only: who follows it sees no difference."""
    place.rename(precious)
    place.symlink_to(precious)


@pytest.mark.parametrize("own", [*OWN_FOLDERS, *(f".pleiades/{name}" for name in OWN_FILES)])
@pytest.mark.parametrize("moment", ["before the start", "while it runs"])
def test_a_link_in_place_of_an_own_file_is_not_followed(
    folder: Path, metrics: Metrics, caplog: pytest.LogCaptureFixture, own: str, moment: str
) -> None:
    retry = Retry(Impatient(), metrics.file_errors, folder, "--file.publishDir")
    sink = FilesSink(FilesDestination("recentchange", folder), retry, 1000)
    sink.open(resume=True)
    commit(sink, event(1), LETTER)
    if moment == "before the start":
        sink.close()
    precious = folder.with_name("precious")
    moved_behind_a_link(folder / own, precious)
    before = tree(precious)
    if moment == "before the start":
        with pytest.raises(Fatal, match=f"{own}: it is a link, which is not followed"):
            sink.open(resume=True)
        assert any(f"{own}" in text and "is a link" in text for text in problems(folder))
    elif own.endswith(("checkpoint-recentchange", "identities-recentchange.1")):
        # They are replaced; or begun again beside it, with a warning.
        commit(sink, event(2), LETTER)
    else:
        with pytest.raises(Stopped):
            commit(sink, event(2), LETTER)
        assert "it is a link" in caplog.text or "the directory was moved" in caplog.text
    sink.close()
    assert tree(precious) == before


@pytest.mark.parametrize("own", ["2026-01-31T12", ".pleiades/staging/recentchange.1"])
def test_a_link_in_place_of_a_folder_of_events_is_not_followed(
    folder: Path, metrics: Metrics, own: str
) -> None:
    precious = folder.with_name("precious")
    precious.mkdir()
    (folder / own).parent.mkdir(parents=True)
    (folder / own).symlink_to(precious)
    before = tree(precious)
    sink = FilesSink(
        FilesDestination("recentchange", folder),
        Retry(Impatient(), metrics.file_errors, folder, "--file.publishDir"),
        1000,
    )
    with contextlib.suppress(Stopped):
        sink.open(resume=True)
        commit(sink, event(1))
    sink.close()
    assert tree(precious) == before


@pytest.mark.parametrize("own", ["replays", "replays/of-today"])
def test_a_link_in_place_of_a_replays_folder_is_not_followed(folder: Path, own: str) -> None:
    destination = FilesDestination("of-today", folder)
    sink = FilesSink(destination, Once(), 1000, is_replay=True)
    sink.open(resume=True)
    commit(sink, event(1))
    sink.close()
    assert destination.stored_checkpoint() is not None
    precious = folder.with_name("precious")
    moved_behind_a_link(folder / ".pleiades" / own, precious)
    before = tree(precious)
    with pytest.raises(Fatal, match="it is a link, which is not followed"):
        destination.stored_checkpoint()
    with pytest.raises(OSError, match="it is a link, which is not followed"):
        sink.open(resume=True)
    sink.close()
    assert tree(precious) == before


def test_a_link_in_place_of_the_lock_is_not_locked(folder: Path) -> None:
    folder.joinpath(".pleiades").mkdir(parents=True)
    precious = folder.with_name("precious")
    precious.write_text("")
    (folder / ".pleiades" / "lock").symlink_to(precious)
    with precious.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="it is a link, which is not followed"):
            FilesDestination("recentchange", folder).refuse_if_held()


def test_a_link_in_place_of_a_damaged_checkpoint_or_its_copy_is_not_followed(folder: Path) -> None:
    folder.mkdir()
    stored = CheckpointFile(folder, "recentchange", synced=False)
    precious = folder.with_name("precious")
    precious.write_text("secret")
    stored.path.symlink_to(precious)
    with pytest.raises(OSError, match="it is a link, which is not followed"):
        stored.copy_damaged(UnreadableCheckpoint("damaged"))
    assert sorted(folder.iterdir()) == [stored.path]
    stored.path.unlink()
    stored.path.write_text("damaged")
    copy = folder / f"{stored.path.name}.damaged-{stored.path.stat().st_mtime_ns}"
    copy.symlink_to(folder.with_name("elsewhere"))
    stored.copy_damaged(UnreadableCheckpoint("damaged"))
    assert not folder.with_name("elsewhere").exists()


def test_a_link_beside_a_replays_report_is_not_followed(tmp_path: Path) -> None:
    """Such as one that another user has made in /tmp."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    report = tmp_path / "report.json"
    told = Arguments(settings_of("--file.enable"), dry_run=False)
    for link in (report, tmp_path / "report.json.new"):
        link.symlink_to(precious)
        Report(told, Range(Bound(0), Bound(1)), None).write(report)
        assert precious.read_text() == "precious"
        assert report.is_file()
        assert not report.is_symlink()


def test_a_link_in_place_of_metrics_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "counter_parent.db").write_text("precious")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (temporary / "pleiades-metrics-left").symlink_to(precious)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = tree(precious)
    with metric_store.metrics_folder() as own:
        Path(own, "gauge_parent.db.new").symlink_to(precious / "counter_parent.db")
        metric_store.PreallocatedFile(f"{own}/gauge_parent.db").close()  # type: ignore[no-untyped-call]
    assert tree(precious) == before
    assert [path.name for path in temporary.iterdir()] == ["pleiades-metrics-left"]


# ---- real file systems ----


def mount(stack: ExitStack, kind: str, source: Path, place: Path, *options: str) -> Path:
    """Mount a file system until the stack ends; skip where that is impossible."""
    require(MOUNT)
    place.mkdir()
    command = ["mount", "-t", kind, *options, str(source), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        pytest.skip(f"can't mount {kind}: {done.stderr.splitlines()[0].partition(': ')[2]}")
    stack.callback(subprocess.run, ["umount", str(place)], timeout=30, check=True)
    return place


def tmpfs(stack: ExitStack, at: Path) -> Path:
    return mount(stack, "tmpfs", Path("tmpfs"), at / "tmpfs", "-o", "size=64m")


def overlay(stack: ExitStack, at: Path) -> Path:
    # The upper folder must not lie on an overlay, as a container's temporary folder does.
    below = tmpfs(stack, at)
    for name in ("lower", "upper", "work"):
        (below / name).mkdir()
    options = f"lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work"
    return mount(stack, "overlay", Path("overlay"), at / "overlay", "-o", options)


def formatted(stack: ExitStack, at: Path, kind: str, maker: str) -> Path:
    found = shutil.which(maker, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"there is no {maker}")
    image = at / "image"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run([found, str(image)], stdout=subprocess.DEVNULL, timeout=30, check=True)
    return mount(stack, kind, image, at / kind, "-o", "loop")


def vfat(stack: ExitStack, at: Path) -> Path:
    return formatted(stack, at, "vfat", "mkfs.vfat")


def fuseblk(stack: ExitStack, at: Path) -> Path:
    """exFAT, whose driver is a process (Debian: exfat-fuse, exfatprogs)."""
    return formatted(stack, at, "exfat-fuse", "mkfs.exfat")


@pytest.mark.parametrize("mounted", [tmpfs, overlay, vfat, fuseblk])
def test_a_real_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounted: Callable[[ExitStack, Path], Path]
) -> None:
    with ExitStack() as stack:
        place = mounted(stack, tmp_path)
        assert file_system_of(place) == f"{mounted.__name__}, mounted at {place}"
        folder = place / "events"
        folder.mkdir()
        assert problems(folder) == []
        for number in (1, 2):
            sink = sink_of(folder, probes=True)
            opened = sink.open(resume=True)
            assert len(list(opened.window)) == number - 1
            commit(sink, event(number))
            sink.close()
        assert names(folder) == [f"20260131T120000.00{n}Z-id-{n}.json" for n in (1, 2)]
        assert problems(folder) == []
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        if mounted in (vfat, fuseblk):
            with pytest.raises(MetricsUnavailable, match="bind"):
                metric_store.probe()
        else:
            metric_store.probe()


@pytest.mark.parametrize("own", [".pleiades/staging", ".pleiades/dead-letters"])
def test_a_folder_of_another_mount_is_refused_at_the_start(tmp_path: Path, own: str) -> None:
    """Events could not be renamed into their place, for ever."""
    folder = tmp_path / "events"
    (folder / own).parent.mkdir(parents=True)
    with ExitStack() as stack:
        # The same file system, so its number does not tell.
        mount(stack, "none", tmp_path, folder / own, "-o", "bind")
        with pytest.raises(OSError, match="Invalid cross-device link"):
            sink_of(folder, probes=True).open(resume=True)
        assert any("cross-device link" in text for text in problems(folder))
