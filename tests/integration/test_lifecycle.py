"""Starts, stops, refusals, and the externally visible state."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path

import orjson
import psutil
import pytest
import requests

from pleiades import __version__
from pleiades.core.units import parse_iso_time_ms
from pleiades.simulator.settings import Cut, Disorder, Faults, SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.authority import authority
from tests.harness.oracle import judge, published_count
from tests.harness.prerequisites import IPV6
from tests.harness.relay import COMMAND, Relay
from tests.harness.waiting import until

Simulate = Callable[[SimulatorSettings], Simulator]
Flags = Callable[[Simulator], list[str]]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


# ---- exit statuses ----


def test_help_and_version() -> None:
    assert run("--version").stdout == f"pleiades {__version__}\n"
    assert run("help").returncode == 0
    assert run("help", "ingest").stdout == run("ingest", "--help").stdout
    for command in ("ingest", "simulate", "demo"):
        said = run("help", command)
        assert said.returncode == 0
        assert f"usage: pleiades {command}" in said.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "a command is missing"),
        (["injest"], "there is no command 'injest'"),
        (["help", "x"], "there is no command"),
        (["ingest"], "add --file.enable"),
        (["ingest", "--file.enable", "--kafka.enable"], "take away"),
        (["ingest", "--file.enable", "-q", "-v"], "exclude each other"),
        (["ingest", "--file.enabled"], "there is no flag"),
    ],
)
def test_usage_errors_exit_with_2_and_say_what_to_do(arguments: list[str], says: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


def test_refused_by_the_upstream_exits_with_3(simulate: Simulate, flags: Flags) -> None:
    upstream = simulate(SimulatorSettings())
    with Relay(*flags(upstream), "--upstream.stream=nosuch") as relay:
        assert relay.wait() == 3
    assert "status 400" in relay.log
    assert "Invalid streams: nosuch" in relay.log
    assert "Traceback" not in relay.log


def test_a_second_instance_exits_with_4_and_leaves_the_first_alone(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    with Relay(*flags(upstream)) as first:
        first.wait_ready()
        with Relay(*flags(upstream)) as second:
            assert second.wait() == 4
        assert "publishes into" in second.log
        before = published_count(folder)
        first.until(lambda: published_count(folder) > before, "new events", 30)
        assert first.stop() == 0


def test_the_same_command_twice_exits_with_4_too_and_not_for_the_port(
    simulate: Simulate, flags: Flags
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    with Relay(*flags(upstream)) as first:
        first.wait_ready()
        port = first.address.rsplit(":", 1)[1]
        with Relay(*flags(upstream), f"--metricsPort={port}") as second:
            assert second.wait() == 4
        assert "publishes into" in second.log
        assert first.stop() == 0


@pytest.mark.needs(IPV6)
def test_metrics_on_ipv6_too(simulate: Simulate, flags: Flags) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    with Relay(*flags(upstream), "--metricsHost=::1") as relay:
        match = relay.wait_for(r"metrics on (http://\[::1\]:\d+)/metrics")
        assert requests.get(match[1] + "/metrics", timeout=5).status_code == 200
        assert relay.stop() == 0


def test_an_unusable_directory_exits_with_1(simulate: Simulate, flags: Flags, folder: Path) -> None:
    folder.write_text("not a directory")
    upstream = simulate(SimulatorSettings())
    with Relay(*flags(upstream)) as relay:
        assert relay.wait() == 1
    assert "--file.publishDir" in relay.log
    assert "Traceback" not in relay.log


def test_a_taken_metrics_port_exits_with_1(simulate: Simulate, flags: Flags) -> None:
    upstream = simulate(SimulatorSettings())
    port = upstream.url.split(":")[2].split("/")[0]
    with Relay(*flags(upstream), f"--metricsPort={port}") as relay:
        assert relay.wait() == 1
    assert "can't serve metrics" in relay.log
    assert "Traceback" not in relay.log


# ---- stops ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_is_in_order_and_logs_the_last_position(
    simulate: Simulate, flags: Flags, folder: Path, number: signal.Signals
) -> None:
    upstream = simulate(SimulatorSettings(rate=300))
    with Relay(*flags(upstream)) as relay:
        relay.until(lambda: published_count(folder) > 100, "events", 30)
        children = relay.children()
        relay.signal(number)
        assert relay.wait(40) == 0
        assert not [child for child in children if child.is_running()]
    position = relay.wait_for(r"last position: (.*)")[1].split(", ")
    assert {entry.partition(" ")[0] for entry in position} <= {
        "eqiad.mediawiki.recentchange/0",
        "codfw.mediawiki.recentchange/0",
    }
    verdict = judge(folder, upstream.journal(), upstream.started_ms - 60_000, finished=False)
    assert verdict.flawless, verdict
    assert "WARNING" not in relay.log
    assert "ERROR" not in relay.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_signal_to_all_processes_stops_in_order(
    simulate: Simulate, flags: Flags, folder: Path, number: signal.Signals
) -> None:
    """A terminal's Ctrl-C and hangup, and the end of a service. timeout(1) sends two at once."""
    upstream = simulate(SimulatorSettings(rate=300))
    with Relay(*flags(upstream), command=("setsid", *COMMAND)) as relay:
        relay.until(lambda: published_count(folder) > 100, "events", 30)
        publisher = relay.child("publisher")
        publisher.suspend()
        relay.signal(signal.SIGTERM)
        os.killpg(relay.process.pid, number)
        relay.wait_for("stopping")
        publisher.resume()
        assert relay.wait(40) == 0
    assert "second signal" not in relay.log
    assert "Traceback" not in relay.log
    assert judge(folder, upstream.journal(), 0, finished=False).flawless


