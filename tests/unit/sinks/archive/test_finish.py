"""Finishing of sealed segments, in this process and as the program that the relay starts."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pleiades.runtime.startup import STOP_SIGNALS
from pleiades.sinks.archive.codecs import GZ, PLAIN, ZST, DamagedSegment, decompressed
from pleiades.sinks.archive.finish import (
    COMMAND,
    NICENESS,
    Finished,
    Job,
    finish,
    read_answer,
)
from pleiades.sinks.archive.layout import CODEC_OF, FORMATS, NDJSON, NDJSON_GZ, NDJSON_ZST, PARQUET
from tests.harness.segments import event_lines, sealed_segment
from tests.harness.waiting import until

RUN_SECONDS = 60
LINES = event_lines(500)
TEXT = b"".join(LINES)


def job_of(folder: Path, codec: str, wanted: str, lines: list[bytes] = LINES) -> Job:
    raw = sealed_segment(folder / "ingest.7", lines, codec)
    return Job(str(raw), raw.stat().st_size, codec, str(folder / "ingest.7.finished"), wanted)


def text_of(path: str, wanted: str) -> bytes:
    with Path(path).open("rb") as file:
        return b"".join(decompressed(file.read, CODEC_OF[wanted]))


def run(job: Job, limit_bytes: int = resource.RLIM_INFINITY) -> Finished:
    """Run the program; returns its answer."""
    # Python would keep a part of a module's bytecode, where the limit cuts it.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        # As on a full disk, a part of the last write succeeds.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        answer, _ = process.communicate(job.encoded(), timeout=RUN_SECONDS)
    assert process.returncode == int(b"sha256" not in answer), answer
    return read_answer(answer)


@pytest.mark.parametrize(
    ("codec", "wanted"),
    [
        (ZST, NDJSON_ZST),
        (GZ, NDJSON_GZ),
        (PLAIN, NDJSON),
        (ZST, NDJSON),
        (PLAIN, NDJSON_ZST),
    ],
)
def test_the_lines_stay_and_the_file_is_described(tmp_path: Path, codec: str, wanted: str) -> None:
    job = job_of(tmp_path, codec, wanted)
    before = Path(job.raw).read_bytes()
    finished = finish(job)
    content = Path(job.output).read_bytes()
    assert text_of(job.output, wanted) == TEXT
    digest = hashlib.sha256(content).hexdigest()
    assert finished == Finished(len(content), digest, len(LINES), len(TEXT))
    assert Path(job.raw).read_bytes() == before


@pytest.mark.parametrize(("codec", "wanted"), [(ZST, NDJSON_ZST), (GZ, NDJSON_GZ)])
def test_small_commits_become_much_smaller(tmp_path: Path, codec: str, wanted: str) -> None:
    job = job_of(tmp_path, codec, wanted)
    assert finish(job).bytes < job.length / 1.3


def test_only_the_valid_length_counts(tmp_path: Path) -> None:
    job = job_of(tmp_path, ZST, NDJSON_ZST)
    with Path(job.raw).open("ab") as file:
        file.write(b"appended by a commit that failed")
    assert finish(job).events == len(LINES)
    hashed = finish(job._replace(output=""))
    valid = Path(job.raw).read_bytes()[: job.length]
    assert hashed == Finished(job.length, hashlib.sha256(valid).hexdigest(), -1, -1)


def test_an_empty_segment_is_finished(tmp_path: Path) -> None:
    job = job_of(tmp_path, ZST, NDJSON_ZST, lines=[])
    assert finish(job)[2:] == (0, 0)
    assert text_of(job.output, NDJSON_ZST) == b""


@pytest.mark.parametrize("codec", [ZST, GZ, PLAIN])
def test_a_short_segment_is_damaged_and_salvage_keeps_its_lines(tmp_path: Path, codec: str) -> None:
    job = job_of(tmp_path, codec, NDJSON)
    os.truncate(job.raw, job.length - 20)
    for attempt in (job, job._replace(output="")):
        with pytest.raises(DamagedSegment, match=f"it has {job.length - 20} of {job.length} bytes"):
            finish(attempt)
    assert not Path(job.output).exists()
    # A commit had ten lines; of plain text only the last line is lost.
    kept = len(LINES) - (1 if codec == PLAIN else 10)
    assert finish(job._replace(salvage=True)).events == kept
    assert text_of(job.output, NDJSON) == b"".join(LINES[:kept])


@pytest.mark.parametrize("codec", [ZST, GZ])
def test_a_changed_byte_is_damage_and_salvage_keeps_what_was_before(
    tmp_path: Path, codec: str
) -> None:
    job = job_of(tmp_path, codec, NDJSON)
    content = bytearray(Path(job.raw).read_bytes())
    content[job.length // 2] ^= 1
    Path(job.raw).write_bytes(content)
    with pytest.raises(DamagedSegment, match=r"the frame at byte \d+ is"):
        finish(job)
    assert not Path(job.output).exists()
    events = finish(job._replace(salvage=True)).events
    assert 200 <= events <= 300
    assert text_of(job.output, NDJSON) == b"".join(LINES[:events])


def test_a_last_line_without_an_end_is_damage(tmp_path: Path) -> None:
    job = job_of(tmp_path, ZST, NDJSON_ZST, lines=[b"{}\n", b"{}"])
    with pytest.raises(DamagedSegment, match="last line"):
        finish(job)
    assert finish(job._replace(salvage=True)).events == 1


def test_what_an_interrupted_attempt_left_is_replaced(tmp_path: Path) -> None:
    job = job_of(tmp_path, ZST, NDJSON_ZST)
    finished = finish(job)
    Path(job.output).write_bytes(b"half of it" * 100_000)
    assert finish(job) == finished
    assert text_of(job.output, NDJSON_ZST) == TEXT


def test_a_link_in_place_of_the_output_is_not_followed(tmp_path: Path) -> None:
    job = job_of(tmp_path, ZST, NDJSON_ZST)
    others = tmp_path / "others"
    others.write_bytes(b"precious")
    Path(job.output).symlink_to(others)
    finish(job)
    assert others.read_bytes() == b"precious"
    assert text_of(job.output, NDJSON_ZST) == TEXT


def test_a_link_in_place_of_the_segment_is_not_followed(tmp_path: Path) -> None:
    job = job_of(tmp_path, ZST, NDJSON_ZST)
    Path(job.raw).rename(tmp_path / "others")
    Path(job.raw).symlink_to(tmp_path / "others")
    with pytest.raises(OSError, match="it is a link"):
        finish(job)


# ---- the program ----


def test_the_program_does_the_same(tmp_path: Path) -> None:
    job = job_of(tmp_path, GZ, NDJSON_GZ)
    expected = finish(job)
    finished = run(job)
    assert finished == expected
    assert gzip.decompress(Path(job.output).read_bytes()) == TEXT


def test_the_program_reports_damage(tmp_path: Path) -> None:
    job = job_of(tmp_path, ZST, NDJSON_ZST)
    with pytest.raises(DamagedSegment, match="it has"):
        run(job._replace(length=job.length + 1))


def test_the_program_reports_a_missing_file(tmp_path: Path) -> None:
    job = job_of(tmp_path, ZST, NDJSON_ZST)
    Path(job.raw).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        run(job)
    assert caught.value.filename == job.raw


@pytest.mark.parametrize("wanted", FORMATS)
def test_a_full_disk_is_reported_and_its_room_given_back(tmp_path: Path, wanted: str) -> None:
    job = job_of(tmp_path, ZST, wanted)
    with pytest.raises(OSError, match="File too large") as caught:
        run(job, limit_bytes=5_000)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, job.output)
    assert not Path(job.output).exists()
    assert run(job).events == len(LINES)


def test_a_killed_program_leaves_nothing_that_a_repetition_does_not_replace(tmp_path: Path) -> None:
    lines = [random.Random(1).randbytes(10_000).hex().encode() + b"\n"] * 1000
    job = job_of(tmp_path, PLAIN, NDJSON_GZ, lines)
    with subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(job.encoded())
        process.stdin.close()
        output = Path(job.output)
        until(lambda: output.exists() and output.stat().st_size, "the first bytes")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    left = output.stat().st_size
    finished = run(job)
    assert left < finished.bytes == output.stat().st_size
    assert finished.events == len(lines)


def test_the_program_dies_with_its_parent_and_heeds_no_stop_signal() -> None:
    reader, writer = os.pipe()
    starter = (
        "import subprocess, sys\n"
        "with subprocess.Popen(sys.argv[1:]) as process:\n"
        "    print(process.pid, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", starter, *COMMAND], stdin=reader, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        # It waits for its job, whose other end is open here.
        until(lambda: os.getpriority(os.PRIO_PROCESS, child) == NICENESS, "the program's start")
        ignored = re.findall(r"SigIgn:\s+(\w+)", Path(f"/proc/{child}/status").read_text())
        parent.kill()
    until(lambda: is_gone(child), "the program's end")
    assert all(int(ignored[0], 16) >> number - 1 & 1 for number in STOP_SIGNALS)
    os.close(reader)
    os.close(writer)


def is_gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_nothing_is_imported_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "orjson.py").write_text("raise SystemExit('imported')\n")
    job = job_of(tmp_path, ZST, NDJSON_ZST)
    answer = subprocess.check_output(
        COMMAND, input=job.encoded(), cwd=tmp_path, timeout=RUN_SECONDS
    )
    assert read_answer(answer).events == len(LINES)


def test_memory_does_not_grow_with_the_segment(tmp_path: Path) -> None:
    # A process counts the memory of the one that forked it: a small one here.
    starter = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    job = job_of(tmp_path, ZST, NDJSON_ZST, LINES * 160)
    output = subprocess.check_output(
        [sys.executable, "-c", starter, *COMMAND], input=job.encoded(), timeout=RUN_SECONDS
    )
    answer, peak_kb = output.splitlines()
    assert read_answer(answer).text_bytes > 90_000_000
    assert int(peak_kb) < 60 * 1024


def test_a_crash_is_no_answer() -> None:
    with pytest.raises(ValueError, match="empty document"):
        read_answer(b"")


def test_parquet_is_a_row_for_each_line(tmp_path: Path) -> None:
    finished = run(job_of(tmp_path, ZST, PARQUET))
    assert finished[2:] == (len(LINES), len(TEXT))
