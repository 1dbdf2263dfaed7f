"""`pleiades check` on a directory: its findings, and that it leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pleiades.config.settings import Settings
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.identity_log import Group
from pleiades.runtime.findings import Finding, Kind
from pleiades.sinks.checkpoints import CheckpointFile, Stored
from pleiades.sinks.disk import Lock
from tests.harness.permissions import permissions_hold
from tests.harness.settings import files_of
from tests.harness.tree import lasting_tree

NOON_MS = 1_769_860_800_000  # 2026-01-31T12:00:00Z
CHECKPOINT = Checkpoint({("eqiad.mediawiki.recentchange", 0): NOON_MS + 1}, NOON_MS, NOON_MS)


@pytest.fixture
def found(tmp_path: Path, settings_of: Callable[..., Settings]) -> Callable[..., list[Finding]]:
    """Inspects `events`, and checks that this leaves nothing behind."""

    def looked(*flags: str, below: str = "events") -> list[Finding]:
        settings = settings_of(f"--file.publishDir={tmp_path / below}", *flags)
        before = lasting_tree(tmp_path)
        findings = list(files_of(settings).inspect(settings))
        assert lasting_tree(tmp_path) == before
        return findings

    return looked


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The `.pleiades` folder of an earlier run."""
    folder = tmp_path / "events" / ".pleiades"
    for name in ("staging", "dead-letters"):
        (folder / name).mkdir(parents=True)
    (folder / "lock").write_text("1\n")
    return folder


Found = Callable[..., list[Finding]]


def problems(findings: list[Finding]) -> list[tuple[int, str]]:
    return [
        (finding.exit_status, finding.text) for finding in findings if finding.kind is Kind.PROBLEM
    ]


def test_a_directory_that_can_be_made(found: Found, tmp_path: Path) -> None:
    there, room, position = found(below="a/b/c")
    assert f"it would be made in {tmp_path}" in there.text
    assert "are free" in room.text
    assert "no position is stored" in position.text
    assert "with the events of the last 60 s before it" in position.text


@pytest.mark.parametrize("planted", [".pleiades", ".pleiades/staging", ".pleiades/dead-letters"])
def test_a_folder_that_is_a_link_can_not_be_used(
    found: Found, tmp_path: Path, planted: str
) -> None:
    """A start refuses it too."""
    link = tmp_path / "events" / planted
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path)
    ((_, text),) = problems(found())
    assert f"{link} is a link, which is not followed" in text


def test_the_directory_itself_may_be_a_link(found: Found, tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "events")
    assert not problems(found(below="link"))


def test_a_stored_position_is_told_with_its_age(found: Found, own: Path) -> None:
    CheckpointFile(own, "recentchange", synced=False).replace(Stored(CHECKPOINT))
    findings = found()
    assert not problems(findings)
    text = "\n".join(finding.text for finding in findings)
    assert "position stored 0 s ago in" in text
    # The overlap does not reach back before the start.
    assert "asking the upstream from 2026-01-31T12:00:00.000Z on" in text
    assert '"topic":"eqiad.mediawiki.recentchange"' in text
    # The position is from January, and has been lying there since.
    assert [finding for finding in findings if finding.kind is Kind.WARNING]
    assert "Wikimedia keeps 7 days" in text


def test_a_position_that_is_not_used_is_told_too(found: Found, own: Path) -> None:
    CheckpointFile(own, "recentchange", synced=False).replace(Stored(CHECKPOINT))
    text = "\n".join(finding.text for finding in found("--resume=false", "--since=-2h"))
    assert "a start begins at 2" in text
    assert "2 h ago (--since)" in text or "119 min ago (--since)" in text


def test_positions_of_other_streams_are_mentioned(found: Found, own: Path) -> None:
    CheckpointFile(own, "page-create", synced=False).replace(Stored(CHECKPOINT))
    *_, position, others = found()
    assert "no position is stored" in position.text
    assert "checkpoint-page-create" in others.text


def test_a_damaged_position_is_left_in_place(found: Found, own: Path) -> None:
    (own / "checkpoint-recentchange").write_text("{damaged")
    *_, lost = found()
    assert lost.kind is Kind.WARNING
    assert "the identity log does not have it either" in lost.text
    group = Group(1, CHECKPOINT, [])
    (own / "identities-recentchange.1").write_bytes(group.encoded() + b"torn")
    *_, again = found()
    assert again.kind is Kind.WARNING
    assert "a start finds it again in the identity log" in again.text
    *_, ignored = found("--resume=false")
    assert "--resume=false ignores it anyway" in ignored.text


def test_another_instance_is_the_status_of_its_own(found: Found, own: Path) -> None:
    lock = Lock(own / "lock", own, "--file.publishDir")
    lock.acquire()
    ((status, text),) = problems(found())
    lock.release()
    assert status == 4
    assert f"process {os.getpid()} publishes into" in text
    assert not problems(found())


def test_what_is_in_the_way(found: Found, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "not there")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for below, says in (
        ("file", "file is in the way: it is no directory"),
        ("file/a/b", "file is in the way: it is no directory"),
        ("nowhere", "is a link to nowhere"),
        ("nowhere/a", "is a link to nowhere"),
        ("loop", "symbolic links"),
        ("x" * 300, "File name too long"),
    ):
        ((status, text),) = problems(found(below=below))
        assert status == 1
        assert says in text
        assert "--file.publishDir" in text


def test_something_else_in_the_place_of_own_folders(found: Found, own: Path) -> None:
    shutil.rmtree(own / "staging")
    (own / "staging").write_text("")
    ((status, text),) = problems(found())
    assert status == 1
    assert "staging is in the way" in text


def test_a_directory_without_permission(found: Found, own: Path, tmp_path: Path) -> None:
    for locked, below, says in (
        (tmp_path, "other/a", "may not make it in"),
        (own.parent, "events", "may not write into"),
        (own / "staging", "events", "may not write into"),
    ):
        locked.chmod(0o555)
        with permissions_hold():
            ((status, text),) = problems(found(below=below))
        locked.chmod(0o755)
        assert status == 1
        assert says in text


def test_too_little_room(found: Found, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(own)

    def with_room_for(events: int, files: int) -> list[Finding]:
        values = list(real)
        # f_frsize, f_bavail, f_files, f_favail: see statvfs(3).
        values[1], values[4], values[5], values[7] = 4096, events, files, files
        monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))
        return found()

    ((status, text),) = problems(with_room_for(0, 10**9))
    assert status == 1
    assert "there is no room" in text
    _, room, *_ = with_room_for(10**9, 5)
    assert (room.kind, "5 more files" in room.text) == (Kind.WARNING, True)
    _, room, *_ = with_room_for(10**9, 0)
    assert (room.kind, "any number of files" in room.text) == (Kind.OK, True)


MEMORY = Path("/dev/shm")  # noqa: S108  # a file system of its own, on every Linux


@pytest.mark.skipif(not MEMORY.is_dir(), reason="there is no second file system")
def test_folders_on_different_file_systems(found: Found, own: Path) -> None:
    if MEMORY.stat().st_dev == own.stat().st_dev:
        pytest.skip("the temporary folder lies in the memory, too")
    (own / "staging").rmdir()
    with tempfile.TemporaryDirectory(dir=MEMORY) as elsewhere:
        (own / "staging").symlink_to(elsewhere)
        ((status, text),) = problems(found())
    assert status == 1
    assert "staging lies on another file system than" in text