def test_a_second_signal_leaves_at_once(simulate: Simulate, flags: Flags, folder: Path) -> None:
    upstream = simulate(SimulatorSettings(rate=300))
    with Relay(*flags(upstream)) as relay:
        relay.until(lambda: published_count(folder) > 100, "events", 30)
        relay.child("publisher").suspend()
        relay.signal(signal.SIGTERM)

        def is_leaving() -> bool:
            if "second signal" in relay.log:
                return True
            relay.signal(signal.SIGTERM)
            return False

        # Not at once: that would be one.
        until(is_leaving, "a second signal to count")
        assert relay.wait() == 0
    assert "second signal" in relay.log
    assert "could not finish" not in relay.log


def test_a_stalled_destination_does_not_hold_up_a_stop(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=300, max_events=2000))
    with Relay(*flags(upstream)) as relay:
        relay.until(lambda: published_count(folder) > 100, "events", 30)
        relay.child("publisher").suspend()
        relay.signal(signal.SIGTERM)
        # The log shows that the parent kept its 9 s; this machine may take longer to report it.
        assert relay.wait(40) == 0
    assert "could not finish within 9 s" in relay.log
    with Relay(*flags(upstream)) as relay:
        relay.until(
            lambda: (
                judge(folder, upstream.journal(), upstream.started_ms - 60_000).flawless
                and upstream.stats().events_appended_total >= 2000
            ),
            "all events",
            60,
        )
        assert relay.stop() == 0


@pytest.mark.parametrize("stopped", ["", "publisher", "forkserver"])
def test_all_leave_within_two_seconds_when_the_parent_is_killed(
    simulate: Simulate, flags: Flags, stopped: str
) -> None:
    """Including stopped ones, the forkserver and the resource tracker; none prints anything."""
    upstream = simulate(SimulatorSettings(rate=100))
    with Relay(*flags(upstream), "--parsers=3") as relay:
        relay.wait_ready()
        family = psutil.Process(relay.process.pid).children(recursive=True)
        # Three kinds of stages, the forkserver and the resource tracker.
        assert len(family) == 7
        if stopped:
            next(one for one in family if one.cmdline()[0] == f"pleiades: {stopped}").suspend()
        relay.signal(signal.SIGKILL)
        relay.wait()
        _, alive = psutil.wait_procs(family, timeout=2)
        assert not alive
    assert "resource_tracker" not in relay.log
    assert "WARNING" not in relay.log


