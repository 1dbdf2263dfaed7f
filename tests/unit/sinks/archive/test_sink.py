"""The archive's sink after damage, crashes, new starts and changed settings."""

from __future__ import annotations

import base64
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from pleiades.core.checkpoint import Checkpoint
from pleiades.core.event import Event
from pleiades.runtime import faultpoints
from pleiades.runtime.errors import DestinationHeld, Fatal
from pleiades.runtime.metrics import Metrics
from pleiades.sinks import disk, journal
from pleiades.sinks.archive import closing, naming
from pleiades.sinks.archive import sink as sinks
from pleiades.sinks.archive.destination import Options
from pleiades.sinks.archive.manifest import MANIFEST
from tests.harness import archived
from tests.unit.sinks.archive.world import (
    BEGIN,
    HOUR_MS,
    NO_PAUSE,
    NOON_MS,
    OTHER_SOURCE,
    SOURCE,
    Crash,
    World,
    checkpoint,
    data,
    event,
    known,
    publish,
    settle,
    text,
)

REPLAY = "replay-1"
REPLAY_MANIFEST = f"manifest-{REPLAY}.ndjson"


@pytest.fixture
def world(tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path / "archive", metrics, monkeypatch)
    yield made
    made.end()


def lost_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


# ---- damage of a raw file ----


