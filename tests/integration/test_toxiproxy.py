"""Each toxic affects a plain connection as named, and not at all once removed."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.harness.prerequisites import NOT_THERE, SCRIPTS, TOXIPROXY, require
from tests.harness.toxiproxy import (
    Bandwidth,
    Direction,
    Latency,
    LimitData,
    Proxy,
    ResetPeer,
    Slicer,
    SlowClose,
    Timeout,
    Toxic,
    Toxiproxy,
)
from tests.harness.waiting import until

LIMIT_SECONDS = 30
ONE_WAY: tuple[Direction, Direction] = ("upstream", "downstream")


@pytest.fixture(scope="module")
def program() -> str:
    (path,) = require(TOXIPROXY)
    return path


@pytest.fixture
def toxiproxy(program: str, tmp_path: Path) -> Iterator[Toxiproxy]:
    assert program
    with Toxiproxy(tmp_path) as server:
        yield server


class Ends(NamedTuple):
    """A connection through the proxy, seen from both sides."""

    client: socket.socket
    server: socket.socket

    def towards(self, direction: Direction) -> tuple[socket.socket, socket.socket]:
        """The sending and the receiving end."""
        return (self.client, self.server) if direction == "upstream" else (self.server, self.client)


class Line:
    """A server, and the proxy before it."""

    def __init__(self, toxiproxy: Toxiproxy) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(LIMIT_SECONDS)
        self.proxy: Proxy = toxiproxy.proxy(f"127.0.0.1:{self._listener.getsockname()[1]}")

    @contextmanager
    def connected(self) -> Iterator[Ends]:
        with ExitStack() as stack:
            client = socket.create_connection(("127.0.0.1", self.proxy.port), LIMIT_SECONDS)
            stack.enter_context(client)
            server = stack.enter_context(self._listener.accept()[0])
            server.settimeout(LIMIT_SECONDS)
            yield Ends(client, server)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def line(toxiproxy: Toxiproxy) -> Iterator[Line]:
    line = Line(toxiproxy)
    yield line
    line.close()


def received(connection: socket.socket, count: int) -> bytes:
    """That many bytes, or all bytes before the end."""
    data = b""
    while len(data) < count and (part := connection.recv(count - len(data))):
        data += part
    return data


def passes(ends: Ends) -> None:
    for direction in ONE_WAY:
        sender, receiver = ends.towards(direction)
        sender.sendall(b"hello")
        assert received(receiver, 5) == b"hello"


def test_without_a_toxic_all_passes_and_the_end_too(line: Line) -> None:
    with line.connected() as ends:
        passes(ends)
        ends.server.close()
        assert ends.client.recv(1) == b""


@pytest.mark.parametrize("direction", ONE_WAY)
def test_reset_peer(line: Line, direction: Direction) -> None:
    line.proxy.add(ResetPeer(), direction)
    with line.connected() as ends:
        sender, _ = ends.towards(direction)
        sender.sendall(b"hello")
        with pytest.raises(ConnectionResetError):
            ends.client.recv(1)
    line.proxy.remove(ResetPeer(), direction)
    with line.connected() as ends:
        passes(ends)


@pytest.mark.parametrize("direction", ONE_WAY)
def test_timeout_swallows_data_and_leaves_the_connection(line: Line, direction: Direction) -> None:
    with line.connected() as ends:
        passes(ends)
        with line.proxy.spoiled(Timeout(), direction):
            sender, receiver = ends.towards(direction)
            sender.sendall(b"lost")
            # The other direction still works.
            receiver.sendall(b"hello")
            assert received(sender, 5) == b"hello"
            receiver.setblocking(False)
            with pytest.raises(BlockingIOError):
                receiver.recv(1)
            receiver.settimeout(LIMIT_SECONDS)
        assert ends.client.recv(1) == b""
    with line.connected() as ends:
        passes(ends)


def test_timeout_can_end_the_connection(line: Line) -> None:
    line.proxy.add(Timeout(close_after_seconds=0.2))
    with line.connected() as ends:
        ends.server.sendall(b"lost")
        assert ends.client.recv(1) == b""


def test_slow_close(line: Line) -> None:
    line.proxy.add(SlowClose(0.5))
    with line.connected() as ends:
        passes(ends)
        closed = time.monotonic()
        ends.server.shutdown(socket.SHUT_RDWR)
        assert ends.client.recv(1) == b""
    assert time.monotonic() - closed >= 0.5


@pytest.mark.parametrize("direction", ONE_WAY)
def test_latency(line: Line, direction: Direction) -> None:
    latency = Latency(0.5, jitter_seconds=0.2)
    with line.connected() as ends:
        passes(ends)
        with line.proxy.spoiled(latency, direction):
            sender, receiver = ends.towards(direction)
            sent = time.monotonic()
            sender.sendall(b"hello")
            assert received(receiver, 5) == b"hello"
            assert time.monotonic() - sent >= 0.3
        passes(ends)


@pytest.mark.parametrize("direction", ONE_WAY)
def test_bandwidth(line: Line, direction: Direction) -> None:
    with line.connected() as ends, line.proxy.spoiled(Bandwidth(100), direction):
        sender, receiver = ends.towards(direction)
        data = bytes(60_000)
        sent = time.monotonic()
        sender.sendall(data)
        assert received(receiver, len(data)) == data
        # The last tenth of a second's worth may be let through at once.
        assert time.monotonic() - sent >= 0.4


@pytest.mark.parametrize("direction", ONE_WAY)
def test_limit_data(line: Line, direction: Direction) -> None:
    line.proxy.add(LimitData(1000), direction)
    for _ in range(2):
        with line.connected() as ends:
            sender, receiver = ends.towards(direction)
            sender.sendall(bytes(600))
            assert received(receiver, 600) == bytes(600)
            sender.sendall(bytes(600))
            assert received(receiver, 600) == bytes(400)


@pytest.mark.parametrize("direction", ONE_WAY)
def test_slicer(line: Line, direction: Direction) -> None:
    with line.connected() as ends:
        passes(ends)
        with line.proxy.spoiled(Slicer(100, delay_seconds=0.02), direction):
            sender, receiver = ends.towards(direction)
            sent = time.monotonic()
            sender.sendall(bytes(range(250)) * 4)
            first = receiver.recv(1000)
            assert len(first) < 1000
            assert first + received(receiver, 1000 - len(first)) == bytes(range(250)) * 4
            # Ten pieces, nine pauses.
            assert time.monotonic() - sent >= 0.15


def test_toxics_of_both_directions_and_of_several_kinds_at_once(line: Line) -> None:
    toxics: list[Toxic] = [Latency(0.1), Slicer(2)]
    with ExitStack() as stack:
        for toxic in toxics:
            stack.enter_context(line.proxy.spoiled(toxic))
        with line.connected() as ends:
            sent = time.monotonic()
            passes(ends)
            assert time.monotonic() - sent >= 0.2


def test_disabled_it_cuts_and_refuses_enabled_it_lets_in(line: Line) -> None:
    with line.connected() as ends:
        passes(ends)
        line.proxy.disable()
        assert ends.client.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", line.proxy.port), LIMIT_SECONDS)
        line.proxy.enable()
    with line.connected() as ends:
        passes(ends)
        line.proxy.cut()
        assert ends.client.recv(1) == b""


OWNER = """
import signal, sys
from pathlib import Path
from tests.harness.toxiproxy import Toxiproxy
with Toxiproxy(Path(sys.argv[1])) as toxiproxy:
    print(toxiproxy.proxy("127.0.0.1:1").port, flush=True)
    signal.pause()
"""


def test_it_does_not_outlive_a_killed_test_process(program: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path], cwd=SCRIPTS.parent, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        port = int(owner.stdout.readline())
        family = psutil.Process(owner.pid).children(recursive=True)
        assert program in [process.cmdline()[0] for process in family]
        owner.kill()

    def refused() -> bool:
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", port)) != 0

    until(refused, "the end of the proxy")
    until(lambda: not any(process.is_running() for process in family), "the end of all")


@pytest.mark.parametrize("script", ["toxiproxy", "kustomize"])
def test_without_go_it_says_what_to_do(script: str, tmp_path: Path) -> None:
    """The cache is empty, and PATH has everything but Go."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "mkdir", "flock", "env"):
        found = next(
            path for path in (Path("/usr/bin") / tool, Path("/bin") / tool) if path.exists()
        )
        (tools / tool).symlink_to(found)
    done = subprocess.run(
        [SCRIPTS / script],
        env={"PATH": str(tools), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (NOT_THERE, "")
    assert "apt-get install golang-go" in done.stderr
