"""Edge cases of the parent; tests with the real command cover the usual paths."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pleiades.config.settings import Settings
from pleiades.core.restart import Ended, RestartPolicy
from pleiades.runtime import forkserver, process, supervisor
from pleiades.runtime.child import ChildContext
from pleiades.runtime.metrics import Metrics
from pleiades.runtime.process import EXIT_UNKNOWN, ChildProcess, ProcessSpec
from pleiades.runtime.supervisor import Supervisor
from tests.harness.settings import settings_of
from tests.harness.waiting import until


def settings() -> Settings:
    flags = ["--file.enable", "--metricsPort=0", "--metricsHost=127.0.0.1", "-q"]
    return settings_of(*flags)


decided = RestartPolicy.pause_seconds


def no_pause(policy: RestartPolicy, ended: Ended, jitter: float) -> float | None:
    """The policy's decision, without its pause."""
    pause_seconds = decided(policy, ended, jitter)
    return pause_seconds and 0.0


def test_a_process_that_can_not_be_started_is_a_failed_generation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """EAGAIN, ENOMEM, EMFILE: retried with pauses, and finally given up."""
    started: list[str] = []

    def stages(_resume: bool, _details: object) -> list[ProcessSpec]:
        return [ProcessSpec("reader", "never", ()), ProcessSpec("publisher", "never", ())]

    def failing(_context: object, _settings: object, _folder: str, spec: ProcessSpec) -> object:
        started.append(spec.name)
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(supervisor, "ChildProcess", failing)
    monkeypatch.setattr(forkserver, "launch", lambda _modules, _folder: None)
    monkeypatch.setattr(RestartPolicy, "pause_seconds", no_pause)

    def no_signals(self: Supervisor) -> Callable[[], object]:
        self._wake.setblocking(False)
        return lambda: None

    monkeypatch.setattr(Supervisor, "_watch_signals", no_signals)
    monkeypatch.chdir("/")
    assert Supervisor(settings(), stages).run() == 1
    assert started == ["publisher"] * 6
    assert "can't start publisher: [Errno 11]" in caplog.text
    assert "gave up: publisher ended 6 times in a row" in caplog.text


# ---- the forkserver ----


def run(child: ChildContext, _metrics: Metrics) -> None:
    while True:
        child.beat(at_once=True)
        threading.Event().wait(0.01)


SPEC = ProcessSpec("reader", __name__, ())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], ChildProcess]]:
    """Starts a child that sends heartbeats; all children have ended after the test."""
    context = forkserver.launch([], str(tmp_path))
    children: list[ChildProcess] = []

    def started() -> ChildProcess:
        child = ChildProcess(context, settings(), str(tmp_path), SPEC)
        children.append(child)
        until(lambda: heard(child), "the first beat")
        return child

    yield started
    for child in children:
        child.send(signal.SIGKILL)
        until(lambda: child.exit_status is not None, "its end")  # noqa: B023  # waited for here
        child.close()
    forkserver.kill()


def heard(child: ChildProcess) -> bool:
    since = child.silent_seconds()
    child.listen()
    return child.silent_seconds() < since


def test_a_killed_child_is_told_from_a_lost_one(start: Callable[[], ChildProcess]) -> None:
    child = start()
    child.send(signal.SIGKILL)
    until(lambda: child.exit_status is not None, "its end")
    assert child.exit_status == -signal.SIGKILL
    assert child.fatal_status is None
    child.send(signal.SIGKILL)


def test_children_end_with_a_killed_forkserver_and_the_next_start_has_a_new_one(
    start: Callable[[], ChildProcess],
) -> None:
    child, killed = start(), forkserver.pid()
    assert killed
    os.kill(killed, signal.SIGKILL)
    until(lambda: child.exit_status is not None, "the end of the child")
    assert child.exit_status == EXIT_UNKNOWN
    assert child.fatal_status is None, "it has said nothing"
    start()
    assert forkserver.pid() != killed


def test_a_child_counts_as_alive_until_it_is_dead_whoever_died_before(
    start: Callable[[], ChildProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hold the destination, for example while blocked in the kernel, beyond any signal."""
    monkeypatch.setattr(process, "REPORT_SECONDS", 0.0)
    child = start()
    hang()
    until(lambda: heard(child), "another beat")
    assert child.exit_status is None


def test_a_hung_forkserver_is_replaced(
    start: Callable[[], ChildProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "REPORT_SECONDS", 0.2)
    child = start()
    hang()
    child.send(signal.SIGKILL)
    until(lambda: child.exit_status is not None, "its end")
    assert child.exit_status == EXIT_UNKNOWN
    start()
    hang()
    with monkeypatch.context() as impatient:
        impatient.setattr(forkserver, "START_SECONDS", 0.2)
        with pytest.raises(TimeoutError, match="has not answered"):
            start()
    start()


def hang() -> None:
    server = forkserver.pid()
    assert server
    os.kill(server, signal.SIGSTOP)


def test_a_child_that_is_closed_leaves_no_descriptor(tmp_path: Path) -> None:
    context = forkserver.launch([], str(tmp_path))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with closing(ChildProcess(context, settings(), str(tmp_path), SPEC)) as child:
        child.send(signal.SIGKILL)
        until(lambda: child.exit_status is not None, "its end")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    forkserver.kill()