def test_a_raw_file_removed_while_running(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What it held is missing and named; what is written later is not."""
    sink = world.opened()
    publish(sink, 1, 2)
    world.raw_file().unlink()
    publish(sink, 3)
    (line,) = lost_lines(caplog)
    assert "the file of an open segment was removed: 2 events of mediawiki.recentchange" in line
    assert "from 2026-01-31T12:00:00.001Z to 2026-01-31T12:00:00.002Z" in line
    assert world.lines() == data(3)
    position, seen = known(world.sink())
    assert position == checkpoint(3)
    assert seen == {1, 2, 3}
    world.clock_ms += HOUR_MS
    settle(world.opened())
    (entry,) = world.entries()
    # The gap shows: the segment begins behind the events that are gone.
    assert (entry.events, entry.before) == (1, {SOURCE: NOON_MS + 3})


def test_a_raw_file_removed_before_a_start(world: World, caplog: pytest.LogCaptureFixture) -> None:
    publish(world.opened(), 1, 2)
    world.end()
    world.raw_file().unlink()
    sink = world.opened()
    (line,) = lost_lines(caplog)
    assert "the file of an open segment is missing: 2 events" in line
    publish(sink, 3)
    assert world.lines() == data(3)
    world.clock_ms += HOUR_MS
    settle(sink)
    # The gap shows: the segment begins behind the events that are gone.
    assert [entry.before for entry in world.entries()] == [{SOURCE: NOON_MS + 3}]
    # It is said once.
    world.opened()
    assert len(lost_lines(caplog)) == 1


@pytest.mark.parametrize("form", ["ndjson.zst", "ndjson.gz", "ndjson"])
def test_a_cut_raw_file_keeps_its_whole_lines(
    world: World, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    sink = world.opened(format=form)
    publish(sink, 1, 2)
    whole = world.raw_file().stat().st_size
    publish(sink, 3, 4)
    world.end()
    with world.raw_file().open("r+b") as file:
        file.truncate(whole + 20)
    sink = world.opened(format=form)
    publish(sink, 5)
    settle(sink)
    (entry,) = world.entries()
    assert (entry.events, entry.lost) == (2, 2)
    assert entry.after == {SOURCE: NOON_MS + 5}
    assert world.lines() == data(1, 2, 5)
    world.clock_ms += HOUR_MS
    settle(sink)
    assert world.entries()[1].before == entry.after
    cut, missing = lost_lines(caplog)
    assert "a segment was cut" in cut
    assert (
        f"2 events of mediawiki.recentchange are missing from the segment {entry.name}" in missing
    )


def test_changed_bytes_of_a_raw_file_are_found(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    sink = world.opened()
    publish(sink, 1, 2)
    whole = world.raw_file().stat().st_size
    publish(sink, 3)
    with world.raw_file().open("r+b") as file:
        file.seek(whole + 12)
        file.write(b"\xff\xff\xff")
    world.clock_ms += HOUR_MS
    for _ in range(3):
        settle(sink)
    (entry,) = world.entries()
    assert (entry.events, entry.lost) == (2, 1)
    assert world.closed_texts() == [text(1, 2)]
    damaged, missing = lost_lines(caplog)
    assert "a segment was damaged before it was closed" in damaged
    assert "1 events of mediawiki.recentchange are missing" in missing


def test_nothing_is_left_of_a_segment(world: World, caplog: pytest.LogCaptureFixture) -> None:
    publish(world.opened(), 1)
    world.end()
    with world.raw_file().open("r+b") as file:
        file.truncate(3)
    sink = world.opened()
    publish(sink, 2)
    settle(sink)
    cut, missing = lost_lines(caplog)
    assert "a segment was cut" in cut
    assert "nothing of it is left: 1 events of mediawiki.recentchange" in missing
    sink = world.opened()
    assert world.raw_files() == ["recentchange.2"]
    world.clock_ms += HOUR_MS
    settle(sink)
    # The gap shows: no segment ends there.
    assert [entry.before for entry in world.entries()] == [{SOURCE: NOON_MS + 2}]


@pytest.mark.parametrize("small_bytes", [0, 1 << 20])
def test_a_sealed_raw_file_that_was_removed_holds_up_no_other(
    world: World,
    small_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(closing, "SMALL_BYTES", small_bytes)
    monkeypatch.setattr(closing, "FINISH_BACKOFF", NO_PAUSE)
    sink = world.opened()
    publish(sink, 1)
    world.clock_ms += HOUR_MS
    sink.commit(checkpoint(1))
    world.raw_file().unlink()
    publish(sink, 2)
    world.clock_ms += HOUR_MS
    for _ in range(4):
        settle(sink)
    assert world.closed_texts() == [text(2)]
    assert [entry.before for entry in world.entries()] == [{SOURCE: NOON_MS + 2}]
    assert "was removed: 1 events of mediawiki.recentchange" in lost_lines(caplog)[-1]
    assert known(world.sink()) == (checkpoint(2), {1, 2})


def test_it_is_given_up_while_nothing_comes(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(closing, "SMALL_BYTES", 0)
    sink = world.opened()
    publish(sink, 1)
    world.clock_ms += HOUR_MS
    sink.commit(checkpoint(1))
    world.raw_file().unlink()
    settle(sink)
    assert "was removed: 1 events of mediawiki.recentchange" in caplog.text
    world.opened()
    assert "is missing" not in caplog.text


def test_sealed_segments_of_a_directory_that_is_away_are_not_given_up(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "SMALL_BYTES", 0)
    monkeypatch.setattr(closing, "FINISH_BACKOFF", NO_PAUSE)
    sink = world.opened()
    publish(sink, 1)
    world.clock_ms += HOUR_MS
    sink.commit(checkpoint(1))
    away = tmp_path / "away"
    world.folder.rename(away)
    # As an archive beneath a mount point.
    (world.own / "segments").mkdir(parents=True)

    def mend() -> None:
        shutil.rmtree(world.folder)
        away.rename(world.folder)

    world.child.mend = mend
    settle(sink)
    publish(sink, 2)
    assert len(world.child.pauses) == 1
    settle(sink)
    assert world.closed_texts() == [text(1)]


# ---- damage of the durable state ----


def test_a_damaged_checkpoint_is_replaced_by_the_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    sink = world.opened()
    publish(sink, 1)
    publish(sink, 2)
    world.end()
    (world.own / "checkpoint-recentchange").write_bytes(b'{"version"')
    assert known(world.sink()) == (checkpoint(2), {1, 2})
    assert "the identity log had the position" in caplog.text
    assert world.lines() == data(1, 2)
    sink = world.opened()
    publish(sink, 3)
    world.clock_ms += HOUR_MS
    settle(sink)
    assert world.closed_texts() == [text(1, 2, 3)]


def test_the_state_of_segments_in_a_checkpoint_is_damaged(world: World) -> None:
    publish(world.opened(), 1, 2)
    world.end()
    path = world.own / "checkpoint-recentchange"
    fields = orjson.loads(path.read_bytes())
    fields["own"]["segments"][0][0] = "seven"
    path.write_bytes(orjson.dumps(fields))
    assert known(world.sink()) == (checkpoint(2), {1, 2})
    assert world.lines() == data(1, 2)


def test_a_removed_checkpoint_leaves_what_is_published_known(world: World) -> None:
    publish(world.opened(), 1, 2)
    world.end()
    (world.own / "checkpoint-recentchange").unlink()
    sink = world.sink()
    assert known(sink) == (None, {1, 2})
    # As the publisher does: a new start.
    sink.commit(BEGIN)
    publish(sink, 3)
    settle(sink)
    assert world.lines() == data(1, 2, 3)
    world.clock_ms += HOUR_MS
    settle(sink)
    assert [entry.before for entry in world.entries()] == [{}, {}]


def test_everything_is_damaged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    publish(world.opened(), 1)
    world.end()
    for path in world.own.glob("*-recentchange*"):
        path.write_bytes(b"?")
    assert known(world.sink()) == (None, set())
    assert "the position is lost, and the identity log does not have it either" in caplog.text
    # Nobody knows what is in it, so it stays.
    assert "1 files of open segments that no position names are left as they are" in caplog.text
    assert world.raw_files() == ["recentchange.1"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"?" * 500)])
def test_a_damaged_identity_log_costs_repeats_only(
    world: World, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    publish(world.opened(), 1, 2)
    world.end()
    (log,) = world.own.glob("identities-*")
    damage(log)
    assert known(world.sink()) == (checkpoint(2), set())
    sink = world.sink()
    assert known(sink) == (checkpoint(2), set())
    # The first start has made a new one.
    assert caplog.text.count("the identity log is unusable") == 1
    publish(sink, 3)
    assert world.lines() == data(1, 2, 3)
    caplog.clear()
    assert known(world.sink()) == (checkpoint(3), {3})
    assert caplog.text == ""


def test_a_power_failure_took_what_only_the_log_names(world: World) -> None:
    """The upstream repeats it: the position before it counts."""
    sink = world.opened()
    publish(sink, 1)
    length = world.raw_file().stat().st_size
    world.crash_at = faultpoints.SYNCED
    with pytest.raises(Crash):
        publish(sink, 2)
    world.end()
    with world.raw_file().open("r+b") as file:
        file.truncate(length)
    (world.own / "checkpoint-recentchange").write_bytes(b"?")
    sink = world.sink()
    assert known(sink) == (checkpoint(1), {1})
    publish(sink, 2)
    assert world.lines() == data(1, 2)


# ---- the disk ----


def fill_disk(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let so many appends to a journal fail, each after some bytes."""
    usual, failures = disk.write_all, [1] * times

    def write_all(descriptor: int, content: bytes) -> None:
        if failures:
            failures.pop()
            os.write(descriptor, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        usual(descriptor, content)

    monkeypatch.setattr(journal, "write_all", write_all)


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_full_disk_is_waited_for(
    world: World, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = world.opened()
    publish(sink, 1)
    fill_disk(monkeypatch, times)
    publish(sink, 2, 3)
    assert len(world.child.pauses) == times
    assert world.lines() == data(1, 2, 3)
    assert known(world.sink()) == (checkpoint(3), {1, 2, 3})


def test_a_full_disk_while_a_manifest_is_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, failures = disk.write_all, [1, 1]

    def write_all(descriptor: int, content: bytes) -> None:
        if failures:
            failures.pop()
            os.write(descriptor, content[:20])
            raise OSError(errno.ENOSPC, "No space left on device")
        usual(descriptor, content)

    monkeypatch.setattr(naming, "write_all", write_all)
    sink = world.opened()
    publish(sink, 1)
    world.clock_ms += HOUR_MS
    settle(sink)
    assert len(world.child.pauses) == 2
    assert len(world.entries()) == 1
    assert world.closed_texts() == [text(1)]


def test_a_directory_that_is_moved_away_is_waited_for(world: World, tmp_path: Path) -> None:
    sink = world.opened()
    publish(sink, 1)
    away = tmp_path / "away"
    world.folder.rename(away)
    world.child.mend = lambda: away.rename(world.folder)
    publish(sink, 2)
    assert len(world.child.pauses) == 1
    assert world.lines() == data(1, 2)


@pytest.mark.parametrize("folder", ["segments", ""])
def test_a_link_in_place_of_an_own_folder_is_not_followed(
    world: World, tmp_path: Path, folder: str
) -> None:
    world.opened()
    world.end()
    other = tmp_path / "other"
    own = world.own / folder
    own.rename(other)
    own.symlink_to(other)
    before = sorted(other.iterdir())
    with pytest.raises(Fatal, match="link"):
        world.opened()
    assert sorted(other.iterdir()) == before


def test_one_instance_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pleiades.sinks.retry.LOCK_WAIT_SECONDS", 0.0)
    first = world.opened()
    second = world.destination().sink(
        first._attempts, world.finisher(), Options(10), lambda: world.clock_ms
    )
    with pytest.raises(DestinationHeld):
        second.open(resume=True)
    second.close()
    publish(first, 1)
    assert world.lines() == data(1)


# ---- events ----


def test_dead_letters_are_lines_of_their_own(world: World) -> None:
    letters = [
        Event(
            "sha256-1",
            SOURCE,
            NOON_MS,
            "",
            b"the id",
            b"no JSON \xe2\x80\xa8 \n at all",
            "not_json",
        ),
        Event("sha256-2", SOURCE, NOON_MS, "", b"\xff", b"\x00\xff\n", "not_json"),
        Event("sha256-3", SOURCE, NOON_MS, "", b"", b"[1]", "not_an_object"),
    ]
    sink = world.opened()
    sink.write([event(1), letters[0], letters[1], event(2), letters[2]])
    assert sink.commit(checkpoint(2)).dead_letters == letters
    assert sink.commit(checkpoint(2)).dead_letters == []
    world.clock_ms += HOUR_MS
    settle(sink)
    assert world.lines() == data(1, 2)
    assert archived.letters(world.folder) == [
        {"reason": "not_json", "id": "the id", "data": "no JSON \u2028 \n at all"},
        {
            "reason": "not_json",
            "id": "\ufffd",
            "data_base64": base64.b64encode(b"\x00\xff\n").decode(),
        },
        {"reason": "not_an_object", "id": "", "data": "[1]"},
    ]
    folders = sorted(entry.name.partition("/")[0] for entry in world.entries())
    assert folders == ["dead-letters", "stream=mediawiki.recentchange"]


def test_line_ends_within_an_event_become_spaces(world: World) -> None:
    sink = world.opened()
    sink.write([event(1)._replace(data=b'{"a":\n1,\n\n"b":2}'), event(2)])
    sink.commit(checkpoint(2))
    assert world.lines() == [b'{"a": 1,  "b":2}', *data(2)]


def test_two_streams_have_segments_of_their_own(world: World) -> None:
    sink = world.opened()
    mixed = [event(1), event(2, source=OTHER_SOURCE), event(3), event(4, source=OTHER_SOURCE)]
    sink.write(mixed)
    both = {SOURCE: NOON_MS + 4, OTHER_SOURCE: NOON_MS + 5}
    sink.commit(Checkpoint(both, NOON_MS, NOON_MS + 5))
    world.clock_ms += HOUR_MS
    settle(sink)
    first, second = sorted(world.entries(), key=lambda entry: entry.stream)
    assert (first.stream, first.after) == (
        "mediawiki.page-create",
        {OTHER_SOURCE: NOON_MS + 5},
    )
    assert (second.stream, second.after) == ("mediawiki.recentchange", {SOURCE: NOON_MS + 4})
    assert sorted(world.closed_texts()) == [text(1, 3), text(2, 4)]


# ---- positions in the manifest ----


def test_a_segment_begins_where_the_one_before_it_ended(world: World) -> None:
    sink = world.opened()
    for number in (1, 2, 3):
        publish(sink, number)
        world.clock_ms += HOUR_MS
        settle(sink)
        sink = world.opened()
    assert [entry.before for entry in world.entries()] == [
        {},
        {SOURCE: NOON_MS + 2},
        {SOURCE: NOON_MS + 3},
    ]


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_new_start_begins_with_an_empty_position(world: World, is_closed: bool) -> None:
    sink = world.opened()
    publish(sink, 1)
    if is_closed:
        world.clock_ms += HOUR_MS
        settle(sink)
    sink = world.sink()
    assert known(sink, resume=False) == (checkpoint(1), {1})
    sink.commit(replace(BEGIN, started_ms=NOON_MS + 60_000))
    publish(sink, 50)
    publish(sink, 51)
    world.clock_ms += HOUR_MS
    settle(sink)
    assert [(entry.before, entry.after) for entry in world.entries()] == [
        ({}, {SOURCE: NOON_MS + 2}),
        ({}, {SOURCE: NOON_MS + 52}),
    ]
    assert world.closed_texts() == [text(1), text(50, 51)]


# ---- many segments ----


def test_a_commit_waits_if_too_many_segments_wait_to_be_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pleiades.sinks.archive.closing.SMALL_BYTES", 0)
    sink = world.opened()
    hours = range(40)
    sink.write([event(hour, NOON_MS + hour * HOUR_MS) for hour in hours])
    sink.commit(checkpoint(39 * HOUR_MS))
    # One is open, and so many are left to be closed at leisure.
    assert len(world.entries()) >= 39 - sinks.MAX_SEALED - 1
    assert sorted(world.lines()) == data(*hours)
    for _ in hours:
        sink.poll()
    assert [entry.sequence for entry in world.entries()] == list(range(1, 40))
    assert world.raw_files() == ["recentchange.40"]


def test_finish_of_an_ingest_leaves_segments_open(world: World) -> None:
    sink = world.opened()
    publish(sink, 1)
    sink.finish()
    assert world.entries() == []
    sink = world.opened()
    publish(sink, 2)
    assert world.raw_files() == ["recentchange.1"]
    assert world.lines() == data(1, 2)


# ---- replays ----


def test_a_replay_has_its_own_manifest_beside_an_ingest(world: World) -> None:
    ingest = world.opened()
    publish(ingest, 1)
    replay = world.sink(REPLAY, is_replay=True)
    assert known(replay) == (None, set())
    replay.commit(BEGIN)
    publish(replay, 2, 3)
    replay.finish()
    publish(ingest, 4)
    world.clock_ms += HOUR_MS
    settle(ingest)
    (entry,) = world.entries(REPLAY_MANIFEST)
    (own,) = world.entries(MANIFEST)
    assert (entry.sequence, entry.events, own.sequence, own.events) == (1, 2, 1, 2)
    assert f"-{REPLAY}-00000001." in entry.name
    assert sorted(world.closed_texts()) == [text(1, 4), text(2, 3)]
    assert list((world.own / "replays" / REPLAY / "segments").iterdir()) == []
    # Run again, it knows that everything is there.
    replay.close()
    assert known(world.sink(REPLAY, is_replay=True)) == (checkpoint(3), {2, 3})


def test_a_replay_that_was_killed_goes_on(world: World) -> None:
    replay = world.opened(name=REPLAY, is_replay=True)
    publish(replay, 1)
    world.crash_at = faultpoints.SYNCED
    with pytest.raises(Crash):
        publish(replay, 2)
    world.end()
    replay = world.sink(REPLAY, is_replay=True)
    assert known(replay) == (checkpoint(1), {1})
    publish(replay, 2)
    replay.finish()
    assert world.closed_texts() == [text(1, 2)]


def test_a_replay_that_is_restarted_archives_its_whole_range_again(world: World) -> None:
    replay = world.opened(name=REPLAY, is_replay=True)
    publish(replay, 1, 2)
    replay.finish()
    world.end()
    replay = world.sink(REPLAY, is_replay=True)
    assert known(replay, resume=False) == (None, set())
    replay.commit(BEGIN)
    publish(replay, 1, 2)
    replay.finish()
    assert world.closed_texts() == [text(1, 2)] * 2
    assert [(each.sequence, each.before) for each in world.entries(REPLAY_MANIFEST)] == [
        (1, {}),
        (2, {}),
    ]
