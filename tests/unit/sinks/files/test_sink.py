"""The file sink with disk errors, and after power failures and foreign changes."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from pleiades.core import identity_log
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import Event
from pleiades.core.fingerprint import fingerprint
from pleiades.core.identity_log import Group, Run
from pleiades.core.sse_id import UNKNOWN_SOURCE
from pleiades.runtime.errors import DestinationHeld, Fatal
from pleiades.runtime.metrics import Metrics
from pleiades.sinks import checkpoints, disk, identities, journal, retry
from pleiades.sinks.files import sink as files
from pleiades.sinks.files import staging
from pleiades.sinks.files.destination import FilesDestination
from pleiades.sinks.files.sink import FilesSink
from tests.harness.permissions import permissions_hold
from tests.harness.tree import tree
from tests.unit.conftest import FakeChildContext

SOURCE = ("eqiad.mediawiki.recentchange", 0)
NOON = "2026-01-31T12:00:00Z"
NOON_MS = 1_769_860_800_000
CHECKPOINT = Checkpoint({SOURCE: NOON_MS + 1}, NOON_MS, NOON_MS)


class World(FakeChildContext):
    """The process around the sink: its pauses repair the disk."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(0)
        self.metrics = metrics
        self.mend: Callable[[], None] = lambda: None

    def pause(self, seconds: float) -> None:
        assert 0 < seconds <= 5
        super().pause(seconds)
        assert len(self.pauses) < 20
        self.mend()


@pytest.fixture
def world(metrics: Metrics) -> World:
    return World(metrics)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "events"


@pytest.fixture
def sink(folder: Path, world: World) -> FilesSink:
    return make(folder, world)


def make(
    folder: Path,
    world: World,
    sync: str = "batch",
    name: str = "recentchange",
    max_entries: int = 500_000,
    **options: bool,
) -> FilesSink:
    files = FilesDestination(name, folder, sync)
    return FilesSink(
        files,
        retry.Retry(world, world.metrics.file_errors, folder, "--file.publishDir"),
        max_entries,
        **options,
    )


def event(number: int, **different: object) -> Event:
    usual = Event(f"id-{number}", SOURCE, NOON_MS + number + 1, NOON, b"[]", b'{"n":%d}' % number)
    return usual._replace(**different)  # type: ignore[arg-type]  # names of its own fields


def letter(number: int) -> Event:
    return Event(f"sha256-{number}", SOURCE, NOON_MS, "", b"[]", b"bytes %d" % number, "not_json")


def commit_once(folder: Path, world: World) -> None:
    sink = make(folder, world)
    sink.open(resume=True)
    sink.commit(CHECKPOINT)
    sink.close()


def known(sink: FilesSink) -> tuple[Checkpoint | None, list[Event]]:
    """The state that a start finds: the checkpoint, and the published ones of the first ten events."""
    opened = sink.open(resume=True)
    window = {entry.fingerprint for entry in opened.window}
    return opened.checkpoint, [
        one for one in map(event, range(10)) if fingerprint(one.identity) in window
    ]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.json"))


def test_names_follow_from_the_event(folder: Path, sink: FilesSink) -> None:
    sink.open(resume=True)
    sink.write([event(5), event(3_600_123)])
    sink.commit(CHECKPOINT)
    assert names(folder) == [
        "2026-01-31T12/20260131T120000.005Z-id-5.json",
        "2026-01-31T13/20260131T130000.123Z-id-3600123.json",
    ]
    assert (folder / names(folder)[0]).read_bytes() == b'{"n":5}\n'


def test_an_event_of_unknown_source_is_named_by_its_own_time(folder: Path, sink: FilesSink) -> None:
    sink.open(resume=True)
    sink.write([event(1, source=UNKNOWN_SOURCE, timestamp_ms=NOON_MS + 9_999_999)])
    sink.write([event(2, source=UNKNOWN_SOURCE, dt="")])
    sink.commit(CHECKPOINT)
    assert names(folder) == [
        "1970-01-01T00/19700101T000000.000Z-id-2.json",
        "2026-01-31T12/20260131T120000.000Z-id-1.json",
    ]


def test_nothing_is_staged_after_a_commit_nor_after_a_crash(folder: Path, world: World) -> None:
    staging = folder / ".pleiades" / "staging"
    first = make(folder, world)
    first.open(resume=True)
    first.write([event(1)])
    first.commit(CHECKPOINT)
    assert list(staging.iterdir()) == []
    first.close()
    beyond = staging / "recentchange.2"
    beyond.mkdir()
    (beyond / "00000000.20260131T120000.002Z-id-2.json.part").write_bytes(b'{"n":')
    others = staging / "page-create.2"
    others.mkdir()
    second = make(folder, world)
    second.open(resume=True)
    assert list(staging.iterdir()) == [others]
    assert len(names(folder)) == 1
    second.close()


