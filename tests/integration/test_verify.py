"""`pleiades verify` finds each kind of damage, in an archive and in its copy in a real S3 server."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pleiades.cli import main
from pleiades.runtime.errors import EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE
from pleiades.sinks.archive.directory import DirectoryTarget
from pleiades.sinks.archive.manifest import Entry
from pleiades.sinks.archive.upload import Settings, state_path
from pleiades.sinks.archive.uploader import Uploader
from pleiades.sinks.archive.verify import Verification, states_in
from tests.harness.archives import BEGIN_MS, SOURCE, STREAM, Archive, event
from tests.harness.s3 import S3Server, s3

__all__ = ["s3"]

EXTENSIONS = ("ndjson.zst", "ndjson.gz", "ndjson", "parquet")
EVENTS = 10


@pytest.fixture(params=["directory", "s3"])
def place(request: pytest.FixtureRequest) -> str:
    """Where the archive is verified."""
    kind: str = request.param
    return kind


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """One segment of each format."""
    archive = Archive(tmp_path / "archive")
    for extension in EXTENSIONS:
        archive.add(EVENTS, extension=extension)
    return archive


Verified = tuple[int, str]


@pytest.fixture
def verify(
    place: str,
    archive: Archive,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[], Verified]:
    """Run the command; returns its exit status and its output."""
    monkeypatch.setattr("pleiades.sinks.archive.verify.LOOK_SECONDS", 0.0)

    def run() -> Verified:
        where = str(archive.root)
        if place == "s3":
            server: S3Server = request.getfixturevalue("s3")
            for name, text in server.environment.items():
                monkeypatch.setenv(name, text)
            bucket = server.bucket()
            # A copy that somebody else made, with all that is in the archive.
            shutil.copytree(archive.root, bucket / "copy")
            where = f"s3://{bucket.name}/copy"
        status = main(["verify", where])
        return status, capsys.readouterr().out

    return run


def test_an_archive_is_sound(verify: Callable[[], Verified]) -> None:
    status, said = verify()
    assert status == EXIT_STOPPED, said
    assert "problem" not in said
    assert "segments   4 in 1 manifest\n" in said
    assert f"events     {4 * EVENTS}\n" in said
    assert f"stream     {STREAM}: {4 * EVENTS} events\n" in said
    assert "gaps       0\nduplicates 0\nlost       0\nsound: " in said


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def remove_line(archive: Archive, number: int) -> None:
    lines = archive.manifest.read_bytes().splitlines(keepends=True)
    del lines[number]
    archive.manifest.write_bytes(b"".join(lines))


def change_line(archive: Archive, number: int, old: bytes, new: bytes) -> None:
    lines = archive.manifest.read_bytes().splitlines(keepends=True)
    assert old in lines[number]
    lines[number] = lines[number].replace(old, new)
    archive.manifest.write_bytes(b"".join(lines))


def path_of(archive: Archive, number: int) -> Path:
    return archive.root / archive.entries()[number].name


Damage = Callable[[Archive], object]


@pytest.mark.parametrize(
    ("damage", "said", "lost"),
    [
        pytest.param(
            lambda archive: path_of(archive, 1).unlink(),
            [
                f"problem segment   {{1}} is missing, with {EVENTS} events",
                "pleiades replay --archive",
            ],
            EVENTS,
            id="a removed segment",
        ),
        *(
            pytest.param(
                lambda archive, number=number: flip(path_of(archive, number), 60),
                [f"problem segment   {{{number}}} is damaged: its SHA-256 is not the one"],
                None,
                id=f"a flipped bit, {extension}",
            )
            for number, extension in enumerate(EXTENSIONS)
        ),
        pytest.param(
            lambda archive: truncate(path_of(archive, 0)),
            ["problem segment   {0} has ", "somebody truncated or changed it"],
            EVENTS,
            id="a truncated segment",
        ),
        pytest.param(
            lambda archive: remove_line(archive, 1),
            [
                "manifest.ndjson, line 2: the lines of segment 2 are missing",
                "{1}: no manifest names",
            ],
            0,
            id="a removed line",
        ),
        pytest.param(
            lambda archive: remove_line(archive, 3),
            ["problem file      {3}: no manifest names it"],
            0,
            id="a removed last line",
        ),
        pytest.param(
            lambda archive: change_line(archive, 2, b'"events":10', b'"events":11'),
            ["problem segment   {2} holds 10 events, and the manifest says 11"],
            0,
            id="a changed line",
        ),
        pytest.param(
            lambda archive: change_line(archive, 2, b'"sha256"', b'"sha255"'),
            ["manifest.ndjson, line 3: a line can't be read", "{2}: no manifest names it"],
            0,
            id="a damaged line",
        ),
        pytest.param(
            lambda archive: shutil.copy(
                path_of(archive, 0), path_of(archive, 0).with_name("a-copy.ndjson.zst")
            ),
            ["problem file      stream=", "a-copy.ndjson.zst: no manifest names it"],
            0,
            id="a doubled file",
        ),
        pytest.param(
            lambda archive: (archive.root / "notes.txt").write_text("foreign"),
            ["problem file      notes.txt: no manifest names it"],
            0,
            id="a foreign file",
        ),
        pytest.param(
            lambda archive: archive.manifest.unlink(),
            ["problem manifest  there is no manifest", "problem file      {0}: no manifest"],
            0,
            id="no manifest",
        ),
        pytest.param(
            lambda archive: archive.manifest.write_bytes(archive.manifest.read_bytes() * 2),
            ["problem manifest  {0} is named twice", "line 5: segment 1 after 4"],
            0,
            id="a doubled manifest",
        ),
    ],
)
def test_each_kind_of_damage_is_found(
    damage: Damage,
    said: list[str],
    lost: int | None,
    archive: Archive,
    verify: Callable[[], Verified],
) -> None:
    names = [entry.name for entry in archive.entries()]
    damage(archive)
    status, output = verify()
    assert status == EXIT_FAILED, output
    for words in said:
        assert words.format(*names) in output
    assert lost is None or f"lost       {lost}\n" in output
    assert "not sound: " in output


def test_events_that_are_there_twice(archive: Archive, verify: Callable[[], Verified]) -> None:
    again = event(BEGIN_MS, "again")
    first = archive.add([again, event(0), event(0)])
    # The same event has the same Kafka timestamp.
    own = event(0, "own")
    second = archive.add([own, again, again, own], first_ms=first.first_ms, extension="parquet")
    status, said = verify()
    assert status == EXIT_FAILED
    assert f"2 events of {second.name} are also in {first.name}, such as again" in said
    assert f"1 event of {second.name} are also in itself, such as own" in said
    assert "duplicates 3\n" in said


def test_equal_events_without_an_identity_are_only_mentioned(
    archive: Archive, verify: Callable[[], Verified]
) -> None:
    archive.add([b"{}", b"{}"], stream="other")
    status, said = verify()
    assert status == EXIT_STOPPED
    assert "note    duplicate 1 event without a usable meta.id" in said


def test_a_gap_and_the_replay_that_fills_it(
    archive: Archive, verify: Callable[[], Verified]
) -> None:
    last = archive.entries()[-1]
    archive.clock_ms += 3_600_000
    new = archive.add(before={})
    status, said = verify()
    assert status == EXIT_FAILED
    (gap,) = [line for line in said.splitlines() if line.startswith("problem gap")]
    assert "the relay began anew there" in gap
    assert "gaps       1\n" in said
    reached = last.after[SOURCE]
    assert f'"timestamp":{reached}' in gap
    assert f"--upstream.stream={STREAM}" in gap
    assert f"before {new.name}" in gap
    replay = Archive(archive.root, "manifest-replay.ndjson")
    replay.clock_ms = last.last_ms + 1000
    replay.add(100)
    status, said = verify()
    assert status == EXIT_STOPPED, said
    assert "note    gap       " in said
    assert "gaps       0\n" in said


def test_positions_that_do_not_follow_on_each_other(
    archive: Archive, verify: Callable[[], Verified]
) -> None:
    archive.add(before={SOURCE: 5})
    status, said = verify()
    assert status == EXIT_FAILED
    assert "the positions of the segments do not follow on each other" in said


def test_streams_do_not_mix(archive: Archive, verify: Callable[[], Verified]) -> None:
    archive.add(stream="mediawiki.page-create")
    archive.add()
    archive.add(stream="mediawiki.page-create")
    status, said = verify()
    assert status == EXIT_STOPPED, said


def test_events_that_were_lost_before(archive: Archive, verify: Callable[[], Verified]) -> None:
    entry = archive.entries()[-1]._replace(lost=7)
    remove_line(archive, 3)
    with archive.manifest.open("ab") as file:
        file.write(entry.encoded())
    status, said = verify()
    assert status == EXIT_FAILED
    assert f"{entry.name}: somebody's damage took 7 events" in said
    assert "lost       7\n" in said


def test_without_pyarrow_it_says_what_was_not_checked(
    archive: Archive, verify: Callable[[], Verified], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    status, said = verify()
    assert status == EXIT_FAILED
    assert "1 segment of Parquet: size and SHA-256 are checked, the events are not" in said
    flip(path_of(archive, 3), 60)
    assert f"{archive.entries()[3].name} is damaged" in verify()[1]


def test_uploaded_and_removed_is_not_missing(archive: Archive, tmp_path: Path) -> None:
    state = state_path(archive.root, archive.manifest.name)
    settings = Settings(
        str(archive.root), archive.manifest.name, str(state), str(tmp_path / "copy"), 0.0
    )
    uploader = Uploader(settings, lambda _: None, lambda: 4e9)
    uploader.announced = archive.length
    while uploader.run_step():
        pass
    uploader.close()
    assert main(["verify", str(archive.root)]) == EXIT_STOPPED
    assert main(["verify", str(tmp_path / "copy")]) == EXIT_STOPPED
    # One more, which is not uploaded.
    entry = archive.add()
    (archive.root / entry.name).unlink()
    assert main(["verify", str(archive.root)]) == EXIT_FAILED


def test_the_output_of_uploaded_and_removed(
    archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test_uploaded_and_removed_is_not_missing(archive, tmp_path)
    said = capsys.readouterr().out
    assert "segments   0 in 1 manifest; 4 others are uploaded and no longer here" in said
    assert said.count("is missing, with 10 events") == 1


def found_while(archive: Archive, pauses: Callable[[float], object]) -> list[str]:
    """The problems, with something that happens while it waits."""
    target = DirectoryTarget(archive.root)
    verification = Verification(target, lambda: states_in(archive.root), pauses)
    return [finding.text for _, finding in verification.findings() if finding.exit_status]


def test_a_segment_that_is_named_just_now(archive: Archive) -> None:
    entry = archive.add()
    named = archive.root / entry.name
    unnamed = archive.root / ".pleiades" / "unnamed"
    named.rename(unnamed)
    assert len(found_while(archive, lambda _: None)) == 1
    assert found_while(archive, lambda _: unnamed.exists() and unnamed.rename(named)) == []


def test_a_line_that_is_being_written(archive: Archive) -> None:
    entry: Entry = archive.add()
    (archive.root / entry.name).unlink()
    archive.manifest.write_bytes(archive.manifest.read_bytes()[:-10])
    assert found_while(archive, lambda _: None) == []


def test_an_object_whose_line_comes_just_now(archive: Archive) -> None:
    archive.add()
    whole = archive.manifest.read_bytes()
    remove_line(archive, 4)
    assert len(found_while(archive, lambda _: None)) == 1
    assert found_while(archive, lambda _: archive.manifest.write_bytes(whole)) == []


def test_memory_is_bounded_by_more_passes(archive: Archive) -> None:
    again = event(BEGIN_MS, "again")
    for _ in range(3):
        archive.add([again, *[event(0) for _ in range(50)]], first_ms=BEGIN_MS)
    for most_held in (10_000, 20):
        target = DirectoryTarget(archive.root)
        verification = Verification(target, most_held=most_held)
        problems = [text for _, (_, text, status) in verification.findings() if status]
        assert len(problems) == 2
        assert verification.summary.duplicates == 2
        assert verification.summary.segments == 7


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], EXIT_USAGE, "DIR|URL"),
        (["s3://key:word@bucket"], EXIT_USAGE, "takes no credentials"),
        (["/no/such/archive"], EXIT_FAILED, "no such directory"),
        (["--verbose", "x"], EXIT_USAGE, "there is no flag --verbose"),
    ],
)
def test_what_can_not_be_verified(
    arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        found = main(["verify", *arguments])
    except SystemExit as error:
        found = int(str(error.code))
    assert found == status
    assert said in capsys.readouterr().err