def test_children_go_on_while_the_parent_is_stopped(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    """Even with a position of 40 topic-partitions: no heartbeat waits for its reader."""
    upstream = simulate(
        SimulatorSettings(rate=200, history_events=1000, partitions=20, second_share=0.5)
    )
    with Relay(*flags(upstream)) as relay:
        reached = "pleiades_upstream_position_seconds"
        relay.until(
            lambda: sum(name == reached for name, _ in relay.metrics()) == 40, "all of them", 60
        )
        parent = psutil.Process(relay.process.pid)
        parent.suspend()
        # Each commit sends a heartbeat of 8 KB; these are more than any socket holds.
        goal = commits(folder) + 30
        relay.until(lambda: commits(folder) > goal, "commits without the parent", 60)
        parent.resume()
        assert relay.stop() == 0
    assert "WARNING" not in relay.log
    position = relay.wait_for(r"last position: (.*)")[1].split(", ")
    assert len(position) == 40
    newest = max(parse_iso_time_ms(entry.split()[1]) for entry in position) + 1
    assert str(newest) in stored(folder), "the last commit did not reach the parent"


def commits(folder: Path) -> int:
    """The number of the last commit in the checkpoint."""
    number: int = orjson.loads(stored(folder))["committed"]["number"]
    return number


def stored(folder: Path) -> str:
    """The checkpoint; a file that ends with `.new` is to replace it."""
    (found,) = (folder / ".pleiades").glob("checkpoint-*[!w]")
    return found.read_text()


def test_a_stop_at_any_moment_of_the_start_is_clean(simulate: Simulate, flags: Flags) -> None:
    """From before the first log line to just connected: no traceback, no error, status 0."""
    upstream = simulate(SimulatorSettings(rate=100))
    moments = (
        "imported",
        "forkserver",
        "metrics on",
        "publisher",
        "reader",
        "starting at|resuming",
    )
    numbers = cycle((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    for moment, number in zip(moments, numbers, strict=False):
        with Relay(*flags(upstream), command=("setsid", *COMMAND)) as relay:
            if moment == "imported":
                relay.until(partial(_catches, relay.process.pid), "a handler", 10)
            elif moment in ("forkserver", "publisher", "reader"):
                # The forkserver and the resource tracker come first, then the publisher.
                wanted = {"forkserver": 2, "publisher": 3, "reader": 5}[moment]
                relay.until(partial(_has_children, relay.process.pid, wanted), "children", 10)
            else:
                relay.wait_for(moment)
            os.killpg(relay.process.pid, number)
            assert relay.wait(12) == 0, f"{moment}: {relay.log}"
        assert "Traceback" not in relay.log, f"{moment}: {relay.log}"
        assert "ERROR" not in relay.log, f"{moment}: {relay.log}"


def _catches(pid: int) -> bool:
    """True if a process has a handler for SIGTERM, and so for both signals (proc(5), SigCgt)."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
    return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _has_children(pid: int, count: int) -> bool:
    return len(psutil.Process(pid).children(recursive=True)) >= count


# ---- where to start ----


def test_no_resume_ignores_the_stored_position_also_after_a_crash(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=200, disorder=Disorder(0, 0, 0, 0)))
    with Relay(*flags(upstream)) as relay:
        relay.until(lambda: published_count(folder) > 100, "events", 30)
        assert relay.stop() == 0
    seen = {path.name for path in folder.glob("[0-9]*/*.json")}
    pause = upstream.stats().events_appended_total + 600
    upstream.wait_until(lambda stats: stats.events_appended_total > pause, 30)
    now = [flag for flag in flags(upstream) if not flag.startswith("--since")]
    begun_ms = time.time_ns() // 1_000_000
    with Relay(*now, "--no-resume", "--upstream.overlap=500ms") as relay:
        relay.wait_ready()
        relay.child("parser-0").kill()
        relay.until(lambda: published_count(folder) > len(seen) + 200, "new events", 30)
        assert relay.stop() == 0
    new = [path.name for path in folder.glob("[0-9]*/*.json") if path.name not in seen]
    oldest = min(
        entry.timestamp for entry in upstream.journal() if any(entry.identity in n for n in new)
    )
    assert oldest >= begun_ms - 1000, "it continued from the stored position"


def test_since_asks_for_history(simulate: Simulate, flags: Flags, folder: Path) -> None:
    upstream = simulate(
        SimulatorSettings(history_events=2000, history_seconds=200, disorder=Disorder(0, 0, 0, 0))
    )
    since_ms = upstream.started_ms - 100_000
    others = [flag for flag in flags(upstream) if not flag.startswith("--since")]
    with Relay(*others, f"--since={since_ms}") as relay:
        relay.until(
            lambda: judge(folder, upstream.journal(), since_ms).flawless, "the last 100 s", 30
        )
        assert relay.stop() == 0
    assert 900 < published_count(folder) < 1100


# ---- the upstream in trouble ----


@pytest.mark.parametrize(
    "faults",
    [
        Faults(cut_every_seconds=1, error_event_rate=0.05, gzip=True),
        Faults(
            cut_every_seconds=1,
            stall_rate=0.02,
            stall_seconds=2.0,
            chunk_bytes=7,
            cuts=(Cut.CLEAN,),
        ),
    ],
    ids=["gzip, error events", "7 bytes, stalls"],
)
def test_trouble_upstream_is_ridden_out(
    simulate: Simulate, flags: Flags, folder: Path, faults: Faults
) -> None:
    upstream = simulate(SimulatorSettings(rate=400, max_events=1500, faults=faults))
    with Relay(*flags(upstream), "--upstream.idleTimeout=1s") as relay:
        upstream.wait_until(lambda stats: stats.events_appended_total >= 1500, 30)
        # The remaining events must arrive before the next cut, even on a slow machine.
        upstream.set_faults(hang_rate=0.0, silence_rate=0.0, error_rate=0.0, cut_every_seconds=0)
        journal = upstream.journal()
        count = sum(not entry.canary for entry in journal)
        relay.until(lambda: published_count(folder) >= count, "all events", 60)
        assert relay.stop() == 0
    verdict = judge(folder, journal, upstream.started_ms - 60_000)
    assert verdict.flawless, f"{verdict}\n{relay.log}"
    assert "Traceback" not in relay.log


def test_too_many_connections_are_waited_out_as_long_as_the_upstream_says(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    upstream = simulate(
        SimulatorSettings(
            rate=100, faults=Faults(max_connections=1, retry_after_seconds=2, cut_every_seconds=0)
        )
    )
    holder = requests.get(
        f"{upstream.url}/recentchange",
        headers={"User-Agent": "test (https://example.org)"},
        stream=True,
        timeout=10,
        verify=str(authority().ca),
    )
    with Relay(*flags(upstream)) as relay:
        pause = relay.wait_for(r"answered 429: .*trying again in ([0-9.]+) s")
        assert float(pause[1]) >= 2
        assert relay.status("/readyz") == 503
        assert relay.status("/healthz") == 200
        holder.close()
        relay.wait_ready()
        relay.until(lambda: published_count(folder) > 50, "events", 30)
        assert relay.metric("pleiades_recv_errors_total", type="throttled") >= 1
        assert relay.stop() == 0


def test_an_idle_stream_is_reconnected_quietly_and_wakes(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    upstream = simulate(SimulatorSettings())
    with Relay(*flags(upstream), "--upstream.idleTimeout=500ms") as relay:
        upstream.wait_until(lambda stats: stats.connections_total >= 4, 30)
        relay.wait_for("the upstream sends no events")
        assert relay.log.count("the upstream sends no events") == 1
        upstream.append(10)
        events = sum(not entry.canary for entry in upstream.journal())
        relay.until(lambda: published_count(folder) == events, "the first events", 30)
        assert relay.metric("pleiades_upstream_reconnects_total", reason="idle") >= 3
        first_events = relay.metric("pleiades_upstream_reconnects_total", reason="past_end")
        assert relay.stop() == 0
    assert "WARNING" not in relay.log
    assert relay.log.count("connected to") == 1 + first_events


def test_an_upstream_that_is_away_at_first_is_waited_for(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    upstream = simulate(SimulatorSettings())
    upstream.stop()
    with Relay(*flags(upstream)) as relay:
        relay.wait_for("can't reach")
        upstream.start()
        upstream.append(5)
        events = sum(not entry.canary for entry in upstream.journal())
        relay.until(lambda: published_count(folder) == events, "events", 30)
        assert relay.stop() == 0


def test_expired_history_is_a_warning_and_counted(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    first = simulate(SimulatorSettings(rate=200, disorder=Disorder(0, 0, 0, 0)))
    with Relay(*flags(first)) as relay:
        relay.until(lambda: published_count(folder) > 100, "events", 30)
        assert relay.stop() == 0
    pause = first.stats().events_appended_total + 600
    first.wait_until(lambda stats: stats.events_appended_total > pause, 30)
    # A service whose history begins after the position.
    second = simulate(SimulatorSettings(rate=200, disorder=Disorder(0, 0, 0, 0)))
    with Relay(*flags(second), "--upstream.overlap=200ms") as relay:
        relay.wait_for("the upstream no longer has the events between")
        relay.until(lambda: relay.metric("pleiades_upstream_gaps_total") >= 1, "the gap", 10)
        assert relay.stop() == 0


# ---- what is seen ----


def test_json_logs_are_one_object_a_line(simulate: Simulate, flags: Flags, folder: Path) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    with Relay(*flags(upstream), "--log.format=json", "-v") as relay:
        relay.until(lambda: published_count(folder) > 20, "events", 30)
        assert relay.stop() == 0
    records = [orjson.loads(line) for line in relay.lines]
    assert {record["process"] for record in records} >= {"parent", "reader", "publisher"}
    assert all(record.keys() >= {"time", "level", "process", "message"} for record in records)


def test_quiet_says_nothing_where_nothing_is_wrong(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=100, faults=Faults(cut_every_seconds=0.5)))
    with Relay(*flags(upstream), "-q") as relay:
        relay.until(lambda: published_count(folder) > 100, "events", 30)
        assert relay.stop() == 0
    assert relay.lines == []


def test_a_terminal_shows_one_live_line(simulate: Simulate, flags: Flags) -> None:
    upstream = simulate(SimulatorSettings(rate=200))
    ours, theirs = pty.openpty()
    # A narrow terminal, such as that of the user running the tests, would cut off the line.
    wide = os.environ | {"COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen([*COMMAND, *flags(upstream)], stderr=theirs, stdout=theirs, env=wide)
    os.close(theirs)
    shown = b""
    try:
        while b"restarts" not in shown or b"published" not in shown:
            shown += os.read(ours, 4096)
            assert len(shown) < 100_000
        process.terminate()
        # An unread terminal blocks its writer.
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:
                break
            shown += part
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    line = re.search(
        r"([\d,]+) events/s · ([\d,]+) published · lag ([\d.]+) s · 0 restarts", shown.decode()
    )
    assert line, shown
    assert "last position" in shown.decode()


def test_the_position_is_on_metrics_with_everything_the_readme_names(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=200, second_share=0.5))
    with Relay(*flags(upstream)) as relay:
        relay.until(lambda: published_count(folder) > 100, "events", 30)
        relay.wait_ready()
        # The last gauge; they are set a moment after the commit whose files are visible.
        relay.until(lambda: relay.metric("pleiades_window_identities") > 0, "gauges", 30)
        topic = {"topic": "eqiad.mediawiki.recentchange", "partition": "0"}
        key = ("pleiades_upstream_position_seconds", tuple(sorted(topic.items())))
        relay.until(lambda: key in relay.metrics(), "an event of this topic", 30)
        samples = relay.metrics()
        assert relay.stop() == 0
    names = {name for name, _ in samples}
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    documented = set(re.findall(r"^\| `(pleiades_\w+)", readme, re.MULTILINE))
    assert documented, "the README has no table of metrics"
    standard = {"process_cpu_seconds_total", "process_resident_memory_bytes", "python_info"}
    assert names > standard
    exported = {
        name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        for name in names
        if name.startswith("pleiades_")
    }
    # A gauge is exposed once it is set, a broker's series once there is a broker.
    only_of_kafka = {name for name in documented - exported if name.startswith("pleiades_kafka_")}
    assert documented == exported | only_of_kafka
    assert len(only_of_kafka) == 7, "tests/integration/test_kafka.py checks them"
    assert abs(samples[key] - time.time()) < 60


def test_the_metrics_folder_is_private_and_removed_at_the_end_and_after_a_kill(
    simulate: Simulate, flags: Flags, tmp_path: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary)}
    with Relay(*flags(upstream), environment=environment) as relay:
        relay.wait_ready()
        (folder,) = temporary.glob("pleiades-metrics-*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        relay.signal(signal.SIGKILL)
        relay.wait()
    with Relay(*flags(upstream), environment=environment) as relay:
        relay.wait_ready()
        assert len(list(temporary.glob("pleiades-metrics-*"))) == 1
        assert relay.stop() == 0
    assert not list(temporary.iterdir())


def test_environment_and_file_configure_a_real_run(simulate: Simulate, tmp_path: Path) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    config = tmp_path / "pleiades.toml"
    config.write_text(
        f'metricsPort = 0\nsince = "-1m"\n[file]\nenable = true\n[upstream]\nurl = "{upstream.url}"\n'
        f'ca = "{authority().ca}"\n'
    )
    environment = {"PLEIADES_FILE_PUBLISH_DIR": "from-environment"}
    with Relay("ingest", f"--config={config}", cwd=tmp_path, environment=environment) as relay:
        target = tmp_path / "from-environment"
        relay.until(lambda: target.is_dir() and published_count(target) > 20, "events", 30)
        assert relay.stop() == 0


def test_python_dash_m_and_the_script_are_the_same() -> None:
    script = shutil.which("pleiades", path=str(Path(sys.executable).parent))
    assert script
    said = subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout
    assert said == run("--version").stdout