def test_a_start_finishes_the_moves_of_what_is_committed(folder: Path, world: World) -> None:
    first = make(folder, world)
    first.open(resume=True)
    first.write([event(1), event(2), letter(1)])
    first.commit(CHECKPOINT)
    first.close()
    # The state after a crash between two moves.
    staged = folder / ".pleiades" / "staging" / "recentchange.1"
    staged.mkdir()
    one, two = (folder / name for name in names(folder))
    one.rename(folder / "consumed.json")
    two.rename(staged / f"00000001.{two.name}.part")
    (dead,) = (folder / ".pleiades" / "dead-letters").iterdir()
    dead.rename(staged / f"00000002.{dead.name}.part")
    second = make(folder, world)
    assert known(second) == (CHECKPOINT, [event(1), event(2)])
    assert not one.exists(), "a file that a user has moved is published again"
    assert two.read_bytes() == b'{"n":2}\n'
    assert dead.read_bytes() == b"bytes 1"
    second.close()


@pytest.mark.parametrize("what", ["moved", "removed", "removed with their folders"])
def test_a_user_may_take_files_at_once(folder: Path, world: World, what: str) -> None:
    """The newest file is misleading: an event of 2016, or one dated ahead."""
    odd = [event(1, timestamp_ms=1), event(2), event(3, timestamp_ms=NOON_MS + 3_540_000)]
    for one in odd:
        sink = make(folder, world)
        opened = sink.open(resume=True)
        window = [entry.fingerprint for entry in opened.window]
        assert window == [fingerprint(before.identity) for before in odd[: odd.index(one)]]
        sink.write([one])
        assert sink.commit(CHECKPOINT) == ([], 0)
        sink.close()
        for path in folder.glob("[0-9]*/*.json"):
            if what == "moved":
                path.rename(folder.with_name(path.name))
            else:
                path.unlink()
            if what.endswith("folders"):
                path.parent.rmdir()


