"""From sealed to closed, with a crash at each step."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pleiades.runtime import faultpoints
from pleiades.runtime.metrics import Metrics
from pleiades.sinks.archive import closing, finish
from pleiades.sinks.archive.codecs import CODECS
from pleiades.sinks.archive.finish import Finished, Job
from pleiades.sinks.archive.layout import (
    FORMATS,
    NDJSON,
    NDJSON_GZ,
    NDJSON_ZST,
    PARQUET,
    segment_name,
)
from tests.harness.finisher import InlineFinisher
from tests.unit.sinks.archive.world import (
    HOUR_MS,
    NO_PAUSE,
    NOON_MS,
    Crash,
    World,
    checkpoint,
    event,
    publish,
    settle,
    text,
)


@pytest.fixture
def world(tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path / "archive", metrics, monkeypatch)
    yield made
    made.end()


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small segment is finished by the publisher, a large one by the finisher."""
    if request.param == "large":
        monkeypatch.setattr(closing, "SMALL_BYTES", 0)
    return str(request.param)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("form", [form for form in FORMATS if form != PARQUET])
def test_a_segment_is_closed(world: World, form: str, compact: bool) -> None:
    sink = world.opened(format=form, compact=compact)
    publish(sink, 1, 2)
    publish(sink, 3)
    assert world.closed_texts() == []
    world.clock_ms += HOUR_MS
    settle(sink)
    assert world.closed_texts() == [text(1, 2, 3)]
    (entry,) = world.entries()
    assert world.closed == [entry]
    path = world.folder / entry.name
    assert path.stat().st_size == entry.file_bytes
    assert (entry.events, entry.text_bytes, entry.lost) == (3, len(text(1, 2, 3)), 0)
    assert (entry.first_ms, entry.last_ms) == (NOON_MS + 1, NOON_MS + 3)
    assert world.raw_files() == []
    # Compressed as one frame, or the raw file itself.
    assert path.suffix.removeprefix(".") in (*CODECS, "ndjson")


STEPS = (
    faultpoints.APPENDED,
    faultpoints.SYNCED,
    faultpoints.LISTED,
    faultpoints.RENAMED,
)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_a_crash_at_each_step_is_answered_by_repeating_it(
    world: World, step: str, compact: bool, passes: int
) -> None:
    """The line is in the manifest once, and the file is there once."""
    publish(world.opened(compact=compact), 1, 2)
    world.clock_ms += HOUR_MS
    for _ in range(passes):
        world.crash_at = step
        with suppress(Crash):
            settle(world.opened(compact=compact))
    world.crash_at = ""
    settle(world.opened(compact=compact))
    assert step in world.passed
    assert world.closed_texts() == [text(1, 2)]
    assert [entry.sequence for entry in world.entries()] == [1]
    assert world.raw_files() == []


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_between_two_segments(world: World, step: str) -> None:
    """Several segments are named by one commit."""
    sink = world.opened(compact=False)
    for hour in range(3):
        sink.write([event(hour, NOON_MS + hour * HOUR_MS)])
        sink.commit(checkpoint(hour * HOUR_MS))
    world.clock_ms += HOUR_MS
    sink.poll()
    world.crash_at = step
    with suppress(Crash):
        settle(sink)
    world.crash_at = ""
    sink = world.opened(compact=False)
    settle(sink)
    assert world.closed_texts() == [text(0), text(1), text(2)]
    assert [entry.sequence for entry in world.entries()] == [1, 2, 3]
    assert world.raw_files() == []


def test_a_closed_segment_that_was_taken_away_does_not_come_back(world: World) -> None:
    sink = world.opened()
    publish(sink, 1)
    world.clock_ms += HOUR_MS
    world.crash_at = faultpoints.RENAMED
    with pytest.raises(Crash):
        settle(sink)
    (entry,) = world.entries()
    shutil.rmtree(world.folder / entry.name.partition("/")[0])
    settle(world.opened())
    assert world.closed_texts() == []
    assert world.entries() == [entry]
    assert world.raw_files() == []


def test_a_foreign_file_at_the_name_is_waited_for(world: World) -> None:
    sink = world.opened()
    publish(sink, 1)
    name = segment_name("mediawiki.recentchange", NOON_MS + 1, "00000001", NDJSON_ZST)
    foreign = world.folder / name
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"foreign")
    world.child.mend = lambda: foreign.rename(world.folder / "kept")
    world.clock_ms += HOUR_MS
    settle(sink)
    assert len(world.child.pauses) == 1
    assert (world.folder / "kept").read_bytes() == b"foreign"
    assert world.closed_texts() == [text(1)]
    assert [entry.name for entry in world.entries()] == [name]


class Full(InlineFinisher):
    """Finds the disk full at first."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = 2

    def take(self) -> Finished | None:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().take()


def test_a_full_disk_delays_closing_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(closing, "SMALL_BYTES", 0)
    monkeypatch.setattr(closing, "FINISH_BACKOFF", NO_PAUSE)
    world.finisher = Full
    sink = world.opened()
    publish(sink, 1)
    world.clock_ms += HOUR_MS
    publish(sink, 2)
    publish(sink, 3)
    assert "can't close a segment in" in caplog.text
    assert world.child.pauses == []
    settle(sink)
    settle(sink)
    assert world.closed_texts() == [text(1, 2)]
    assert sorted(world.lines()) == sorted(text(1, 2, 3).splitlines())


def test_a_small_segment_waits_for_room_too(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(closing, "FINISH_BACKOFF", NO_PAUSE)
    usual, failures = finish.finish, [1, 1]

    def finish_later(job: Job) -> Finished:
        if failures:
            failures.pop()
            raise OSError(errno.ENOSPC, "No space left on device")
        return usual(job)

    monkeypatch.setattr(closing, "finish", finish_later)
    sink = world.opened()
    publish(sink, 1)
    world.clock_ms += HOUR_MS
    publish(sink, 2)
    publish(sink, 3)
    # Once in a commit, which does not wait for it.
    assert caplog.text.count("can't close a segment in") == 1
    publish(sink, 4)
    publish(sink, 5)
    assert caplog.text.count("can't close a segment in") == 2
    assert world.closed_texts() == [text(1, 2)]
    assert sorted(world.lines()) == sorted(text(1, 2, 3, 4, 5).splitlines())


@pytest.mark.parametrize(("first", "then"), [(NDJSON_ZST, NDJSON_GZ), (NDJSON, NDJSON_ZST)])
def test_a_start_with_another_format_closes_in_the_new_one(
    world: World, first: str, then: str
) -> None:
    publish(world.opened(format=first), 1)
    sink = world.opened(format=then)
    settle(sink)
    (entry,) = world.entries()
    assert entry.name.endswith(f".{then}")
    assert world.closed_texts() == [text(1)]
    publish(sink, 2)
    assert sorted(world.lines()) == text(1, 2).splitlines()
