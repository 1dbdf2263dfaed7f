"""The line in the manifest and the name of a segment, each repeated after a crash."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pleiades.sinks import disk
from pleiades.sinks.archive import naming
from pleiades.sinks.archive.manifest import Entry
from pleiades.sinks.archive.naming import Manifest, give_name

NAME = "stream=s/date=2026-01-31/hour=12/20260131T120000.000Z-{:08}.ndjson"


def entry(number: int) -> Entry:
    return Entry(
        *(number, NAME.format(number), "s", 1, 2, 3, 4, 5),
        *({}, {("eqiad.s", 0): 6}, "0" * 64),
    )


def lines(*numbers: int) -> bytes:
    return b"".join(entry(number).encoded() for number in numbers)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest(tmp_path / "manifest.ndjson")


def test_a_line_is_appended_once(manifest: Manifest) -> None:
    assert (manifest.last_sequence(), manifest.length()) == (0, 0)
    for number in (1, 1, 2, 1, 2):
        length = manifest.ensure(entry(number))
        assert length == manifest.length() == manifest.path.stat().st_size
    assert manifest.path.read_bytes() == lines(1, 2)
    assert manifest.last_sequence() == 2


@pytest.mark.parametrize("before", [(), (1,), (1, 2)])
@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_part_of_a_line_is_replaced(
    manifest: Manifest, before: tuple[int, ...], cut: int
) -> None:
    manifest.path.write_bytes(lines(*before) + lines(9)[:cut])
    assert manifest.length() == len(lines(*before))
    assert manifest.last_sequence() == len(before)
    manifest.ensure(entry(3))
    assert manifest.path.read_bytes() == lines(*before, 3)


def test_a_whole_line_without_its_end_is_completed(manifest: Manifest) -> None:
    manifest.path.write_bytes(lines(1, 2)[:-1])
    manifest.ensure(entry(2))
    assert manifest.path.read_bytes() == lines(1, 2)


def test_a_failed_append_is_repeated(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest.ensure(entry(1))

    def fill_disk(descriptor: int, content: bytes) -> None:
        os.write(descriptor, content[:30])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(naming, "write_all", fill_disk)
        with pytest.raises(OSError, match="No space"):
            manifest.ensure(entry(2))
    assert manifest.path.read_bytes() == lines(1) + lines(2)[:30]
    manifest.ensure(entry(2))
    assert manifest.path.read_bytes() == lines(1, 2)


def test_lines_of_others_are_left_and_skipped(manifest: Manifest) -> None:
    manifest.path.write_bytes(lines(1) + b"a note\n" + lines(2) + b"\n")
    assert manifest.last_sequence() == 2
    manifest.ensure(entry(3))
    assert manifest.path.read_bytes() == lines(1) + b"a note\n" + lines(2) + b"\n" + lines(3)


def test_only_the_end_of_a_long_manifest_is_read(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naming, "MAX_LINE_BYTES", len(lines(1)) + 10)
    for number in range(1, 9):
        manifest.ensure(entry(number))
        assert manifest.last_sequence() == number
    manifest.ensure(entry(8))
    assert manifest.path.read_bytes() == lines(*range(1, 9))
    assert manifest.length() == len(lines(*range(1, 9)))


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_link_in_place_of_the_manifest_is_refused(
    manifest: Manifest, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"mine\n")
    make(other, manifest.path)
    with pytest.raises(OSError, match="link"):
        manifest.ensure(entry(1))
    assert other.read_bytes() == b"mine\n"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "raw"
    path.write_bytes(b"{}\n")
    return path


@pytest.fixture(params=["renameat2", "rename"])
def renames(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "rename":
        monkeypatch.setattr(disk, "rename_new", lambda *_: False)


@pytest.mark.usefixtures("renames")
def test_a_file_gets_its_name_once(raw: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    for _ in range(2):
        give_name(raw, archive, NAME.format(1))
        assert (archive / NAME.format(1)).read_bytes() == b"{}\n"
        assert not raw.exists()


def test_one_that_was_moved_away_needs_none(raw: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    raw.unlink()
    give_name(raw, archive, NAME.format(1))
    assert list(archive.iterdir()) == []


@pytest.mark.usefixtures("renames")
@pytest.mark.parametrize("is_link", [False, True])
def test_a_foreign_file_keeps_its_name(raw: Path, tmp_path: Path, is_link: bool) -> None:
    foreign = tmp_path / "archive" / NAME.format(1)
    foreign.parent.mkdir(parents=True)
    if is_link:
        foreign.symlink_to(tmp_path / "nowhere")
    else:
        foreign.write_bytes(b"foreign")
    with pytest.raises(FileExistsError) as raised:
        give_name(raw, tmp_path / "archive", NAME.format(1))
    assert raised.value.filename == str(foreign)
    assert raw.read_bytes() == b"{}\n"
    assert is_link or foreign.read_bytes() == b"foreign"
    foreign.unlink()
    give_name(raw, tmp_path / "archive", NAME.format(1))
    assert foreign.read_bytes() == b"{}\n"


@pytest.mark.parametrize("place", ["stream=s", "stream=s/date=2026-01-31"])
def test_a_link_in_place_of_a_folder_is_refused(raw: Path, tmp_path: Path, place: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    link = tmp_path / "archive" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(other)
    with pytest.raises(OSError, match="link"):
        give_name(raw, tmp_path / "archive", NAME.format(1))
    assert list(other.iterdir()) == []
    assert raw.exists()
