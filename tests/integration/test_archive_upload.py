"""Closed segments reach a real S3 server, or a directory, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pleiades.runtime import faultpoints
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.archive.inspect_target import inspect_target
from pleiades.sinks.archive.target import Target, open_target, parse_location
from pleiades.sinks.archive.upload import Settings, Status, decode_status, read_state, state_path
from pleiades.sinks.archive.uploader import Uploader
from pleiades.sinks.archive.uploads import COMMAND, Uploads
from pleiades.sinks.archive.verify import Summary, Verification, states_in
from tests.harness.archives import BEGIN_MS, Archive
from tests.harness.s3 import S3Server, own_s3, s3
from tests.harness.waiting import until

__all__ = ["own_s3", "s3"]

WAIT_SECONDS = 20
STEPS = 100


@dataclass
class Copy:
    """A place that an archive is uploaded to."""

    url: str
    folder: Path
    """Where the objects lie as files."""

    def content(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def put(self, name: str, content: bytes) -> Path:
        """Somebody else's object; a file in its folder would have no ETag."""
        target = open_target(parse_location(self.url), "theirs")
        target.create(name, memoryview(content))
        target.close()
        return self.folder / name

    def remove(self, name: str) -> None:
        target = open_target(parse_location(self.url))
        target.delete(name)
        target.close()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


