"""The parent's odd corners; the usual ways are tested on the real command."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.context import SpawnContext

import pytest

from pleiades.config.settings import Settings
from pleiades.runtime import supervisor
from pleiades.runtime.stage import StageSpec
from pleiades.runtime.supervisor import Supervisor
from tests.harness.settings import settings_of


def settings() -> Settings:
    flags = ["--file.enable", "--metricsPort=0", "--metricsHost=127.0.0.1", "-q"]
    return settings_of(*flags)


def never(*_: object) -> None:
    raise AssertionError("no child should run")


def test_a_process_that_can_not_be_started_is_a_failed_generation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """EAGAIN, ENOMEM, EMFILE: tried again with pauses, and given up in the end."""
    started = []

    def stages(_context: SpawnContext, _resume: bool, _details: object) -> list[StageSpec]:
        return [StageSpec("reader", never, ()), StageSpec("publisher", never, ())]

    def failing(_context: object, spec: StageSpec, _settings: object) -> object:
        started.append(spec.name)
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(supervisor, "Running", failing)
    monkeypatch.setattr(Supervisor, "_rest", lambda _self, _seconds: False)

    def no_signals(self: Supervisor) -> Callable[[], object]:
        self._wake.setblocking(False)
        return lambda: None

    monkeypatch.setattr(Supervisor, "_watch_signals", no_signals)
    assert Supervisor(settings(), stages).run() == 1
    assert started == ["reader"] * 6
    assert "can't start reader" in caplog.text
    assert "gave up: reader ended 6 times in a row" in caplog.text
