"""Nobody may read what the relay says, and the encoding may lack a character: it goes on."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import psutil
import pytest
import requests

from pleiades.runtime import output
from pleiades.runtime.output import MAX_WAITING, Output
from pleiades.simulator.settings import SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.launcher import launched, with_full_pipe
from tests.harness.oracle import judge, more_than, published_count
from tests.harness.relay import COMMAND, Relay, replay_flags, upstream_flags
from tests.harness.waiting import until

Simulate = Callable[[SimulatorSettings], Simulator]
Flags = Callable[[Simulator], list[str]]

BUFFER_BYTES = 4096


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe with the smallest buffer."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, BUFFER_BYTES)
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError as error:
            assert error.errno == errno.EBADF


class Count:
    """Counts dropped lines."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, lines: int) -> None:
        self.total += lines


def read_until(reader: int, end: bytes) -> bytes:
    text = b""
    while not text.endswith(end):
        text += os.read(reader, 65536)
    return text


# ---- lines on their way ----


def test_a_reader_that_stands_still_costs_lines_which_are_counted_and_reported(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = pipe
    out, dropped = Output(writer), Count()
    written = 0
    # The thread takes some until the pipe is full; these lines come one after the other.
    while not out._dropped:
        out.write(f"line {written}\n")
        written += 1
    assert written > MAX_WAITING
    out.count_dropped(dropped)
    assert dropped.total == 1
    for _ in range(41):
        out.write("too much\n")
    assert dropped.total == 42
    kept = "".join(f"line {number}\n" for number in range(written - 1))
    assert read_until(reader, f"line {written - 2}\n".encode()) == kept.encode()
    out.write("again\n")
    assert read_until(reader, b"again\n") == b"again\n"
    out.flush()
    assert "42 log lines of this process were dropped" in caplog.text
    assert caplog.text.count("were dropped") == 1
    assert dropped.total == 42


def test_a_flush_does_not_wait_for_ever(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "FLUSH_SECONDS", 0.01)
    reader, writer = pipe
    out = Output(writer)
    out.write("x" * BUFFER_BYTES + "\n")
    out.flush()
    assert read_until(reader, b"\n") == b"x" * BUFFER_BYTES + b"\n"
    out.flush()


def test_what_is_soon_replaced_waits_behind_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    out = Output(writer)
    out.write("x" * BUFFER_BYTES + "\n")
    out.write("second\n")
    until(lambda: out._waiting.qsize() == 1, "the first line to be taken")
    out.draw("never seen")
    assert read_until(reader, b"second\n") == b"x" * BUFFER_BYTES + b"\nsecond\n"
    out.draw("seen")
    assert read_until(reader, b"seen") == b"seen"


def test_a_closed_pipe_costs_lines_only(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    out, dropped = Output(writer), Count()
    out.count_dropped(dropped)
    os.close(reader)
    out.write("lost\n")
    out.draw("not a line")
    out.flush()
    assert dropped.total == 1


def test_after_a_full_disk_a_line_does_not_continue_the_torn_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log"
    room = 8
    real = os.write

    def write(descriptor: int, text: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(descriptor, text[:room])
        room -= written
        return written

    with path.open("wb") as file:
        out, dropped = Output(file.fileno()), Count()
        out.count_dropped(dropped)
        monkeypatch.setattr("pleiades.runtime.output.os.write", write)
        for line in ("whole\n", "torn\n", "lost\n"):
            out.write(line)
        out.flush()
        room = 100
        out.write("next\n")
        out.flush()
    assert path.read_text() == "whole\nto\nnext\n"
    assert dropped.total == 2
    assert "2 log lines of this process were dropped" in caplog.text


def test_a_pipe_that_another_process_made_non_blocking_loses_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    out, dropped = Output(writer), Count()
    out.count_dropped(dropped)
    text = "x" * 3 * BUFFER_BYTES + "\n"
    out.write(text)
    assert read_until(reader, b"\n") == text.encode()
    assert dropped.total == 0


def test_signals_are_for_other_threads(pipe: tuple[int, int]) -> None:
    out = Output(pipe[1])
    out.write("x\n")
    assert out._thread
    status = Path(f"/proc/self/task/{out._thread.native_id}/status").read_text()
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    assert blocked >> (signal.SIGTERM - 1) & 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert threading.current_thread() is threading.main_thread()


# ---- the relay ----


def url_of(relay: Relay) -> str:
    """The address of /metrics; no log tells it here."""

    def port() -> int | None:
        found = psutil.Process(relay.process.pid).net_connections("tcp")
        return next((one.laddr[1] for one in found if one.status == psutil.CONN_LISTEN), None)

    return f"http://127.0.0.1:{until(port, 'a port')}"


def dropped_lines(url: str) -> float:
    page = requests.get(f"{url}/metrics", timeout=5).text
    found = re.search(r"^pleiades_log_lines_dropped_total (\S+)$", page, re.MULTILINE)
    assert found
    return float(found[1])


@pytest.mark.parametrize("behind", ["full pipe", "full disk"])
def test_a_log_that_nobody_reads_holds_nothing_up(
    simulate: Simulate, flags: Flags, folder: Path, tmp_path: Path, behind: str
) -> None:
    upstream = simulate(SimulatorSettings(rate=200))
    log = tmp_path / "log"
    before = with_full_pipe(2, log)
    if behind == "full disk":
        before = "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)"
    with Relay(*flags(upstream), "--log.format=json", command=launched(before)) as relay:
        relay.until(more_than(folder, 20), "events", 30)
        killed = relay.child("parser-0")
        killed.kill()
        relay.until(lambda: relay.child("parser-0").pid != killed.pid, "another parser", 30)
        relay.until(more_than(folder, published_count(folder) + 20), "new events", 30)
        url = url_of(relay)
        relay.until(lambda: requests.get(f"{url}/healthz", timeout=5).ok, "health", 30)
        if behind == "full disk":
            # The parent has written three; the reader and the publisher write at least one at a start.
            relay.until(lambda: dropped_lines(url) > 5, "lines of the parent and its children", 30)
        else:
            with log.open("rb") as reader:
                assert reader.readline() == b"x" * 4095 + b"\n"
                said: set[str] = set()
                while said != {"parent", "reader", "publisher"}:
                    said.add(orjson.loads(reader.readline())["process"])
        assert relay.stop() == 0
    verdict = judge(folder, upstream.journal(), upstream.started_ms - 60_000, finished=False)
    assert verdict.flawless, verdict


# ---- results ----

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
STRICT = {"PYTHONIOENCODING": "ascii:strict"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=os.environ | environment,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_check_prints_a_path_that_the_encoding_lacks(simulate: Simulate, tmp_path: Path) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    folder = tmp_path / "événements\U0001f30d"
    flags = [
        "check",
        *upstream_flags(upstream.url),
        "--file.enable",
        f"--file.publishDir={folder}",
        "--metricsPort=0",
    ]
    text = run(*flags, **ASCII)
    assert text.returncode == 0, text
    assert rb"\u00e9v\u00e9nements\ud83c\udf0d" in text.stdout
    json = run(*flags, "--log.format=json", **STRICT)
    assert json.returncode == 0, json
    assert json.stdout.isascii()
    assert str(folder) in orjson.loads(json.stdout.splitlines()[0])["text"]


def test_errors_and_help_are_printed_in_any_encoding() -> None:
    wrong = run("ingést", **STRICT)
    assert wrong.returncode == 2
    assert rb"ing\u00e9st" in wrong.stderr
    assert run("help", "simulate", **ASCII).stdout == run("help", "simulate").stdout


def test_a_replay_prints_its_summary_in_any_encoding_and_can_be_stopped_meanwhile(
    simulate: Simulate, tmp_path: Path
) -> None:
    upstream = simulate(SimulatorSettings(history_events=500, history_seconds=100))
    begin, end = upstream.started_ms - 60_000, upstream.started_ms - 30_000
    folder = tmp_path / "événements"
    flags = [
        *replay_flags(upstream.url, begin, end),
        "--file.enable",
        f"--file.publishDir={folder}",
    ]
    shown = run(*flags, **ASCII)
    assert shown.returncode == 0, shown.stderr
    assert rb"\u00e9v\u00e9nements" in shown.stdout
    assert b"Traceback" not in shown.stderr
    # The same again is complete at once, and waits for somebody to read the summary.
    summary = with_full_pipe(1, tmp_path / "summary")
    with Relay(*flags, "--restart", command=launched(summary)) as relay:
        relay.wait_for("stopped: ")
        assert relay.stop() == 5


FULL = Path("/dev/full")


@pytest.mark.parametrize(
    "arguments", [["help"], ["--version"], ["help", "ingest"], ["simulate", "--help"]]
)
def test_a_full_disk_behind_standard_output_is_one_sentence(arguments: list[str]) -> None:
    with FULL.open("wb") as full:
        ended = subprocess.run(
            [*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, check=False, timeout=30
        )
    assert ended.returncode == 1
    assert ended.stderr == b"pleiades: can't write to standard output: No space left on device\n"


@pytest.mark.parametrize("arguments", [["ingest", "--x"], ["no-command"]])
def test_a_full_disk_behind_standard_error_leaves_the_status(arguments: list[str]) -> None:
    with FULL.open("wb") as full:
        ended = subprocess.run([*COMMAND, *arguments], stderr=full, check=False, timeout=30)
    assert ended.returncode == 2
