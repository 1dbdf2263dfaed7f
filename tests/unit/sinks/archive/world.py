"""An archive in one process, with a clock and a disk that tests control."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pleiades.core.backoff import Backoff
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import Event
from pleiades.core.fingerprint import fingerprint
from pleiades.core.sse_id import TopicPartition
from pleiades.core.units import iso_time
from pleiades.runtime import faultpoints
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.archive.destination import ArchiveDestination, Options
from pleiades.sinks.archive.finisher import Finisher
from pleiades.sinks.archive.manifest import Entry, decode_entry
from pleiades.sinks.archive.sink import ArchiveSink
from pleiades.sinks.retry import Retry
from tests.harness import archived
from tests.harness.finisher import InlineFinisher
from tests.unit.conftest import FakeChildContext

SOURCE = ("eqiad.mediawiki.recentchange", 0)
OTHER_SOURCE = ("codfw.mediawiki.page-create", 3)
HOUR_MS = 3_600_000
NOON_MS = 1_769_860_800_000
NO_PAUSE = Backoff(0.0, 0.0)
BEGIN = Checkpoint({}, NOON_MS, 0)


class Crash(BaseException):
    """The process has died."""


class Pauses(FakeChildContext):
    """Repairs the disk in a pause."""

    def __init__(self) -> None:
        super().__init__(0)
        self.mend: Callable[[], object] = lambda: None

    def pause(self, seconds: float) -> None:
        super().pause(seconds)
        assert len(self.pauses) < 20
        self.mend()


class World:
    """An archive, and the sinks that publish into it one after another."""

    def __init__(self, folder: Path, metrics: Metrics, monkeypatch: Any) -> None:
        self.folder = folder
        self.metrics = metrics
        self.child = Pauses()
        self.clock_ms = NOON_MS + 1000 * HOUR_MS
        self.crash_at = ""
        self.passed: list[str] = []
        self.closed: list[Entry] = []
        self.finisher: Callable[[], Finisher] = InlineFinisher
        self._sinks: list[ArchiveSink] = []
        monkeypatch.setattr(faultpoints, "passing", self._passing)

    def _passing(self, point: str) -> None:
        self.passed.append(point)
        if point == self.crash_at:
            self.crash_at = ""
            raise Crash(point)

    def destination(self, name: str = "recentchange", **settings: Any) -> ArchiveDestination:
        return ArchiveDestination(name, self.folder, **settings)

    def sink(
        self, name: str = "recentchange", is_replay: bool = False, **settings: Any
    ) -> ArchiveSink:
        """The sink of a new process; those before it are gone, as after a crash."""
        if not is_replay:
            self.end()
        archive = self.destination(name, **settings)
        retry = Retry(self.child, self.metrics.archive.errors, self.folder, "--archive.dir")
        options = Options(
            500_000, is_replay=is_replay, observe=lambda _raw, closed: self.closed.extend(closed)
        )
        made = archive.sink(retry, self.finisher(), options, lambda: self.clock_ms)
        self._sinks.append(made)
        return made

    def opened(self, **settings: Any) -> ArchiveSink:
        """An open sink, as the publisher opens it."""
        made = self.sink(**settings)
        if made.open(resume=True).checkpoint is None:
            made.commit(BEGIN)
        return made

    def end(self) -> None:
        """End all processes."""
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    # ---- what is there ----

    @property
    def own(self) -> Path:
        return self.folder / ".pleiades"

    def raw_files(self) -> list[str]:
        return sorted(path.name for path in (self.own / "segments").iterdir())

    def raw_file(self) -> Path:
        (path,) = (self.own / "segments").iterdir()
        return path

    def entries(self, manifest: str = "manifest.ndjson") -> list[Entry]:
        path = self.folder / manifest
        return list(map(decode_entry, path.read_bytes().splitlines())) if path.exists() else []

    def closed_texts(self) -> list[bytes]:
        return [archived.text_of(path) for path in archived.closed(self.folder)]

    def lines(self) -> list[bytes]:
        return archived.lines(self.folder)


def event(number: int, at_ms: int | None = None, source: TopicPartition = SOURCE) -> Event:
    at_ms = NOON_MS + number if at_ms is None else at_ms
    identity = f"00000000-0000-4000-8000-{number:012}"
    data = b'{"meta":{"id":"%s"}}' % identity.encode()
    return Event(identity, source, at_ms + 1, iso_time(at_ms), b"[]", data)


def data(*numbers: int) -> list[bytes]:
    return [event(number).data for number in numbers]


def text(*numbers: int) -> bytes:
    return b"".join(line + b"\n" for line in data(*numbers))


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint({SOURCE: NOON_MS + number + 1}, NOON_MS, NOON_MS + 5)


def publish(sink: ArchiveSink, *numbers: int) -> None:
    """Publish events in one commit."""
    sink.write([event(number) for number in numbers])
    sink.commit(checkpoint(max(numbers)))


def settle(sink: ArchiveSink) -> None:
    """Let sealed segments be closed."""
    for _ in range(4):
        sink.poll()


def known(sink: ArchiveSink, resume: bool = True) -> tuple[Checkpoint | None, set[int]]:
    """Open a sink; returns the position, and which of the first 100 events it knows."""
    opened = sink.open(resume)
    found = {entry.fingerprint for entry in opened.window}
    return opened.checkpoint, {n for n in range(100) if fingerprint(event(n).identity) in found}
