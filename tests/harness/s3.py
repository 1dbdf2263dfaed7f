"""A real S3 server: `scripts/s3`. A bucket is a folder, and an object a file in it."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.harness.broker import free_port
from tests.harness.kept import end_kept, start_kept
from tests.harness.prerequisites import S3, SCRIPTS, require
from tests.harness.waiting import until

ASK_SECONDS = 5


class S3Server:
    """The server of one folder, at one port; it never outlives this process.

    Args:
        folder: for the objects and the log.
    """

    def __init__(self, folder: Path) -> None:
        require(S3)
        self._folder = folder
        self.port = free_port(1)
        self._keeper: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns when it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [str(SCRIPTS / "s3"), "run", "--dir", str(self._folder), "--port", str(self.port)]
        keeper = start_kept(command, self._folder / "server.log")
        self._keeper = keeper
        until(lambda: keeper.poll() is not None or self._answers(), "the S3 server to answer")
        assert keeper.poll() is None, (self._folder / "server.log").read_text()

    def stop(self) -> None:
        """Kill it: connections are refused until it is started again."""
        if self._keeper is not None:
            end_kept(self._keeper)
            self._keeper = None

    def freeze(self) -> None:
        """Connections are made, and nothing answers."""
        os.kill(self._server(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        os.kill(self._server(), signal.SIGCONT)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a client needs."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
            "AWS_ACCESS_KEY_ID": "pleiades",
            "AWS_SECRET_ACCESS_KEY": (self._folder / "secret").read_text(),
        }

    def bucket(self) -> Path:
        """Make a bucket of a name that no other test uses; returns its folder."""
        folder = self._folder / "data" / f"b-{uuid.uuid4()}"
        folder.mkdir()
        return folder

    def _answers(self) -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{self.port}/health", timeout=ASK_SECONDS).ok
        except requests.ConnectionError:
            return False

    def _server(self) -> int:
        assert self._keeper is not None
        children = Path(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children").read_text()
        return int(children.split()[0])


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server for the tests of this worker; none may disturb it."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_s3(tmp_path: Path) -> Iterator[S3Server]:
    """A server that this test may stop and start."""
    server = S3Server(tmp_path / "s3")
    server.start()
    yield server
    server.stop()
