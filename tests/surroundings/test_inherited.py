"""Nothing that a launcher leaves in the process changes the relay's behaviour, or one sentence says why.

These states survive execve(2): signal settings, the umask, limits, open files, children, the working
directory, the environment.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import pleiades
from pleiades.runtime.errors import Fatal
from pleiades.runtime.startup import allow_descriptors
from pleiades.simulator.settings import SimulatorSettings
from pleiades.simulator.simulator import Simulator
from tests.harness.launcher import launched
from tests.harness.oracle import judge, more_than, published_count
from tests.harness.prerequisites import PID_NAMESPACE
from tests.harness.relay import COMMAND, Relay

Simulate = Callable[[SimulatorSettings], Simulator]
Flags = Callable[[Simulator], list[str]]

ROOT = Path(__file__).parents[2]
SCRIPT = (str(Path(sys.executable).parent / "pleiades"),)


def survives_a_kill_and_stops(relay: Relay, folder: Path) -> None:
    relay.until(lambda: published_count(folder) > 20, "events", 30)
    killed = relay.child("parser-0")
    killed.kill()
    relay.until(lambda: relay.child("parser-0").pid != killed.pid, "another parser", 30)
    relay.until(more_than(folder, published_count(folder) + 20), "new events", 30)
    assert relay.stop() == 0, relay.log
    # If standard error is closed, there is no log.
    assert not relay.log or "parser-0 was killed by signal 9" in relay.log


def survives_the_end_of_the_forkserver(relay: Relay, folder: Path) -> None:
    family = psutil.Process(relay.process.pid).children()
    alive = [one for one in family if one.status() != psutil.STATUS_ZOMBIE]
    next(one for one in alive if one.cmdline()[:1] == ["pleiades: forkserver"]).kill()
    relay.wait_for("died with the forkserver")
    relay.wait_for("starting all processes again")
    relay.until(more_than(folder, published_count(folder) + 20), "new events", 30)


# ---- signals, limits, files, children, environment ----

MUCH = """\
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
for _ in range(100):
    os.set_inheritable(os.open("/dev/null", os.O_RDONLY), True)
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
child = os.fork() or os._exit(7)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
drop_overrides_for_good()
os.umask(0o777)
"""
PYTHONS = {
    "PYTHONOPTIMIZE": "2",
    "PYTHONSTARTUP": "/nonexistent",
    "PYTHONIOENCODING": "ascii:strict",
    "PYTHONMALLOC": "debug",
    "PYTHONWARNINGS": "error",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "LC_ALL": "C",
    "TMPDIR": "/nonexistent",
}


def test_much_at_once_changes_nothing(simulate: Simulate, flags: Flags, folder: Path) -> None:
    """Signals ignored and blocked, a umask, open files, a dead child, orphans, Python's variables."""
    upstream = simulate(SimulatorSettings(rate=200))
    with Relay(*flags(upstream), command=launched(MUCH), environment=PYTHONS) as relay:
        relay.wait_ready()
        survives_the_end_of_the_forkserver(relay, folder)
        family = psutil.Process(relay.process.pid).children(recursive=True)
        zombies = [one for one in family if one.status() == psutil.STATUS_ZOMBIE]
        assert len(zombies) == 1, "one was there before; the forkserver's children went to init"
        survives_a_kill_and_stops(relay, folder)
    assert "Traceback" not in relay.log
    verdict = judge(folder, upstream.journal(), upstream.started_ms - 60_000, finished=False)
    assert verdict.flawless, verdict