@pytest.fixture
def in_s3(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Copy:
    return copy_in(s3, monkeypatch)


def copy_in(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Copy:
    for name, text in server.environment.items():
        monkeypatch.setenv(name, text)
    bucket = server.bucket()
    return Copy(f"s3://{bucket.name}/a/b", bucket / "a" / "b")


@pytest.fixture(params=["s3", "directory"])
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Copy:
    if request.param == "s3":
        found: Copy = request.getfixturevalue("in_s3")
        return found
    return Copy(str(tmp_path / "copy"), tmp_path / "copy")


def settings_of(archive: Archive, copy: Copy, keep_seconds: float | None = None) -> Settings:
    name = archive.manifest.name
    state = str(state_path(archive.root, name))
    return Settings(str(archive.root), name, state, copy.url, keep_seconds)


class Trial:
    """An uploader in this process."""

    def __init__(
        self,
        archive: Archive,
        copy: Copy,
        keep: float | None = None,
        at: float | None = None,
        stays: bool = False,
    ) -> None:
        self.archive = archive
        self.stays = stays
        self.statuses = [Status()]
        clock = time.time if at is None else lambda: at
        settings = settings_of(archive, copy, keep)
        self.uploader = Uploader(settings, self.statuses.append, clock)

    @property
    def status(self) -> Status:
        return self.statuses[-1]

    def run(self) -> Status:
        """Upload all that is there, or to the first problem."""
        self.uploader.announced = self.archive.length
        for _ in range(STEPS):
            if not self.uploader.run_step():
                break
        else:
            raise AssertionError(self.statuses)
        if not self.stays:
            self.uploader.close()
        return self.status


def problems_of(place: str, local: Path | None = None) -> tuple[list[str], Summary]:
    target: Target = open_target(parse_location(place))
    states = (lambda: states_in(local)) if local else dict
    verification = Verification(target, states, pauses=lambda _: None)
    found = [finding.text for _, finding in verification.findings() if finding.exit_status]
    return found, verification.summary


def assert_complete(archive: Archive, copy: Copy) -> None:
    """The copy has all, once, and so has the archive."""
    wrong, summary = problems_of(copy.url)
    assert wrong == []
    assert summary.segments == len(archive.entries())
    assert (summary.lost, summary.duplicates) == (0, 0)
    assert copy.content(archive.manifest.name) == archive.manifest.read_bytes()
    assert problems_of(str(archive.root), archive.root)[0] == []


def test_all_is_uploaded_in_the_manifest_s_order(archive: Archive, copy: Copy) -> None:
    trial = Trial(archive, copy)
    archive.add()
    archive.add(stream="mediawiki.page-create", extension="ndjson.gz")
    archive.add(extension="parquet")
    assert trial.run() == Status(
        uploaded=3, uploaded_bytes=sum(entry.file_bytes for entry in archive.entries())
    )
    assert trial.statuses[1].pending_segments == 3
    archive.add(extension="ndjson")
    assert trial.run().uploaded == 4
    assert_complete(archive, copy)


def test_a_restart_goes_on_and_needs_no_state_file(archive: Archive, copy: Copy) -> None:
    archive.add()
    Trial(archive, copy).run()
    archive.add()
    assert Trial(archive, copy).run().uploaded == 1
    state = state_path(archive.root, archive.manifest.name)
    before = read_state(state)
    state.unlink()
    archive.add()
    assert Trial(archive, copy).run().uploaded == 1
    assert read_state(state) != before
    assert_complete(archive, copy)


def test_an_object_with_other_content_is_not_overwritten(archive: Archive, copy: Copy) -> None:
    entry = archive.add()
    there = copy.put(entry.name, b"x" * entry.file_bytes)
    trial = Trial(archive, copy)
    for failures in (1, 2):
        status = trial.run()
        assert status.errors == failures
        assert f"{copy.url}/{entry.name} is there with other content" in status.problem
        assert status.pending_segments == 1
    assert there.read_bytes() == b"x" * entry.file_bytes
    copy.remove(entry.name)
    assert trial.run().problem == ""
    assert_complete(archive, copy)


def test_the_same_object_is_taken_as_uploaded(archive: Archive, copy: Copy) -> None:
    entry = archive.add()
    copy.put(entry.name, (archive.root / entry.name).read_bytes())
    assert Trial(archive, copy).run().uploaded == 1
    assert_complete(archive, copy)


def test_two_archives_do_not_share_a_manifest(archive: Archive, copy: Copy, tmp_path: Path) -> None:
    other = Archive(tmp_path / "other")
    other.clock_ms = BEGIN_MS + 10_000_000
    archive.add()
    other.add()
    Trial(archive, copy).run()
    trial = Trial(other, copy)
    assert "names a segment that this archive does not have" in trial.run().problem
    assert trial.run().uploaded == 0
    assert_complete(archive, copy)


def test_a_replay_has_a_manifest_of_its_own(archive: Archive, copy: Copy) -> None:
    replay = Archive(archive.root, "manifest-replay-1.ndjson")
    replay.clock_ms = BEGIN_MS - 10_000_000
    archive.add()
    replay.add()
    Trial(archive, copy).run()
    Trial(replay, copy).run()
    wrong, summary = problems_of(copy.url)
    assert wrong == []
    assert (summary.manifests, summary.segments) == (2, 2)


def test_two_uploaders_of_one_manifest(archive: Archive, in_s3: Copy) -> None:
    archive.add()
    first, second = (Trial(archive, in_s3, stays=True) for _ in range(2))
    first.run()
    second.run()
    archive.add()
    first.run()
    # The second one has read the manifest as it was before.
    assert "was replaced or removed by somebody else" in second.run().problem
    assert second.run().problem == ""
    assert_complete(archive, in_s3)


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_segment_is_not_uploaded(damage: str, archive: Archive, copy: Copy) -> None:
    entry = archive.add()
    archive.add()
    path = archive.root / entry.name
    content = path.read_bytes()
    other = content[:-1] + bytes([content[-1] ^ 1]) if damage == "flipped" else content[:-1]
    path.write_bytes(other)
    trial = Trial(archive, copy)
    problem = trial.run().problem
    assert entry.name in problem
    assert "it is damaged" in problem
    assert not (copy.folder / entry.name).exists()
    path.write_bytes(content)
    assert trial.run().uploaded == 2
    assert_complete(archive, copy)


def test_a_removed_segment_is_skipped_and_said_so(archive: Archive, copy: Copy) -> None:
    entries = [archive.add() for _ in range(3)]
    (archive.root / entries[1].name).unlink()
    trial = Trial(archive, copy)
    status = trial.run()
    assert (status.uploaded, status.skipped, status.pending_segments) == (2, 1, 0)
    said = [status.message for status in trial.statuses if status.message]
    assert len(said) == 1
    assert entries[1].name in said[0]
    # Again after a start, and quietly.
    assert Trial(archive, copy).run().skipped == 0
    wrong, summary = problems_of(copy.url)
    assert (len(wrong), summary.segments) == (1, 2)
    assert "the lines of segment 2 are missing" in wrong[0]
    assert "is missing" in problems_of(str(archive.root), archive.root)[0][0]


def test_an_emptied_target_is_not_filled_anew(archive: Archive, copy: Copy) -> None:
    archive.add()
    Trial(archive, copy).run()
    copy.remove(archive.manifest.name)
    archive.add()
    trial = Trial(archive, copy)
    assert "it is gone from" in trial.run().problem
    assert trial.status.pending_segments == 1
    state_path(archive.root, archive.manifest.name).unlink()
    assert trial.run().problem != ""
    assert Trial(archive, copy).run().uploaded == 2
    assert_complete(archive, copy)


def test_the_archive_is_no_target(archive: Archive, tmp_path: Path) -> None:
    entry = archive.add()
    (tmp_path / "link").symlink_to(archive.root)
    trial = Trial(archive, Copy(str(tmp_path / "link"), archive.root), keep=0, at=4e9)
    # The manifest is there already, so all seems to be uploaded: nothing may be removed for that.
    assert "the target is the archive itself" in trial.run().problem
    assert (archive.root / entry.name).exists()


# ---- how long segments stay here ----

KEEP = 3600.0


def test_uploaded_segments_are_removed_after_their_time(archive: Archive, copy: Copy) -> None:
    entries = [archive.add() for _ in range(2)]
    closed = (archive.root / entries[1].name).stat().st_mtime
    young = Trial(archive, copy, KEEP, at=closed + KEEP - 10)
    assert young.run().removed == 0
    old = Trial(archive, copy, KEEP, at=closed + KEEP + 10)
    assert old.run().removed == 2
    assert not list(archive.root.glob("stream=*")), "empty folders stay"
    assert_complete(archive, copy)
    assert problems_of(str(archive.root), archive.root)[1].removed == 2
    # Without the state file nobody knows that they are uploaded.
    assert len(problems_of(str(archive.root))[0]) == 2


def test_without_a_time_they_stay(archive: Archive, copy: Copy) -> None:
    entry = archive.add()
    assert Trial(archive, copy, None, at=4e9).run().removed == 0
    assert (archive.root / entry.name).exists()


def test_what_is_not_uploaded_stays(archive: Archive, copy: Copy) -> None:
    first, second = archive.add(), archive.add()
    copy.put(second.name, b"other")
    trial = Trial(archive, copy, 0.0, at=4e9)
    for _ in range(3):
        trial.run()
    assert "other content" in trial.status.problem
    assert (archive.root / second.name).exists()
    copy.remove(second.name)
    assert trial.run().removed == 2
    assert not (archive.root / first.name).exists()
    assert_complete(archive, copy)


def test_what_is_no_longer_the_segment_stays(archive: Archive, copy: Copy) -> None:
    entry = archive.add()
    Trial(archive, copy).run()
    path = archive.root / entry.name
    path.write_bytes(b"somebody's")
    assert Trial(archive, copy, 0.0, at=4e9).run().removed == 0
    assert path.exists()


# ---- what the server refuses ----


def test_a_server_that_goes_away_and_comes_back(
    archive: Archive, own_s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_in(own_s3, monkeypatch)
    archive.add()
    trial = Trial(archive, copy)
    trial.run()
    own_s3.stop()
    archive.add()
    for failures in (1, 2):
        status = trial.run()
        assert (status.errors, status.pending_segments) == (failures, 1)
        assert f"to {copy.url}: S3: " in status.problem
        assert "no event is lost" in status.problem
    own_s3.start()
    assert trial.run().problem == ""
    assert_complete(archive, copy)


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong-secret", "refuses the credentials"),
        ("AWS_ACCESS_KEY_ID", "wrong-key", "refuses the credentials"),
        ("AWS_ACCESS_KEY_ID", "", "there are no credentials"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "error sending request"),
    ],
)
def test_what_is_refused_is_said_without_secrets(
    variable: str,
    text: str,
    said: str,
    archive: Archive,
    in_s3: Copy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, text)
    if not text:
        monkeypatch.delenv(variable)
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    archive.add()
    trial = Trial(archive, in_s3)
    problem = trial.run().problem
    assert said in problem
    assert not any(
        secret in problem for secret in ("wrong-secret", "wrong-key", "\n", "<", "Signature:")
    )
    (finding,) = inspect_target(parse_location(in_s3.url), archive.root, True)
    assert finding.kind == "problem"
    assert said in finding.text


def test_a_missing_bucket(archive: Archive, in_s3: Copy) -> None:
    archive.add()
    nowhere = Copy("s3://no-such-bucket/x", in_s3.folder)
    assert "there is no bucket no-such-bucket" in Trial(archive, nowhere).run().problem


def test_check_tries_the_bucket_and_leaves_nothing(in_s3: Copy, tmp_path: Path) -> None:
    (finding,) = inspect_target(parse_location(in_s3.url), tmp_path, True)
    assert (finding.kind, finding.exit_status) == ("ok", 0), finding.text
    assert not [path for path in in_s3.folder.parents[1].rglob("*") if path.name[:5] == "check"]


# ---- the process ----


@contextmanager
def process(
    settings: Settings, fault: Path | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], list[Status]]]:
    """The uploader as the publisher starts it."""
    environment = dict(os.environ)
    if fault is not None:
        environment[faultpoints.FOLDER_VARIABLE] = str(fault)
    uploader = subprocess.Popen(
        COMMAND, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert uploader.stdin is not None
    assert uploader.stdout is not None
    statuses: list[Status] = []
    output = uploader.stdout

    def read() -> None:
        for line in output:
            statuses.append(decode_status(line))  # noqa: PERF401  # as they come

    reading = threading.Thread(target=read)
    reading.start()
    uploader.stdin.write(settings.encoded())
    uploader.stdin.flush()
    try:
        yield uploader, statuses
    finally:
        uploader.kill()
        uploader.wait(WAIT_SECONDS)
        reading.join(WAIT_SECONDS)
        uploader.stdin.close()
        output.close()


def announce(uploader: subprocess.Popen[bytes], archive: Archive) -> None:
    assert uploader.stdin is not None
    uploader.stdin.write(b"%d\n" % archive.length)
    uploader.stdin.flush()


def is_done(statuses: list[Status]) -> bool:
    return bool(statuses) and statuses[-1][:2] == (0, 0) and not statuses[-1].problem


@pytest.mark.parametrize(
    ("copy", "point"),
    [
        *(("directory", point) for point in faultpoints.UPLOAD_POINTS),
        *(
            ("s3", point)
            for point in faultpoints.UPLOAD_POINTS
            if point != faultpoints.UPLOAD_STAGED
        ),
    ],
    indirect=["copy"],
)
def test_killed_at_each_step(point: str, archive: Archive, copy: Copy, tmp_path: Path) -> None:
    fault = tmp_path / "fault"
    fault.mkdir()
    for _ in range(3):
        archive.add()
    settings = settings_of(archive, copy, keep_seconds=0.0)
    (fault / point).touch()
    with process(settings, fault) as (uploader, statuses):
        announce(uploader, archive)
        assert uploader.wait(WAIT_SECONDS) == -signal.SIGKILL
    assert problems_of(str(archive.root), archive.root)[0] == []
    archive.add()
    with process(settings) as (uploader, statuses):
        announce(uploader, archive)
        until(lambda: is_done(statuses) and not list(archive.root.glob("stream=*")), "the end")
    assert_complete(archive, copy)


def test_the_process_ends_with_its_input_and_not_by_signals(archive: Archive, copy: Copy) -> None:
    archive.add()
    with process(settings_of(archive, copy)) as (uploader, statuses):
        announce(uploader, archive)
        until(lambda: is_done(statuses), "the first upload")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            uploader.send_signal(number)
        archive.add()
        announce(uploader, archive)
        until(lambda: statuses[-1].uploaded == 2, "the second upload")
        assert uploader.stdin is not None
        uploader.stdin.close()
        assert uploader.wait(WAIT_SECONDS) == 0


def test_it_ends_although_the_server_hangs(
    archive: Archive, own_s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.add()
    copy = copy_in(own_s3, monkeypatch)
    own_s3.freeze()
    with process(settings_of(archive, copy)) as (uploader, _):
        announce(uploader, archive)
        assert uploader.stdin is not None
        uploader.stdin.close()
        assert uploader.wait(WAIT_SECONDS) == 0
    own_s3.thaw()


PARENT = """
import subprocess, sys, time
uploader = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
uploader.stdin.write(sys.argv[1].encode() + b"\\n0\\n")
uploader.stdin.flush()
print(uploader.pid, uploader.stdout.readline(), flush=True)
time.sleep(60)
"""


def test_it_dies_with_its_parent(archive: Archive, tmp_path: Path) -> None:
    settings = settings_of(archive, Copy(str(tmp_path / "copy"), tmp_path))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, settings.encoded().decode().strip(), *COMMAND],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline().split()[0])
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or is_zombie(pid), "its end")


