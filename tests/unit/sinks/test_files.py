"""The file sink against a disk in trouble, and what a power failure or a stranger leaves behind."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pleiades.core.position import Checkpoint
from pleiades.core.wire import UNKNOWN_SOURCE, Event
from pleiades.runtime.errors import DestinationHeld, Fatal
from pleiades.sinks import disk, files, recovery
from pleiades.sinks.files import FilesSink, Surroundings
from tests.harness.permissions import permissions_hold
from tests.harness.tree import tree

SOURCE = ("eqiad.mediawiki.recentchange", 0)
NOON = "2026-01-31T12:00:00Z"
NOON_MS = 1_769_860_800_000
CHECKPOINT = Checkpoint({SOURCE: NOON_MS + 1}, NOON_MS, NOON_MS)


@dataclass
class World:
    """Stands for the process around the sink."""

    troubles: list[str] = field(default_factory=list)
    mend: Callable[[], None] = lambda: None

    def on_trouble(self, operation: str, error: OSError, pause_seconds: float) -> None:
        assert 0 < pause_seconds <= 5
        self.troubles.append(f"{operation}: {errno.errorcode.get(error.errno or 0)}")
        assert len(self.troubles) < 20

    def pause(self, seconds: float) -> None:
        self.mend()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "events"


@pytest.fixture
def sink(folder: Path, world: World) -> FilesSink:
    return make(folder, world)


def make(folder: Path, world: World, sync: str = "batch") -> FilesSink:
    around = Surroundings(world.pause, world.on_trouble)
    return FilesSink(folder, sync, "recentchange", window_ms=600_000, around=around)


def event(number: int, **different: object) -> Event:
    usual = Event(f"id-{number}", SOURCE, NOON_MS + number + 1, NOON, b"[]", b'{"n":%d}' % number)
    return usual._replace(**different)  # type: ignore[arg-type]  # names of its own fields


def commit_once(folder: Path, world: World) -> None:
    sink = make(folder, world)
    sink.open(resume=True)
    sink.commit(CHECKPOINT)
    sink.close()


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.json"))


def test_names_follow_from_the_event(folder: Path, sink: FilesSink) -> None:
    sink.open(resume=True)
    sink.write([event(5), event(3_600_123)], [])
    sink.commit(CHECKPOINT)
    assert names(folder) == [
        "2026-01-31T12/20260131T120000.005Z-id-5.json",
        "2026-01-31T13/20260131T130000.123Z-id-3600123.json",
    ]
    assert (folder / names(folder)[0]).read_bytes() == b'{"n":5}\n'


def test_an_event_of_unknown_source_is_named_by_its_own_time(folder: Path, sink: FilesSink) -> None:
    sink.open(resume=True)
    sink.write([event(1, source=UNKNOWN_SOURCE, timestamp_ms=NOON_MS + 9_999_999)], [])
    sink.write([event(2, source=UNKNOWN_SOURCE, dt="")], [])
    sink.commit(CHECKPOINT)
    assert names(folder) == [
        "1970-01-01T00/19700101T000000.000Z-id-2.json",
        "2026-01-31T12/20260131T120000.000Z-id-1.json",
    ]


def test_nothing_is_staged_after_a_commit_nor_after_a_crash(folder: Path, world: World) -> None:
    staging = folder / ".pleiades" / "staging"
    first = make(folder, world)
    first.open(resume=True)
    (staging / "left-by-a-crash.json.part").write_bytes(b'{"n":')
    first.write([event(1)], [])
    first.commit(CHECKPOINT)
    assert [left.name for left in staging.iterdir()] == ["left-by-a-crash.json.part"]
    first.close()
    second = make(folder, world)
    second.open(resume=True)
    assert list(staging.iterdir()) == []
    assert len(names(folder)) == 1
    second.close()


@pytest.mark.parametrize("fails", [1, 2, 3, 4])
@pytest.mark.parametrize("target", ["open", "write", "fsync", "rename"])
def test_a_commit_interrupted_by_a_full_disk_is_finished(
    folder: Path,
    sink: FilesSink,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    fails: int,
) -> None:
    """Whichever call is the one that finds no space: all is there in the end, once, and whole."""
    sink.open(resume=True)
    calls = 0
    full = OSError(errno.ENOSPC, "No space left on device")

    def failing(original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if fails <= calls < fails + 2:
                raise full
            return original(*arguments, **options)

        return call

    if target == "rename":
        monkeypatch.setattr(files, "rename_new", failing(disk.rename_new))
        monkeypatch.setattr(Path, "replace", failing(Path.replace))
    else:
        monkeypatch.setattr(os, target, failing(getattr(os, target)))
    sink.write([event(number) for number in range(4)], [])
    sink.commit(CHECKPOINT)
    monkeypatch.undo()
    assert calls >= fails, "the fault was never reached"
    assert world.troubles
    assert [(folder / name).read_bytes() for name in names(folder)] == [
        b'{"n":%d}\n' % number for number in range(4)
    ]
    sink.close()
    assert make(folder, world).open(resume=True).checkpoint == CHECKPOINT


def test_a_partly_written_line_is_written_to_its_end(
    folder: Path, sink: FilesSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink.open(resume=True)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:3]))
    sink.write([event(1)], [])
    sink.commit(CHECKPOINT)
    monkeypatch.undo()
    assert (folder / names(folder)[0]).read_bytes() == b'{"n":1}\n'


def test_a_removed_directory_is_made_again(folder: Path, sink: FilesSink, world: World) -> None:
    sink.open(resume=True)
    sink.write([event(1)], [])
    sink.commit(CHECKPOINT)
    shutil.rmtree(folder)
    sink.write([event(2)], [])
    sink.commit(CHECKPOINT)
    assert world.troubles
    assert len(names(folder)) == 1
    second = make(folder, world)
    files_wait, files.LOCK_WAIT_SECONDS = files.LOCK_WAIT_SECONDS, 0.0
    try:
        with pytest.raises(DestinationHeld):
            second.open(resume=True)
    finally:
        files.LOCK_WAIT_SECONDS = files_wait


@pytest.mark.parametrize("replaced", [False, True], ids=["moved", "another in its place"])
def test_a_directory_that_was_moved_is_waited_for(
    folder: Path, sink: FilesSink, world: World, replaced: bool
) -> None:
    """As a volume that is unmounted: what were written beneath it, the next mount would hide."""
    sink.open(resume=True)
    sink.write([event(1)], [])
    sink.commit(CHECKPOINT)
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)
    if replaced:
        (folder / ".pleiades" / "staging").mkdir(parents=True)
        (folder / ".pleiades" / "lock").touch()
    written: list[Path] = []

    def put_back() -> None:
        if len(world.troubles) == 3:
            written.extend(path for path in folder.rglob("*.json"))
            if replaced:
                shutil.rmtree(folder)
            elsewhere.rename(folder)

    world.mend = put_back
    sink.write([event(2)], [])
    sink.commit(CHECKPOINT)
    assert len(world.troubles) == 3
    assert not written
    assert len(names(folder)) == 2


def test_a_restarted_publisher_waits_for_the_directory_of_the_one_before(
    folder: Path, world: World
) -> None:
    commit_once(folder, world)
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)

    def put_back() -> None:
        elsewhere.rename(folder)

    world.mend = put_back
    around = Surroundings(world.pause, world.on_trouble)
    again = FilesSink(folder, "batch", "recentchange", 600_000, around, reached=True)
    assert again.open(resume=True).checkpoint == CHECKPOINT
    assert len(world.troubles) == 1


def test_the_position_does_not_go_into_another_directory(
    folder: Path, sink: FilesSink, world: World
) -> None:
    sink.open(resume=True)
    sink.commit(CHECKPOINT)
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)
    shutil.copytree(elsewhere, folder)
    other = folder / ".pleiades" / "checkpoint-recentchange"
    before = other.stat()

    def put_back() -> None:
        assert other.stat() == before
        shutil.rmtree(folder)
        elsewhere.rename(folder)

    world.mend = put_back
    sink.commit(CHECKPOINT)
    assert len(world.troubles) == 1


def test_a_foreign_file_in_the_way_is_waited_for(
    folder: Path, sink: FilesSink, world: World
) -> None:
    sink.open(resume=True)
    obstacle = folder / "2026-01-31T12"
    obstacle.write_text("mine")
    world.mend = lambda: obstacle.unlink(missing_ok=True) if len(world.troubles) > 2 else None
    sink.write([event(1)], [])
    sink.commit(CHECKPOINT)
    assert world.troubles == ["publish events in: EEXIST"] * 3 or "ENOTDIR" in str(world.troubles)
    assert len(names(folder)) == 1


def test_a_foreign_directory_in_the_way_of_an_event_is_waited_for(
    folder: Path, sink: FilesSink, world: World
) -> None:
    sink.open(resume=True)
    obstacle = folder / "2026-01-31T12" / "20260131T120000.001Z-id-1.json"
    obstacle.mkdir(parents=True)
    world.mend = lambda: obstacle.rmdir() if obstacle.is_dir() else None
    sink.write([event(1)], [])
    sink.commit(CHECKPOINT)
    assert world.troubles
    assert obstacle.read_bytes() == b'{"n":1}\n'


@pytest.fixture(params=["unless there is one", "only over it"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "only over it":
        # As of an old kernel, or on a file system without it.
        monkeypatch.setattr(disk, "_renameat2", None)


@pytest.mark.usefixtures("renames")
def test_what_is_there_already_stays_untouched_and_is_counted(folder: Path, world: World) -> None:
    first = make(folder, world)
    first.open(resume=True)
    first.write([event(1)], [])
    assert first.commit(CHECKPOINT) == ([], 0)
    first.close()
    published = {path: entry for path, entry in tree(folder).items() if path.endswith(".json")}
    assert len(published) == 1
    second = make(folder, world)
    assert second.open(resume=True).all_told
    second.write([event(1), event(2)], [])
    assert second.commit(CHECKPOINT) == ([], 1)
    assert len(names(folder)) == 2
    assert published.items() <= tree(folder).items()
    assert list((folder / ".pleiades" / "staging").iterdir()) == []
    second.close()


def test_a_failed_rename_is_said_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, disk.open_folder(tmp_path) as folder:
        disk.rename_new("none", folder, "new", folder)
    assert caught.value.filename2 == "new"


@pytest.mark.usefixtures("renames")
def test_an_empty_file_of_a_power_failure_is_no_event(folder: Path, sink: FilesSink) -> None:
    sink.open(resume=True)
    left = folder / "2026-01-31T12" / "20260131T120000.001Z-id-1.json"
    left.parent.mkdir()
    left.touch()
    assert not sink.is_published(event(1))
    sink.write([event(1)], [])
    assert sink.commit(CHECKPOINT) == ([], 0)
    assert sink.is_published(event(1))


def test_a_place_that_can_not_be_used_is_fatal_and_says_what_to_do(
    tmp_path: Path, world: World
) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(Fatal, match=r"--file\.publishDir"):
        make(occupied, world).open(resume=True)
    assert world.troubles == []


def test_with_batch_the_disk_is_asked_before_names_and_checkpoint_appear(
    sink: FilesSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def noting(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            named = [given for given in arguments if isinstance(given, (str, Path))]
            target = Path(named[-1]).name if name == "rename" else ""
            steps.append(f"{name} {target}".strip())
            return original(*arguments, **options)

        return call

    sink.open(resume=True)
    monkeypatch.setattr(files, "sync_file_system", noting("syncfs", disk.sync_file_system))
    monkeypatch.setattr(files, "sync_directory", noting("fsync folder", disk.sync_directory))
    monkeypatch.setattr(Path, "replace", noting("rename", Path.replace))
    monkeypatch.setattr(files, "rename_new", noting("rename", disk.rename_new))
    sink.write([event(1), event(2)], [])
    sink.commit(CHECKPOINT)
    assert steps == [
        "syncfs",
        "fsync folder",
        "rename 20260131T120000.001Z-id-1.json",
        "rename 20260131T120000.002Z-id-2.json",
        "fsync folder",
        "rename checkpoint-recentchange",
    ]


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\0" * 200, b'{"version":99}', b"x" * 2_000_000],
    ids=["empty", "cut", "zeros", "newer", "huge"],
)
def test_a_damaged_checkpoint_is_set_aside_and_a_position_found_again(
    folder: Path, world: World, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    first = make(folder, world)
    first.open(resume=True)
    eqiad = [
        event(n, data=b'{"meta":{"topic":"eqiad.x"},"n":%d}' % n) for n in range(0, 7_200_000, 9000)
    ]
    codfw = [event(1_000_000, identity="other", data=b'{"meta":{"topic":"codfw.x"}}')]
    first.write(eqiad + codfw, [])
    first.commit(CHECKPOINT)
    first.close()
    stored = folder / ".pleiades" / "checkpoint-recentchange"
    stored.write_bytes(damage)
    second = make(folder, world)
    found = second.open(resume=True).checkpoint
    # codfw is the topic that is furthest behind: its newest event, less the window.
    assert found == Checkpoint({}, begin_ms := NOON_MS + 400_000, begin_ms)
    assert second.is_published(eqiad[-1])
    assert "was set aside" in caplog.text
    (aside,) = (folder / ".pleiades").glob("checkpoint-*.damaged-*")
    assert aside.read_bytes() == damage
    second.close()
    third = make(folder, world)
    assert third.open(resume=True).checkpoint == found, "found again, and lost by the next start"
    third.close()


def test_in_a_replay_the_topic_that_is_behind_is_found_too(
    folder: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written last counts, not what is dated last."""
    monkeypatch.setattr(recovery, "MAX_FILES", 50)
    first = make(folder, world)
    first.open(resume=True)
    ahead = [event(n, data=b'{"meta":{"topic":"eqiad.x"}}') for n in range(7_200_000, 7_200_100)]
    behind = [event(n, data=b'{"meta":{"topic":"codfw.x"}}') for n in range(10)]
    first.write(ahead, [])
    first.commit(CHECKPOINT)
    first.write(behind, [])
    first.commit(CHECKPOINT)
    first.close()
    for age, path in enumerate(sorted(folder.glob("2*/*.json"), reverse=True)):
        os.utime(path, (age + 1e9, age + 1e9))
    (folder / ".pleiades" / "checkpoint-recentchange").write_bytes(b"{")
    found = make(folder, world).open(resume=True).checkpoint
    assert found == Checkpoint({}, begin_ms := NOON_MS + 9 - 600_000, begin_ms)