def test_nohup_means_that_a_hangup_stops_nothing(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    ignoring = launched("signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    with Relay(*flags(upstream), command=ignoring) as relay:
        relay.wait_ready()
        relay.signal(signal.SIGHUP)
        relay.until(more_than(folder, published_count(folder) + 20), "new events", 30)
        assert relay.stop() == 0
    assert "SIGHUP" not in relay.log


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))", "may open 20 files.*ulimit -n"),
        ("resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))", "too large.*ulimit -f"),
        ("resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))", "No usable temporary directory"),
        pytest.param(
            'mount -t tmpfs -o size=100k none "$TMPDIR"',
            "No space left.*TMPDIR",
            marks=pytest.mark.needs(PID_NAMESPACE),
        ),
    ],
)
def test_what_is_not_enough_is_one_sentence(tmp_path: Path, before: str, says: str) -> None:
    """Too few open files, too small files, no folder for temporary files, or a full one."""
    command = launched(before)
    if "mount" in before:
        command = ("unshare", "--mount", "sh", "-c", f'{before}; exec "$@"', "sh", *COMMAND)
    ended = subprocess.run(
        [*command, "ingest", "--file.enable", "--upstream.url=http://127.0.0.1:9", "-q"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ended.returncode == 1, ended
    (line,) = ended.stderr.splitlines()
    assert re.search(says, line)


def test_a_low_limit_of_open_files_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [20, 4096]
    monkeypatch.setattr("resource.getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr("resource.setrlimit", lambda _, new: limits.__setitem__(slice(2), new))
    allow_descriptors(80)
    assert limits == [1024, 4096]
    limits[:] = [2000, 4096]
    allow_descriptors(80)
    assert limits == [2000, 4096]
    limits[:] = [20, 100]
    allow_descriptors(80)
    assert limits == [100, 100]
    with pytest.raises(Fatal, match="100 files"):
        allow_descriptors(101)


@pytest.mark.needs(PID_NAMESPACE)
def test_works_as_pid_1_without_shared_memory_and_buries_orphans(
    simulate: Simulate, flags: Flags, folder: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    unshare = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    # The orphan's parent exits at once; PID 1 inherits the orphan and must reap it.
    orphan = "(sleep 0.2 & exec true); "
    unwritable = "mount -t tmpfs -o ro none /dev/shm; "
    shell = ("sh", "-c", unwritable + orphan + 'exec "$@"', "sh")
    with Relay(*flags(upstream), command=(*unshare, *shell, *COMMAND)) as relay:
        relay.until(lambda: published_count(folder) > 50, "events", 30)
        (parent,) = psutil.Process(relay.process.pid).children()
        relay.until(
            lambda: all(
                child.status() != psutil.STATUS_ZOMBIE for child in parent.children(recursive=True)
            ),
            "the orphan to be reaped",
            10,
        )
        family = parent.children(recursive=True)
        reader = next(one for one in family if relay.role(one) == "reader")
        reader.kill()
        relay.wait_for("starting all processes again")
        before = published_count(folder)
        relay.until(lambda: published_count(folder) > before, "new events", 30)
        parent.send_signal(signal.SIGTERM)
        assert relay.wait(40) == 0
    assert judge(folder, upstream.journal(), 0, finished=False).flawless


# ---- closed standard streams, and the working directory ----


@pytest.mark.parametrize(
    ("closed", "gone"),
    [
        ("os.closerange(0, 3)", "before"),
        ("os.close(0)", "meanwhile"),
        ("os.close(2)", "not to be entered"),
    ],
)
def test_standard_streams_may_be_closed_and_the_working_directory_gone(
    simulate: Simulate, flags: Flags, folder: Path, tmp_path: Path, closed: str, gone: str
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    here = tmp_path / "here"
    here.mkdir()
    before = {
        "before": f"os.rmdir({str(here)!r})",
        "meanwhile": "",
        "not to be entered": f"os.chmod({str(here)!r}, 0o600); drop_overrides_for_good()",
    }[gone]
    try:
        with Relay(*flags(upstream), command=launched(f"{before}\n{closed}"), cwd=here) as relay:
            relay.until(lambda: published_count(folder) > 20, "events", 30)
            if gone == "meanwhile":
                here.rmdir()
            survives_a_kill_and_stops(relay, folder)
    finally:
        if here.exists():
            here.chmod(0o700)
    assert judge(folder, upstream.journal(), 0, finished=False).flawless


def test_relative_paths_are_meant_from_where_the_command_was_given(
    simulate: Simulate, flags: Flags, tmp_path: Path
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    relative = [flag for flag in flags(upstream) if "publishDir" not in flag]
    folder = tmp_path / "below" / "events"
    folder.parent.mkdir()
    with Relay(*relative, "--file.publishDir=below/events", cwd=tmp_path) as relay:
        survives_a_kill_and_stops(relay, folder)


# ---- modules in the working directory ----

OF_OTHERS = ("confluent_kafka", "msgspec", "orjson", "prometheus_client", "requests", "urllib3")


def set_traps(folder: Path) -> Path:
    """Make modules that hide the real ones; returns the file that each of them writes to."""
    sprung = folder / "imported"
    for name in sys.stdlib_module_names | {*OF_OTHERS, "sitecustomize", "usercustomize"}:
        trap = f"open({str(sprung)!r}, 'a').write({name + chr(10)!r})\nraise SystemExit(9)\n"
        (folder / f"{name}.py").write_text(trap)
    return sprung


@pytest.mark.parametrize("command", [COMMAND, SCRIPT])
def test_no_module_is_imported_from_the_working_directory(
    simulate: Simulate, flags: Flags, folder: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    upstream = simulate(SimulatorSettings(rate=100))
    sprung = set_traps(tmp_path)
    with Relay(*flags(upstream), command=command, cwd=tmp_path) as relay:
        survives_a_kill_and_stops(relay, folder)
    assert not sprung.exists(), sprung.read_text()


def test_the_health_check_of_the_container_imports_nothing_from_the_volume(tmp_path: Path) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    environment = dict(re.findall(r"^ENV (\w+)=(\S+)$", dockerfile, re.MULTILINE))
    check = re.search(r"^HEALTHCHECK.*?CMD (\[.*?\])$", dockerfile, re.MULTILINE | re.DOTALL)
    assert check
    program, *arguments = ast.literal_eval(check[1])
    assert program == "python3"
    sprung = set_traps(tmp_path)
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment | {"PLEIADES_METRICS_PORT": "1"},
        stderr=subprocess.PIPE,
        check=False,
        timeout=30,
    )
    assert not sprung.exists(), sprung.read_text()
    assert b"Connection refused" in ended.stderr


def test_all_processes_import_the_package_in_the_working_directory(
    simulate: Simulate, flags: Flags, folder: Path, tmp_path: Path
) -> None:
    """Another version may be installed. The working directory may hold other modules."""
    upstream = simulate(SimulatorSettings(rate=100))
    checkout, installed, imported = (tmp_path / name for name in ("checkout", "site", "imported"))
    package = Path(pleiades.__file__).parent
    shutil.copytree(package, checkout / "pleiades", ignore=shutil.ignore_patterns("__pycache__"))
    trap = f"open({str(imported)!r}, 'a').write(__file__)\n"
    for module in (installed / "pleiades" / "__init__.py", checkout / "signal.py"):
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(trap)
    environment = {"PYTHONPATH": str(installed)}
    with Relay(*flags(upstream), cwd=checkout, environment=environment) as relay:
        relay.wait_ready()
        survives_the_end_of_the_forkserver(relay, folder)
        survives_a_kill_and_stops(relay, folder)
    assert not imported.exists(), imported.read_text()