def is_zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_the_publisher_s_side(
    archive: Archive, copy: Copy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = tmp_path / "metrics"
    folder.mkdir()
    metrics = Metrics("publisher", str(folder))
    entry = archive.add()
    copy.put(entry.name, b"other")
    uploads = Uploads(settings_of(archive, copy), metrics.uploads)
    assert uploads.is_done()
    try:
        uploads.announce(archive.length)
        wait_for(uploads, lambda: uploads.status.errors > 0)
        assert "other content" in caplog.text
        assert not uploads.is_done()
        assert value(metrics.uploads.lag) > 0
        assert value(metrics.uploads.pending) == 1
        copy.remove(entry.name)
        wait_for(uploads, lambda: uploads.status.uploaded == 1)
        assert "work again" in caplog.text
        assert value(metrics.uploads.lag) == 0
        assert uploads._process is not None
        uploads._process.kill()
        archive.add()
        uploads.announce(archive.length)
        wait_for(uploads, lambda: value(metrics.uploads.uploaded) == 2)
        assert "started again" in caplog.text
        until(uploads.is_done, "the state file")
        process = uploads._process
    finally:
        uploads.close()
    uploads.close()
    assert process is not None
    assert process.returncode == 0
    assert_complete(archive, copy)


def wait_for(uploads: Uploads, condition: Callable[[], bool]) -> None:
    def polled() -> bool:
        uploads.poll()
        return condition()

    until(polled, "the uploader")


def value(metric: object) -> float:
    (sample,) = [
        sample
        for family in metric.collect()  # type: ignore[attr-defined]
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
    return float(sample.value)


def test_the_settings_are_a_line_of_json(archive: Archive, copy: Copy) -> None:
    encoded = settings_of(archive, copy, 1.5).encoded()
    assert json.loads(encoded)["keep_local_seconds"] == 1.5
    assert encoded.endswith(b"\n")
