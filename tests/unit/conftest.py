"""The context of a stage, without processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Generic, TypeVar

import pytest
from prometheus_client.values import close_all_multiprocess_files

from pleiades.config.settings import Settings
from pleiades.runtime.child import ChildContext
from pleiades.runtime.errors import Stopped
from pleiades.runtime.metric_store import FOLDER_VARIABLE
from pleiades.runtime.metrics import Metrics
from tests.harness.settings import settings_of as relay_settings_of

T = TypeVar("T")


class FakeChildContext(ChildContext):
    """Discards heartbeats; records pauses instead of waiting, and is stopped at one of them."""

    def __init__(self, stop_at_pause: int) -> None:
        _, nowhere = Pipe(duplex=False)
        super().__init__(nowhere)
        self.pauses: list[float] = []
        self._stop_at_pause = stop_at_pause

    def beat(self, at_once: bool = False) -> None:
        pass

    def farewell(self) -> None:
        pass

    def run_in_thread(self, call: Callable[[], T], announce: Callable[[float], None]) -> T:
        return call()

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) == self._stop_at_pause:
            self.stop_requested = True
            raise Stopped("enough")


class FakeChannel(Generic[T]):
    """A channel within one process: keeps the items put, returns prepared ones."""

    def __init__(self, *items: T) -> None:
        self.name = "fake-0"
        self.items = deque(items)

    def put(self, item: T, alive: Callable[[], None]) -> None:
        alive()
        self.items.append(item)

    def get(self, timeout_seconds: float) -> T | None:
        return self.items.popleft() if self.items else None

    def depth(self) -> int:
        return len(self.items)

    untaken = depth


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    yield Metrics("test", str(tmp_path))
    close_all_multiprocess_files()  # type: ignore[no-untyped-call]


@pytest.fixture
def settings_of() -> Callable[..., Settings]:
    def settings(*flags: str) -> Settings:
        return relay_settings_of("--file.enable", *flags)

    return settings