def test_an_hour_that_a_user_removes_while_it_is_empty_is_made_again(
    folder: Path, sink: FilesSink, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink.open(resume=True)
    rename_new, tries = disk.rename_new, []

    def after_a_user(name: str, source: int, new: str, target: int) -> bool:
        tries.append(name)
        if len(tries) == 1:
            (folder / "2026-01-31T12").rmdir()
        return rename_new(name, source, new, target)

    monkeypatch.setattr(staging, "rename_new", after_a_user)
    sink.write([event(1)])
    sink.commit(CHECKPOINT)
    assert len(names(folder)) == 1
    assert len(tries) == 2
    assert world.pauses == []


def test_a_directory_that_is_removed_between_two_moves(
    folder: Path, sink: FilesSink, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that had no name yet are published in the new directory."""
    sink.open(resume=True)
    rename_new, tries = disk.rename_new, []

    def removed_after_the_first(name: str, source: int, new: str, target: int) -> bool:
        done = rename_new(name, source, new, target)
        tries.append(name)
        if len(tries) == 1:
            shutil.rmtree(folder)
        return done

    monkeypatch.setattr(staging, "rename_new", removed_after_the_first)
    sink.write([event(1), event(2), event(3)])
    sink.commit(CHECKPOINT)
    assert [name[-9:] for name in names(folder)] == ["id-1.json", "id-2.json", "id-3.json"]
    assert world.pauses
    sink.close()
    assert known(make(folder, world)) == (CHECKPOINT, [event(1), event(2), event(3)])


def test_dead_letters_and_events_of_one_commit_keep_their_own_names(
    folder: Path, sink: FilesSink
) -> None:
    sink.open(resume=True)
    sink.write([event(1), letter(1), letter(2)])
    sink.commit(CHECKPOINT)
    dead = sorted((folder / ".pleiades" / "dead-letters").iterdir())
    assert [path.read_bytes() for path in dead] == [b"bytes 1", b"bytes 2"]


def test_what_may_be_forgotten_is_forgotten(
    folder: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is compacted to what `known_from` requires."""
    monkeypatch.setattr(identities, "MIN_COMPACTED_BYTES", 1_000)
    sink = make(folder, world)
    sink.open(resume=True)
    sizes = []
    for number in range(1, 400):
        sink.write([event(number)])
        reached = NOON_MS + number
        sink.commit(Checkpoint({SOURCE: reached}, 0, 0, known_from={SOURCE: reached - 5}))
        (file,) = (folder / ".pleiades").glob("identities-*")
        sizes.append(file.stat().st_size)
    assert max(sizes) < 5_000
    sink.close()
    window = [entry.fingerprint for entry in make(folder, world).open(resume=True).window]
    needed = [fingerprint(event(number).identity) for number in range(394, 400)]
    assert window[-6:] == needed
    assert len(window) < 40


def test_many_runs_are_joined_and_none_is_forgotten_earlier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(identity_log, "MAX_RUNS", 10)
    reached = [*range(100, 160), *range(20, 40)]
    runs = [Run(SOURCE, at, b"%016d" % number) for number, at in enumerate(reached)]
    fewer = identity_log.joined(runs)
    assert len(fewer) <= 11
    assert b"".join(run.fingerprints for run in fewer) == b"".join(run.fingerprints for run in runs)
    assert [run.reached_ms for run in fewer] == [107, 115, 123, 131, 139, 147, 155, 159, 27, 35, 39]


def test_more_than_the_bound_is_forgotten_from_the_oldest_on(
    folder: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities, "MIN_COMPACTED_BYTES", 1_000)
    sink = make(folder, world, max_entries=10)
    sink.open(resume=True)
    for number in range(100):
        sink.write([event(3 * number), event(3 * number + 1), event(3 * number + 2)])
        sink.commit(CHECKPOINT)
    sink.close()
    window = [entry.fingerprint for entry in make(folder, world).open(resume=True).window]
    assert window[-10:] == [fingerprint(event(number).identity) for number in range(290, 300)]
    assert len(window) < 60


@pytest.mark.parametrize("damage", ["removed", "cut", "overwritten"])
def test_a_lost_identity_log_is_made_again_from_the_names(
    folder: Path, world: World, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = make(folder, world)
    first.open(resume=True)
    first.write([event(1), event(2)])
    first.commit(CHECKPOINT)
    first.close()
    (file,) = (folder / ".pleiades").glob("identities-*")
    whole = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(whole[:-5] if damage == "cut" else whole[:-5] + b"other")
    (folder / names(folder)[0]).unlink()
    second = make(folder, world)
    assert known(second) == (CHECKPOINT, [event(2)])
    assert "published again" in caplog.text
    second.write([event(3)])
    second.commit(CHECKPOINT)
    second.close()
    assert known(make(folder, world)) == (CHECKPOINT, [event(2), event(3)])


def test_a_position_of_the_version_before_is_converted(folder: Path, world: World) -> None:
    """It had no identity log: the names of the files were the window."""
    hour = folder / "2026-01-31T12"
    hour.mkdir(parents=True)
    for number in (1, 2):
        (hour / f"20260131T120000.00{number}Z-id-{number}.json").write_bytes(b"{}\n")
    (folder / ".pleiades").mkdir()
    (folder / ".pleiades" / "checkpoint-recentchange").write_text(
        f'{{"version":1,"started_ms":{NOON_MS},"clock_ms":{NOON_MS + 2},"position":['
        f'["{SOURCE[0]}",0,{NOON_MS + 3}]],"known_from":[]}}\n'
    )
    sink = make(folder, world)
    checkpoint, events = known(sink)
    assert checkpoint is not None
    assert checkpoint.position == {SOURCE: NOON_MS + 3}
    assert events == [event(1), event(2)]
    sink.write([event(3)])
    sink.commit(checkpoint)
    sink.close()
    for path in hour.iterdir():
        path.unlink()
    assert known(make(folder, world)) == (checkpoint, [event(1), event(2), event(3)])


@pytest.mark.parametrize(
    "planted", ["checkpoint-recentchange.new", "lock", "identities-recentchange.1", "staging"]
)
def test_a_planted_link_is_not_followed(folder: Path, world: World, planted: str) -> None:
    """Somebody with write access there could make the relay overwrite other files with its rights."""
    own = folder / ".pleiades"
    own.mkdir(parents=True)
    target = folder.with_name("precious")
    if planted == "staging":
        target.mkdir()
        (target / "kept.part").write_text("precious")
    else:
        target.write_text("precious")
    (own / planted).symlink_to(target)
    before = tree(folder.parent)
    sink = make(folder, world)
    if planted == "checkpoint-recentchange.new":
        sink.open(resume=True)
        sink.commit(CHECKPOINT)
        sink.close()
    else:
        with pytest.raises(Fatal, match="symbolic link|is a link"):
            sink.open(resume=True)
        sink.close()
    kept = {name: entry for name, entry in before.items() if "/precious" in name}
    assert kept
    assert kept.items() <= tree(folder.parent).items()


def test_a_second_name_of_a_file_is_not_written_to(folder: Path, world: World) -> None:
    own = folder / ".pleiades"
    own.mkdir(parents=True)
    target = folder.with_name("precious")
    target.write_text("precious")
    (own / "lock").hardlink_to(target)
    with pytest.raises(Fatal, match="link"):
        make(folder, world).open(resume=True)
    assert target.read_text() == "precious"


@pytest.mark.parametrize(
    ("target", "fails"),
    [
        *((target, fails) for target in ("open", "write") for fails in range(1, 7)),
        *(("rename", fails) for fails in range(1, 6)),
        *(("fsync", fails) for fails in (1, 2)),
        *(("mkdir", fails) for fails in (1, 2)),
    ],
)
def test_a_commit_interrupted_by_a_full_disk_is_finished(
    folder: Path,
    sink: FilesSink,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    fails: int,
) -> None:
    """Whichever call finds no space, every event is there in the end, once and whole."""
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
        monkeypatch.setattr(staging, "rename_new", failing(disk.rename_new))
        monkeypatch.setattr(Path, "replace", failing(Path.replace))
    elif target == "mkdir":
        monkeypatch.setattr(Path, "mkdir", failing(Path.mkdir))
    else:
        monkeypatch.setattr(os, target, failing(getattr(os, target)))
    sink.write([event(number) for number in range(4)])
    sink.commit(CHECKPOINT)
    monkeypatch.undo()
    assert calls >= fails, "the fault was never reached"
    assert world.pauses
    assert [(folder / name).read_bytes() for name in names(folder)] == [
        b'{"n":%d}\n' % number for number in range(4)
    ]
    sink.close()
    assert known(make(folder, world)) == (CHECKPOINT, [event(number) for number in range(4)])


def test_a_partly_written_line_is_written_to_its_end(
    folder: Path, sink: FilesSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink.open(resume=True)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:3]))
    sink.write([event(1)])
    sink.commit(CHECKPOINT)
    monkeypatch.undo()
    assert (folder / names(folder)[0]).read_bytes() == b'{"n":1}\n'


def test_a_removed_directory_is_made_again(folder: Path, sink: FilesSink, world: World) -> None:
    sink.open(resume=True)
    sink.write([event(1)])
    sink.commit(CHECKPOINT)
    shutil.rmtree(folder)
    sink.write([event(2)])
    sink.commit(CHECKPOINT)
    assert world.pauses
    assert len(names(folder)) == 1
    second = make(folder, world)
    files_wait, retry.LOCK_WAIT_SECONDS = retry.LOCK_WAIT_SECONDS, 0.0
    try:
        with pytest.raises(DestinationHeld):
            second.open(resume=True)
    finally:
        retry.LOCK_WAIT_SECONDS = files_wait


@pytest.mark.parametrize("replaced", [False, True], ids=["moved", "another in its place"])
def test_a_directory_that_was_moved_is_waited_for(
    folder: Path, sink: FilesSink, world: World, replaced: bool
) -> None:
    """Like an unmounted volume: the next mount would hide anything written beneath it."""
    sink.open(resume=True)
    sink.write([event(1)])
    sink.commit(CHECKPOINT)
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)
    if replaced:
        (folder / ".pleiades" / "staging").mkdir(parents=True)
        (folder / ".pleiades" / "lock").touch()
    written: list[Path] = []

    def put_back() -> None:
        if len(world.pauses) == 3:
            written.extend(path for path in folder.rglob("*.json"))
            if replaced:
                shutil.rmtree(folder)
            elsewhere.rename(folder)

    world.mend = put_back
    sink.write([event(2)])
    sink.commit(CHECKPOINT)
    assert len(world.pauses) == 3
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
    again = make(folder, world, reached=True)
    assert again.open(resume=True).checkpoint == CHECKPOINT
    assert len(world.pauses) == 1


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
    assert len(world.pauses) == 1


