"""Programs and privileges that some tests need and the relay does not.

A test that needs a missing one is skipped, and the end of the run lists what was not tested and what to
install. With the environment variable CI=true, a missing one fails the test instead.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
SCRIPT_SECONDS = 300
"""The first call of a script installs or builds the program."""
PROBE_SECONDS = 30
NOT_THERE = 3
"""The exit status of a script that finds neither its program nor the means to install it."""
NODE_VERSION = 18
FREEZER = Path("/sys/fs/cgroup/freezer")


class NotThere(Exception):
    """A prerequisite is missing; the message says what was looked for."""


@dataclass(frozen=True)
class Prerequisite:
    """A program or privilege that some tests need."""

    name: str
    purpose: str
    """What remains untested without it."""
    remedy: str
    """What to install, or how to run the tests."""
    find: Callable[[], list[str]]
    """Returns the paths of its programs, if it has any. Raises NotThere."""


def require(prerequisite: Prerequisite) -> list[str]:
    """Skip the test, or the row of the fault matrix, if the prerequisite is missing.

    Returns:
        The paths of its programs, if it has any.

    Raises:
        pytest.skip.Exception: it is missing.
        AssertionError: it is missing, and CI=true.
    """
    found = _look_for(prerequisite)
    if isinstance(found, NotThere):
        reason = f"needs {prerequisite.name}: {found}"
        assert os.environ.get("CI") != "true", f"{reason}. CI=true allows no skip"
        pytest.skip(reason)
    return found


def is_there(prerequisite: Prerequisite) -> bool:
    """True if `require` would return."""
    return not isinstance(_look_for(prerequisite), NotThere)


@cache
def _look_for(prerequisite: Prerequisite) -> list[str] | NotThere:
    try:
        return prerequisite.find()
    except NotThere as reason:
        return reason


def not_tested(reasons: Iterable[str], unit: str) -> Iterator[str]:
    """Return the lines at the end of a run: what was skipped, and what to install.

    Args:
        reasons: why each test was skipped, one entry per test.
        unit: the counted unit, in the singular.
    """
    counts = Counter(reasons)
    for prerequisite in ALL:
        of_this = [reason for reason in counts if reason.startswith(f"needs {prerequisite.name}: ")]
        if of_this:
            count = sum(counts.pop(reason) for reason in of_this)
            yield f"missing: {prerequisite.name} ({_counted(count, unit)})"
            yield f"    not tested: {prerequisite.purpose}"
            yield f"    to test it: {prerequisite.remedy}"
    for reason, count in counts.items():
        yield f"other: {reason} ({_counted(count, unit)})"


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


# ---- how each is found ----


def _script(name: str, *arguments: str) -> list[str]:
    """The paths that a script prints, one a line."""
    done = subprocess.run(
        [SCRIPTS / name, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SCRIPT_SECONDS,
        check=False,
    )
    if done.returncode == NOT_THERE:
        raise NotThere(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def _on_path(*names: str) -> list[str]:
    found = [shutil.which(name) for name in names]
    if None in found:
        raise NotThere(f"{names[found.index(None)]} is not on the PATH")
    return [path for path in found if path]


def _compiler() -> list[str]:
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        raise NotThere("neither cc nor gcc is on the PATH")
    # Debian has separate packages for the compiler and the headers.
    _run(found, "-fsyntax-only", "-include", "dlfcn.h", "-x", "c", "/dev/null")
    return [found]


def _node() -> list[str]:
    programs = _on_path("node", "npm")
    version = _run(programs[0], "--version")
    major = re.match(r"v(\d+)", version)
    if not major or int(major[1]) < NODE_VERSION:
        raise NotThere(f"{programs[0]} is version {version.strip()}")
    return programs


def _mount() -> list[str]:
    # In its own namespace any user could mount, but the tests do not use one.
    if os.geteuid() != 0:
        raise NotThere("this user is not root")
    with tempfile.TemporaryDirectory() as folder:
        _run("mount", "-t", "tmpfs", "-o", "size=4096", "tmpfs", folder)
        _run("umount", "--lazy", folder)
    return []


def _pid_namespace() -> list[str]:
    _run("unshare", "--pid", "--fork", "true")
    return []


def _freezer() -> list[str]:
    group = FREEZER / f"pleiades-{uuid.uuid4()}"
    try:
        group.mkdir()
        group.rmdir()
    except OSError as error:
        raise NotThere(str(error)) from None
    return []


def _ipv6() -> list[str]:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        raise NotThere(str(error)) from None
    return []


def _run(*command: str) -> str:
    """Return the output of a command; raises NotThere if it fails or does not exist."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
    except OSError as error:
        raise NotThere(str(error)) from None
    except subprocess.CalledProcessError as error:
        raise NotThere(error.stderr.strip() or f"{command[0]} failed") from None
    return done.stdout


