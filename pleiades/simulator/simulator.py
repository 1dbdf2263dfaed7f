"""The local upstream in a thread of this process, for tests and demonstrations."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from pleiades.simulator.journal import JournalEntry
from pleiades.simulator.server import STREAM_PATH, Server, Stats, monotonic_since
from pleiades.simulator.settings import Cut, Faults, SimulatorSettings
from pleiades.simulator.upstream import LocalUpstream

log = logging.getLogger(__name__)

T = TypeVar("T")


class Simulator:
    """A local upstream. `start` and `stop` may follow each other as often as one likes: the log, the
    clock and the port stay, as when the real service is down for a while.

    Args:
        settings: what it is like.

    Raises:
        UsageError: a file of the settings can't be read or written.
    """

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        self.settings = settings or SimulatorSettings()
        self._started_ms = time.time_ns() // 1_000_000
        self._now = monotonic_since(time.monotonic())
        self._upstream = LocalUpstream(self.settings, self._started_ms)
        self._upstream.append_history()
        self._stats = Stats(events_appended_total=self._upstream.log.appended_total)
        self._changed = threading.Condition()
        self._port = self.settings.port
        self._faults = self.settings.faults
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Simulator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """What a client puts a slash and its streams behind: `http://127.0.0.1:port/v2/stream`."""
        return f"{self.settings.scheme}://{self.settings.host}:{self._port}{STREAM_PATH}"

    @property
    def started_ms(self) -> int:
        """The start, ms since 1970; the history is dated before it."""
        return self._started_ms

    def start(self) -> str:
        """Serve; returns `url`. Without effect where it serves already.

        Raises:
            OSError: the address can't be used.
        """
        if self._thread is None:
            ready: Future[int] = Future()
            self._thread = threading.Thread(
                target=self._run, args=(ready,), name="simulator", daemon=True
            )
            self._thread.start()
            try:
                self._port = ready.result()
            except BaseException:
                self._thread.join()
                self._thread = None
                raise
        return self.url

    def stop(self) -> None:
        """Close all connections and stop listening. Without effect where it is not serving."""
        if self._thread is None:
            return
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None

    def _run(self, ready: Future[int]) -> None:
        asyncio.run(self._serve(ready))

    async def _serve(self, ready: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        server = Server(self._upstream, self._now, self._notify, self._stats)
        server.faults = self._faults
        try:
            port = await server.start(self.settings.host, self._port)
        except OSError as error:
            ready.set_exception(error)
            return
        self._server = server
        ready.set_result(port)
        try:
            await self._stopping.wait()
        finally:
            self._server = None
            await server.stop()
            self._loop = None

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _call(self, function: Callable[[Server], T]) -> T:
        """Run something in the server's thread and wait for it."""
        loop, server = self._loop, self._server
        if loop is None or server is None:
            raise RuntimeError("the simulator is not serving")

        async def call() -> T:
            return function(server)

        return asyncio.run_coroutine_threadsafe(call(), loop).result()

    def append(self, count: int) -> int:
        """Append the next events now, whatever the pace; returns how many there were."""

        def append(server: Server) -> int:
            appended = self._upstream.append_next(count, self._now())
            server.grown()
            return appended

        return self._call(append)

    def cut_all(self, cut: Cut = Cut.RESET) -> int:
        """Cut every open stream; returns how many."""
        return self._call(lambda server: server.cut_all(cut))

    def set_faults(self, **changes: object) -> Faults:
        """Change fields of `Faults` for the requests to come; returns all of them."""
        self._faults = replace(self._faults, **changes)  # type: ignore[arg-type]
        if self._server is not None:
            self._server.faults = self._faults
        return self._faults

    def journal(self) -> list[JournalEntry]:
        """Everything appended so far, in that order."""
        return self._upstream.journal.entries()

    def stats(self) -> Stats:
        """A copy of the counters."""
        return replace(self._stats)

    @property
    def connections_total(self) -> int:
        """Streams opened so far."""
        return self._stats.connections_total

    def wait_until(
        self, condition: Callable[[Stats], bool], timeout_seconds: float = 10.0
    ) -> Stats:
        """Wait until the counters fulfil a condition; returns a copy of them.

        Raises:
            TimeoutError: they did not in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self._stats), timeout_seconds):
                raise TimeoutError(f"still {self._stats} after {timeout_seconds} s")
            return self.stats()