def test_a_foreign_file_in_the_way_is_waited_for(
    folder: Path, sink: FilesSink, world: World
) -> None:
    sink.open(resume=True)
    obstacle = folder / "2026-01-31T12"
    obstacle.write_text("mine")
    world.mend = lambda: obstacle.unlink(missing_ok=True) if len(world.pauses) > 2 else None
    sink.write([event(1)])
    sink.commit(CHECKPOINT)
    assert len(world.pauses) == 3
    assert len(names(folder)) == 1


def test_a_foreign_directory_in_the_way_of_an_event_is_waited_for(
    folder: Path, sink: FilesSink, world: World
) -> None:
    sink.open(resume=True)
    obstacle = folder / "2026-01-31T12" / "20260131T120000.001Z-id-1.json"
    obstacle.mkdir(parents=True)
    world.mend = lambda: obstacle.rmdir() if obstacle.is_dir() else None
    sink.write([event(1)])
    sink.commit(CHECKPOINT)
    assert world.pauses
    assert obstacle.read_bytes() == b'{"n":1}\n'


@pytest.fixture(params=["unless there is one", "only over it"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "only over it":
        # An old kernel, or a file system without it.
        monkeypatch.setattr(disk, "_renameat2", None)


@pytest.mark.usefixtures("renames")
def test_what_is_there_already_stays_untouched_and_is_counted(folder: Path, world: World) -> None:
    first = make(folder, world)
    first.open(resume=True)
    first.write([event(1)])
    assert first.commit(CHECKPOINT) == ([], 0)
    first.close()
    published = {path: entry for path, entry in tree(folder).items() if path.endswith(".json")}
    assert len(published) == 1
    second = make(folder, world)
    assert second.open(resume=True).window_complete
    second.write([event(1), event(2)])
    assert second.commit(CHECKPOINT) == ([], 1)
    assert len(names(folder)) == 2
    assert published.items() <= tree(folder).items()
    assert list((folder / ".pleiades" / "staging").iterdir()) == []
    second.close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_syncs_no_folders_is_used_all_the_same(
    folder: Path, sink: FilesSink, world: World, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def refusing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    sink.open(resume=True)
    monkeypatch.setattr(os, "fsync", refusing)
    sink.write([event(1)])
    sink.commit(CHECKPOINT)
    assert len(names(folder)) == 1
    assert world.pauses == []


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
    sink.write([event(1)])
    assert sink.commit(CHECKPOINT) == ([], 0)
    assert sink.is_published(event(1))


def test_a_place_that_can_not_be_used_is_fatal_and_says_what_to_do(
    tmp_path: Path, world: World
) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(Fatal, match=r"--file\.publishDir"):
        make(occupied, world).open(resume=True)
    assert world.pauses == []


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
    monkeypatch.setattr(disk, "sync_directory", noting("fsync folder", disk.sync_directory))
    monkeypatch.setattr(Path, "replace", noting("rename", Path.replace))
    monkeypatch.setattr(staging, "rename_new", noting("rename", disk.rename_new))
    sink.write([event(1), event(2)])
    sink.commit(CHECKPOINT)
    assert steps == [
        "syncfs",
        "rename checkpoint-recentchange",
        "fsync folder",
        "rename 20260131T120000.001Z-id-1.json",
        "rename 20260131T120000.002Z-id-2.json",
    ]


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\0" * 200, b'{"version":99}', b"x" * 2_000_000],
    ids=["empty", "cut", "zeros", "newer", "huge"],
)
def test_a_damaged_checkpoint_is_found_again_in_the_identity_log(
    folder: Path, world: World, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    first = make(folder, world)
    first.open(resume=True)
    first.write([event(1)])
    first.commit(Checkpoint({SOURCE: NOON_MS}, NOON_MS, NOON_MS))
    first.write([event(2)])
    first.commit(CHECKPOINT)
    first.close()
    for path in folder.glob("2*/*.json"):
        path.unlink()
    stored = folder / ".pleiades" / "checkpoint-recentchange"
    stored.write_bytes(damage)
    second = make(folder, world)
    assert known(second) == (CHECKPOINT, [event(1), event(2)])
    assert "was set aside" in caplog.text
    (aside,) = (folder / ".pleiades").glob("checkpoint-*.damaged-*")
    assert aside.read_bytes() == damage
    second.close()
    third = make(folder, world)
    assert known(third) == (CHECKPOINT, [event(1), event(2)]), "lost by the next start"
    third.close()


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
    other = make(folder, world, name="page-create")
    assert other.open(resume=True).checkpoint is None
    assert "checkpoint-recentchange" in caplog.text
    other.close()
    assert make(folder, world).open(resume=True).checkpoint == CHECKPOINT


def test_a_read_only_directory_is_fatal(tmp_path: Path, world: World) -> None:
    tmp_path.chmod(0o500)
    with permissions_hold(), pytest.raises(Fatal, match="mend its permissions"):
        make(tmp_path / "x", world).open(resume=True)


# ---- what a review found ----


def replaying(folder: Path, world: World) -> FilesSink:
    return make(folder, world, name="range", is_replay=True)


def test_a_replay_that_begins_again_publishes_nothing_cut_short(folder: Path, world: World) -> None:
    """A crash during staging leaves half an event; a committed event gets its name."""
    first = replaying(folder, world)
    first.open(resume=True)
    first.write([event(1)])
    first.commit(CHECKPOINT)
    first.close()
    staging = folder / ".pleiades" / "replays" / "range" / "staging"
    (published,) = folder.glob("*/*.json")
    (staging / "range.1").mkdir()
    published.rename(staging / "range.1" / f"00000000.{published.name}.part")
    (staging / "range.2").mkdir()
    half = f"00000000.{published.name.replace('001Z-id-1', '002Z-id-2')}.part"
    (staging / "range.2" / half).write_bytes(b'{"n":')
    again = replaying(folder, world)
    assert again.open(resume=False).checkpoint is None
    assert again.is_published(event(1))
    assert not again.is_published(event(2))
    again.write([letter(1)])
    again.commit(CHECKPOINT)
    assert again.is_published(letter(1))
    assert not again.is_published(letter(2))
    again.write([event(2)])
    again.commit(CHECKPOINT)
    again.close()
    assert [(folder / name).read_bytes() for name in names(folder)] == [b'{"n":1}\n', b'{"n":2}\n']


def test_events_of_more_hours_than_files_may_be_open(folder: Path, sink: FilesSink) -> None:
    """An imported page has revisions in thousands of different hours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Whatever other tests have left open.
    few = len(list(Path("/proc/self/fd").iterdir())) + 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        sink.open(resume=True)
        sink.write([event(3_600_000 * number) for number in range(400)])
        sink.commit(CHECKPOINT)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(names(folder)) == 400


@pytest.mark.parametrize("planted", ["", "dead-letters", "replays", "replays/range"])
def test_nothing_is_made_behind_a_planted_link(folder: Path, world: World, planted: str) -> None:
    target = folder.with_name("precious")
    target.mkdir()
    link = folder / ".pleiades" / planted
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    with pytest.raises(Fatal, match=f"{link}: it is a link"):
        replaying(folder, world).open(resume=True)
    assert list(target.iterdir()) == []


def test_the_directory_itself_may_be_a_link(folder: Path, world: World) -> None:
    target = folder.with_name("volume")
    target.mkdir()
    folder.symlink_to(target)
    for sink in (make(folder, world), replaying(folder, world)):
        sink.open(resume=True)
        sink.write([event(1)])
        sink.commit(CHECKPOINT)
        sink.close()
    assert len(names(target)) == 1


@pytest.mark.parametrize(
    "planted", ["checkpoint-recentchange", "lock", "identities-recentchange.1"]
)
def test_a_planted_pipe_is_not_waited_for(folder: Path, world: World, planted: str) -> None:
    (folder / ".pleiades").mkdir(parents=True)
    os.mkfifo(folder / ".pleiades" / planted)
    with pytest.raises(Fatal, match="no regular file"):
        make(folder, world).open(resume=True)


def test_a_second_name_is_said_with_the_file_that_has_it(folder: Path, world: World) -> None:
    """A backup made of hard links."""
    commit_once(folder, world)
    shutil.copytree(folder, folder.with_name("backup"), copy_function=os.link)
    with pytest.raises(Fatal, match="/lock: it has a second name"):
        make(folder, world).open(resume=True)


def test_compaction_on_a_full_disk_leaves_nothing_behind(
    folder: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities, "MIN_COMPACTED_BYTES", 1)
    sink = make(folder, world)
    sink.open(resume=True)
    sink.write([event(1)])
    sink.commit(CHECKPOINT)
    own, left, tries = folder / ".pleiades", [], []

    def full(descriptor: int, content: bytes) -> None:
        tries.append(content)
        disk.write_all(descriptor, content if len(tries) >= 10 else content[:50])
        if len(tries) < 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def count() -> None:
        left.append([path.name for path in own.glob("identities-*")])

    monkeypatch.setattr(journal, "write_all", full)
    world.mend = count
    before = (own / "identities-recentchange.1").stat().st_size
    assert before > 50
    sink.write([event(2)])
    sink.commit(CHECKPOINT)
    assert left == [["identities-recentchange.1"]] * 9
    sink.close()
    assert len(list(own.glob("identities-*"))) == 1
    assert known(make(folder, world)) == (CHECKPOINT, [event(1), event(2)])


def test_a_log_of_many_runs_can_be_read_after_it_was_salvaged(folder: Path, world: World) -> None:
    """Two minutes of 128 topics: too many runs for one header."""
    sink = make(folder, world)
    sink.open(resume=True)
    sink.write([event(0)])
    sink.commit(CHECKPOINT)
    sink.close()
    sources = [(f"eqiad.mediawiki.some-stream-{number:03}", 0) for number in range(128)]
    with (folder / ".pleiades" / "identities-recentchange.1").open("ab") as file:
        for commit in range(2, 700):
            runs = [
                Run(source, NOON_MS + commit, b"%016d" % (commit * 128 + number))
                for number, source in enumerate(sources)
            ]
            file.write(Group(commit, CHECKPOINT, runs).encoded())
    (folder / ".pleiades" / "checkpoint-recentchange").write_bytes(b"damaged")
    for _ in range(2):
        sink = make(folder, world)
        assert len(list(sink.open(resume=True).window)) == 1 + 698 * 128
        sink.close()


def without_its_log(folder: Path, world: World) -> None:
    """Leave a directory with 100 events in 100 hours, and no identity log."""
    sink = make(folder, world)
    sink.open(resume=True)
    sink.write([event(3_600_000 * number) for number in range(100)])
    sink.commit(CHECKPOINT)
    sink.close()
    (folder / ".pleiades" / "identities-recentchange.1").unlink()


def test_of_more_names_than_the_bound_the_newest_are_remembered(
    folder: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    without_its_log(folder, world)
    sink = make(folder, world, max_entries=10)
    window = [entry.fingerprint for entry in sink.open(resume=True).window]
    newest = [event(3_600_000 * number) for number in range(90, 100)]
    assert window == [fingerprint(one.identity) for one in newest]
    assert "--dedup.maxEntries (10) is reached" in caplog.text


def test_starts_that_come_to_nothing_leave_one_log(folder: Path, world: World) -> None:
    without_its_log(folder, world)
    for _ in range(5):
        sink = make(folder, world)
        assert len(list(sink.open(resume=True).window)) == 100
        sink.close()
        assert len(list((folder / ".pleiades").glob("identities-*"))) == 1


@pytest.mark.parametrize("other", ["file", "link to nowhere"])
def test_something_else_with_the_name_of_an_hour_is_passed_over(
    folder: Path, world: World, other: str
) -> None:
    without_its_log(folder, world)
    if other == "file":
        (folder / "2026-12-31T00").write_text("a user's")
    else:
        (folder / "2026-12-31T00").symlink_to(folder / "archived")
    assert len(list(make(folder, world).open(resume=True).window)) == 100


def test_what_a_power_failure_has_emptied_gets_no_name(
    folder: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    first = make(folder, world, "none")
    first.open(resume=True)
    first.write([event(1), event(2)])
    first.commit(CHECKPOINT)
    first.close()
    staged = folder / ".pleiades" / "staging" / "recentchange.1"
    staged.mkdir()
    (published, kept) = (folder / name for name in names(folder))
    published.unlink()
    (staged / f"00000000.{published.name}.part").touch()
    make(folder, world, "none").open(resume=True)
    assert [folder / name for name in names(folder)] == [kept]
    assert "1 events are lost: the power failed" in caplog.text


@pytest.mark.parametrize("planted", ["file", "link", "pipe"])
@pytest.mark.parametrize("when", ["before a start", "while the relay runs"])
def test_something_else_in_the_place_of_a_staging_folder_is_moved_aside(
    folder: Path, world: World, planted: str, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    commit_once(folder, world)
    target = folder.with_name("precious")
    target.mkdir()
    (target / "kept").write_text("precious")
    place = folder / ".pleiades" / "staging" / "recentchange.1"

    def plant() -> None:
        if planted == "file":
            place.write_text("precious")
        elif planted == "link":
            place.symlink_to(target)
        else:
            os.mkfifo(place)

    sink = make(folder, world)
    if when == "before a start":
        plant()
    sink.open(resume=True)
    if when != "before a start":
        plant()
    sink.write([event(1)])
    sink.commit(CHECKPOINT)
    assert world.pauses == []
    assert len(names(folder)) == 1
    assert (target / "kept").read_text() == "precious"
    (aside,) = place.parent.iterdir()
    assert f"{place} was in the way of the relay's folder and is now {aside}" in caplog.text


def test_what_a_checkpoint_may_cover_is_not_staged_again_in_its_place(
    folder: Path, sink: FilesSink, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails just after the checkpoint is replaced, and somebody removes the staged files. A
    crash while they are staged again must not leave a half commit that a checkpoint covers."""
    sink.open(resume=True)
    staged = folder / ".pleiades" / "staging"
    sync_directory, write_new = disk.sync_directory, disk.write_new
    crashed = folder.with_name("crashed")

    def failing(path: Path) -> None:
        if not world.pauses:
            shutil.rmtree(staged / "recentchange.1")
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync_directory(path)

    def crash_between(name: str, content: bytes, descriptor: int) -> None:
        write_new(name, content, descriptor)
        if world.pauses and not crashed.exists():
            (staged / "recentchange.2" / name).write_bytes(content[:3])
            shutil.copytree(folder, crashed)
            (staged / "recentchange.2" / name).write_bytes(content)

    monkeypatch.setattr(disk, "sync_directory", failing)
    monkeypatch.setattr(staging, "write_new", crash_between)
    sink.write([event(1), event(2)])
    sink.commit(CHECKPOINT)
    assert [(folder / name).read_bytes() for name in names(folder)] == [b'{"n":1}\n', b'{"n":2}\n']
    assert known(make(crashed, World(world.metrics))) == (CHECKPOINT, [event(1), event(2)])
    assert names(crashed) == []
    assert list((crashed / ".pleiades" / "staging").iterdir()) == []


def test_a_commit_whose_sync_failed_is_appended_once(
    folder: Path, sink: FilesSink, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink.open(resume=True)

    def failing(descriptor: int) -> None:
        if len(world.pauses) < 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        disk.sync_file_system(descriptor)

    monkeypatch.setattr(files, "sync_file_system", failing)
    for number in (1, 2):
        sink.write([event(number)])
        sink.commit(CHECKPOINT)
    sink.close()
    assert len(world.pauses) == 2
    again = make(folder, world)
    opened = again.open(resume=True)
    window = [entry.fingerprint for entry in opened.window]
    assert window == [fingerprint(event(number).identity) for number in (1, 2)]


def test_what_a_start_has_truncated_is_not_salvaged(folder: Path, world: World) -> None:
    """A crash came before the checkpoint: the events are not published, whatever happens later."""
    sink = make(folder, world)
    sink.open(resume=True)
    sink.write([event(1)])
    sink.commit(CHECKPOINT)
    sink.close()
    own = folder / ".pleiades"
    with (own / "identities-recentchange.1").open("ab") as file:
        run = Run(SOURCE, NOON_MS, fingerprint(event(2).identity))
        file.write(Group(2, CHECKPOINT, [run]).encoded())
    after = make(folder, world)
    assert known(after) == (CHECKPOINT, [event(1)])
    after.close()
    (own / "checkpoint-recentchange").write_bytes(b"damaged")
    assert known(make(folder, world)) == (CHECKPOINT, [event(1)])


@pytest.mark.parametrize("when", ["before the checkpoint", "after the checkpoint"])
def test_staged_files_that_somebody_removes_are_staged_again(
    folder: Path, sink: FilesSink, world: World, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    sink.open(resume=True)
    staged = folder / ".pleiades" / "staging"

    def remove(now: str) -> None:
        if now == when and not world.pauses:
            shutil.rmtree(staged / "recentchange.1")

    def syncing(descriptor: int) -> None:
        disk.sync_file_system(descriptor)
        remove("before the checkpoint")

    def replacing(path: Path, content: bytes, synced: bool) -> None:
        assert list(staged.glob("*/*.part")), "a checkpoint covers missing events"
        disk.replace_file(path, content, synced)
        remove("after the checkpoint")

    monkeypatch.setattr(files, "sync_file_system", syncing)
    monkeypatch.setattr(checkpoints, "replace_file", replacing)
    sink.write([event(1)])
    sink.commit(CHECKPOINT)
    assert len(world.pauses) == 1
    assert len(names(folder)) == 1


def test_the_log_that_the_stored_checkpoint_names_stays(
    sink: FilesSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities, "MIN_COMPACTED_BYTES", 1)
    sink.open(resume=True)
    sink.write([event(1)])
    sink.commit(CHECKPOINT)
    compacted = []

    def replacing(path: Path, content: bytes, synced: bool) -> None:
        numbers = [
            orjson.loads(each)["committed"]["journal"] for each in (path.read_bytes(), content)
        ]
        assert path.with_name(f"identities-recentchange.{numbers[0]}").exists()
        compacted.append(numbers[0] != numbers[1])
        disk.replace_file(path, content, synced)

    monkeypatch.setattr(checkpoints, "replace_file", replacing)
    sink.write([event(2)])
    sink.commit(CHECKPOINT)
    assert compacted == [True]


def test_a_commit_that_a_power_failure_has_emptied_is_not_salvaged(
    folder: Path, world: World
) -> None:
    """Its events were never published, and the checkpoint that would show this is damaged."""
    first = make(folder, world, "none")
    first.open(resume=True)
    first.write([event(1)])
    first.commit(CHECKPOINT)
    first.close()
    own = folder / ".pleiades"
    (own / "staging" / "recentchange.2").mkdir()
    (own / "staging" / "recentchange.2" / f"00000000.{names(folder)[0][14:]}.part").touch()
    with (own / "identities-recentchange.1").open("ab") as file:
        run = Run(SOURCE, NOON_MS, fingerprint(event(2).identity))
        file.write(Group(2, Checkpoint({SOURCE: NOON_MS + 9}, 0, 0), [run]).encoded())
    (own / "checkpoint-recentchange").write_bytes(b"")
    assert known(make(folder, world, "none")) == (CHECKPOINT, [event(1)])
    assert list((own / "staging").iterdir()) == []


def test_names_do_not_go_into_another_directory(
    folder: Path, sink: FilesSink, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory was moved between the checkpoint and the moves."""
    sink.open(resume=True)
    sink.write([event(1)])
    sink.commit(CHECKPOINT)
    elsewhere = folder.with_name("elsewhere")

    def replacing(path: Path, content: bytes, synced: bool) -> None:
        disk.replace_file(path, content, synced)
        if not world.pauses:
            folder.rename(elsewhere)
            folder.mkdir()

    def put_back() -> None:
        assert list(folder.iterdir()) == []
        folder.rmdir()
        elsewhere.rename(folder)

    monkeypatch.setattr(checkpoints, "replace_file", replacing)
    world.mend = put_back
    sink.write([event(2)])
    sink.commit(CHECKPOINT)
    assert len(world.pauses) == 1
    assert len(names(folder)) == 2


def test_a_log_removed_while_the_checkpoint_can_not_be_stored(
    folder: Path, sink: FilesSink, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink.open(resume=True)
    sink.write([event(1)])
    sink.commit(CHECKPOINT)
    tries = []

    def full(path: Path, content: bytes, synced: bool) -> None:
        tries.append(path)
        if len(tries) == 1:
            (folder / ".pleiades" / "identities-recentchange.1").unlink()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        disk.replace_file(path, content, synced)

    monkeypatch.setattr(checkpoints, "replace_file", full)
    sink.commit(CHECKPOINT)
    sink.write([event(2)])
    sink.commit(CHECKPOINT)
    sink.close()
    (folder / names(folder)[1]).unlink()
    assert known(make(folder, world)) == (CHECKPOINT, [event(2)])