# ---- all of them, in the order of the block ----

KAFKA = Prerequisite(
    name="Java 17 and Maven",
    purpose="everything that publishes into a real Kafka",
    remedy="apt-get install openjdk-17-jdk-headless maven",
    find=partial(_script, "kafka", "prepare"),
)
NODE = Prerequisite(
    name=f"Node {NODE_VERSION} and npm",
    purpose="the relay against the server of the real EventStreams",
    remedy="apt-get install nodejs npm",
    find=_node,
)
TOXIPROXY = Prerequisite(
    name="Go",
    purpose="slow, torn and silent network connections, by Toxiproxy",
    remedy="apt-get install golang-go",
    find=partial(_script, "toxiproxy"),
)
S3 = Prerequisite(
    name="Go 1.21, which fetches the Go that it needs",
    purpose="the archive in a real object storage",
    remedy="install Go from https://go.dev/dl; Debian 12's is too old",
    find=partial(_script, "s3", "prepare"),
)
KUSTOMIZE = Prerequisite(
    name="Kustomize or Go",
    purpose="the Kubernetes manifests in deploy/",
    remedy="apt-get install golang-go",
    find=partial(_script, "kustomize"),
)
PROMETHEUS = Prerequisite(
    name="Prometheus and promtool",
    purpose="alerting rules, recording rules and dashboard against a real Prometheus",
    remedy="apt-get install prometheus",
    find=partial(_script, "prometheus"),
)
COMPILER = Prerequisite(
    name="a C compiler",
    purpose="a clock that is set during the run, a disk that does not answer",
    remedy="apt-get install gcc libc6-dev",
    find=_compiler,
)
SYSTEMD = Prerequisite(
    name="systemd-analyze",
    purpose="the systemd unit in deploy/",
    remedy="apt-get install systemd",
    find=partial(_on_path, "systemd-analyze"),
)
MOUNT = Prerequisite(
    name="the right to mount",
    purpose="disks that are full, read-only or unmounted",
    remedy="run as root, in a container with CAP_SYS_ADMIN",
    find=_mount,
)
PID_NAMESPACE = Prerequisite(
    name="the right to make a PID namespace",
    purpose="the relay as PID 1",
    remedy="run as root, in a container with CAP_SYS_ADMIN",
    find=_pid_namespace,
)
FREEZE = Prerequisite(
    name="the freezer of cgroup v1",
    purpose="a process that SIGKILL does not end",
    remedy="run as root, with the cgroup v1 freezer mounted at /sys/fs/cgroup/freezer",
    find=_freezer,
)
OPENSSL = Prerequisite(
    name="openssl",
    purpose="a folder of certificate authorities",
    remedy="apt-get install openssl",
    find=partial(_on_path, "openssl"),
)
SETPRIV = Prerequisite(
    name="setpriv or another user than root",
    purpose="a directory without permission to write",
    remedy="apt-get install util-linux",
    find=partial(_on_path, "setpriv"),
)
IPV6 = Prerequisite(
    name="IPv6",
    purpose="metrics on an IPv6 address",
    remedy="enable IPv6 on the loopback interface",
    find=_ipv6,
)

ALL = (
    KAFKA,
    NODE,
    TOXIPROXY,
    S3,
    KUSTOMIZE,
    PROMETHEUS,
    COMPILER,
    SYSTEMD,
    MOUNT,
    PID_NAMESPACE,
    FREEZE,
    OPENSSL,
    SETPRIV,
    IPV6,
)