def test_a_folder_that_failed_to_sync_is_synced_by_the_next_try(
    sink: FilesSink, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink.open(resume=True)
    synced: list[str] = []
    original = disk.sync_directory

    def failing_once(path: Path) -> None:
        if path.name.startswith("2") and "failed" not in synced:
            synced.append("failed")
            raise OSError(errno.EIO, "Input/output error")
        synced.append(path.name)
        original(path)

    monkeypatch.setattr(files, "sync_directory", failing_once)
    sink.write([event(1)], [])
    sink.commit(CHECKPOINT)
    assert synced.index("2026-01-31T12") > synced.index("failed")
    assert world.troubles == ["publish events in: EIO"]


def test_a_damaged_checkpoint_without_events_starts_anew_and_says_what_that_means(
    folder: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    commit_once(folder, world)
    stored = folder / ".pleiades" / "checkpoint-recentchange"
    stored.write_bytes(b"")
    assert make(folder, world).open(resume=True).checkpoint is None
    assert "--resume=false --since=TIME" in caplog.text


def test_positions_of_other_streams_are_kept_apart_and_mentioned(
    folder: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    commit_once(folder, world)
    around = Surroundings(world.pause, world.on_trouble)
    other = FilesSink(folder, "batch", "page-create", window_ms=1, around=around)
    assert other.open(resume=True).checkpoint is None
    assert "checkpoint-recentchange" in caplog.text
    other.close()
    assert make(folder, world).open(resume=True).checkpoint == CHECKPOINT


def test_a_read_only_directory_is_fatal(tmp_path: Path, world: World) -> None:
    tmp_path.chmod(0o500)
    with permissions_hold(), pytest.raises(Fatal, match="mend its permissions"):
        make(tmp_path / "x", world).open(resume=True)
