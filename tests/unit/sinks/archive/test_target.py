"""Locations as the command line names them, and a directory as target."""

from __future__ import annotations

from pathlib import Path

import pytest

from pleiades.sinks.archive.directory import DirectoryTarget
from pleiades.sinks.archive.inspect_target import inspect_target, overlapping
from pleiades.sinks.archive.target import Changed, Exists, TargetError, parse_location


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("S3://bucket", "s3://bucket"),
        ("gs://bucket/a/", "gs://bucket/a"),
        ("az://container/a=b/c", "az://container/a=b/c"),
        ("./copy", "./copy"),
        ("/srv/a copy", "/srv/a copy"),
        ("file:///srv/a%20copy", "/srv/a copy"),
    ],
)
def test_a_location(text: str, place: str) -> None:
    assert str(parse_location(text)) == place


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "needs s3://"),
        ("a\0b", "needs s3://"),
        ("ftp://host/x", "ftp:// is not known"),
        ("s3://", "names no bucket"),
        ("s3://UPPER/x", "names no bucket"),
        ("s3://key:secret@bucket/x", "takes no credentials"),
        ("s3://bucket/../x", "prefix"),
        ("s3://bucket/a//b", "prefix"),
        ("s3://bucket/a?versionId=1", "prefix"),
        ("file://host/x", "three slashes"),
    ],
)
def test_no_location(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong) as error:
        parse_location(text)
    assert "secret" not in str(error.value)


def content_of(target: DirectoryTarget, name: str) -> bytes:
    with target.open(name) as reader:
        return reader.read(100)


def test_a_directory_creates_and_never_replaces(tmp_path: Path) -> None:
    target = DirectoryTarget(tmp_path / "copy", "manifest.ndjson")
    target.create("a/b/one", memoryview(b"one"))
    with pytest.raises(Exists):
        target.create("a/b/one", memoryview(b"two"))
    assert content_of(target, "a/b/one") == b"one"
    assert target.size("a/b/one") == 3
    assert target.size("a/b/two") is None
    assert [tuple(found) for found in target.list()] == [("a/b/one", 3)]


def test_a_name_that_appears_while_copying_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = DirectoryTarget(tmp_path, "manifest.ndjson")
    answers = iter([False, True])
    monkeypatch.setattr("pleiades.sinks.archive.directory._is_there", lambda _: next(answers))
    (tmp_path / "one").write_bytes(b"theirs")
    with pytest.raises(Exists):
        target.create("one", memoryview(b"ours"))
    assert (tmp_path / "one").read_bytes() == b"theirs"


def test_a_directory_replaces_only_what_was_read(tmp_path: Path) -> None:
    target = DirectoryTarget(tmp_path, "m")
    assert target.read("m") is None
    version = target.replace("m", b"1\n", None)
    with pytest.raises(Changed):
        target.replace("m", b"x\n", None)
    (tmp_path / "m").write_bytes(b"theirs\n")
    with pytest.raises(Changed):
        target.replace("m", b"2\n", version)
    read = target.read("m")
    assert read is not None
    assert read.content == b"theirs\n"
    target.replace("m", b"2\n", read.version)
    assert (tmp_path / "m").read_bytes() == b"2\n"


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    first, second = DirectoryTarget(tmp_path, "m"), DirectoryTarget(tmp_path, "m")
    first.replace("m", b"1\n", None)
    with pytest.raises(TargetError, match="another relay"):
        second.replace("m", b"2\n", b"1\n")
    DirectoryTarget(tmp_path, "another").replace("another", b"1\n", None)
    first.close()
    second.replace("m", b"2\n", b"1\n")


def test_errors_of_the_system_are_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    target = DirectoryTarget(tmp_path / "file" / "below", "m")
    with pytest.raises(TargetError, match="a file is in the way"):
        target.create("one", memoryview(b"1"))
    with pytest.raises(TargetError, match="no such directory"):
        list(target.list())


@pytest.mark.parametrize(
    ("target", "archive", "overlaps"),
    [("a", "a", True), ("a/b", "a", True), ("a", "a/b", True), ("ab", "a", False)],
)
def test_a_target_within_the_archive(
    target: str, archive: str, overlaps: bool, tmp_path: Path
) -> None:
    assert bool(overlapping(tmp_path / target, tmp_path / archive)) == overlaps


def test_a_link_to_the_archive_is_the_archive(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "link").symlink_to("archive")
    assert overlapping(tmp_path / "link" / "copy", tmp_path / "archive")


def look(target: Path, archive: Path, keeps_local: bool = True) -> list[tuple[str, str]]:
    location = parse_location(str(target))
    return [(str(f.kind), f.text) for f in inspect_target(location, archive, keeps_local)]


def test_check_leaves_a_directory_as_it_was(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (kind, text), (note, _) = look(copy, tmp_path / "archive", keeps_local=False)
    assert (kind, note) == ("ok", "note")
    assert "0 objects" in text
    assert list(tmp_path.rglob("*")) == [copy]


def test_check_of_a_directory_that_is_still_to_come(tmp_path: Path) -> None:
    ((kind, text),) = look(tmp_path / "a" / "b", tmp_path / "archive")
    assert kind == "ok"
    assert "creates it" in text
    assert not (tmp_path / "a").exists()


def test_check_of_what_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    ((kind, _),) = look(tmp_path / "file" / "below", tmp_path / "archive")
    assert kind == "problem"
    ((kind, _),) = look(tmp_path / "archive", tmp_path / "archive")
    assert kind == "problem"
