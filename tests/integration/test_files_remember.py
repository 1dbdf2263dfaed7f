"""End to end: a directory's memory of published events, whatever users do with the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from pleiades.core.units import iso_time
from tests.harness.oracle import judge, published_count
from tests.harness.relay import Relay, ingest_flags
from tests.harness.tape import HOME, OTHER, Tape
from tests.harness.tree import tree

YEARS_MS = 9 * 365 * 86_400_000
MINUTES_MS = 60_000
WAIT_SECONDS = 60.0
REPEATED = "pleiades_duplicate_events_dropped_total"

Start = Callable[..., Relay]


@pytest.fixture
def upstream() -> Iterator[Tape]:
    with Tape(1) as tape:
        yield tape


@pytest.fixture
def start(upstream: Tape, folder: Path) -> Start:
    """Starts a relay of all events since two hours before the upstream's start."""

    def made(*flags: str, since_ms: int = upstream.started_ms - 120 * MINUTES_MS) -> Relay:
        usual = ingest_flags(upstream.url, since_ms)
        return Relay(*usual, "--file.enable", f"--file.publishDir={folder}", *flags)

    return made


def relay_until(start: Start, condition: Callable[[Relay], bool], *flags: str) -> None:
    with start(*flags) as relay:
        relay.until(lambda: condition(relay), "the condition", WAIT_SECONDS)
        assert relay.stop() == 0, relay.log


def committed(folder: Path) -> dict[str, int]:
    stored = orjson.loads((folder / ".pleiades" / "checkpoint-recentchange").read_bytes())
    found: dict[str, int] = stored["committed"]
    return found


def test_a_restart_writes_nothing_again(start: Start, upstream: Tape, folder: Path) -> None:
    """Repeated events are recognised before anything is staged."""
    for number in range(500):
        upstream.write(timestamp_ms=upstream.started_ms - 50_000 + number)
    relay_until(start, lambda _: published_count(folder) == 500)
    files, before = tree(folder), committed(folder)
    relay_until(start, lambda relay: relay.metric(REPEATED) >= 500)
    assert committed(folder) == before
    hours = {name: entry for name, entry in files.items() if name.endswith(".json")}
    assert len(hours) == 500
    assert hours.items() <= tree(folder).items()


def test_an_event_of_years_ago_whose_file_was_moved(
    start: Start, upstream: Tape, folder: Path
) -> None:
    """Its topic has delivered nothing else: this event determines where new events begin."""
    upstream.write(HOME)
    with start() as relay:
        relay.until(lambda: published_count(folder) == 1, "the first event", WAIT_SECONDS)
        upstream.write(OTHER, upstream.started_ms - YEARS_MS)
        relay.until(lambda: published_count(folder) == 2, "the old event", WAIT_SECONDS)
        assert relay.stop() == 0, relay.log
    (moved,) = folder.glob("201*/*.json")
    moved.rename(folder.with_name("moved.json"))
    upstream.write(OTHER, upstream.started_ms - YEARS_MS + 1, times=2)
    relay_until(start, lambda _: published_count(folder) == 3)
    assert len(list(folder.glob("201*/*.json"))) == 2
    assert judge(folder, upstream.journal(), 0, finished=False).doubled == []


def test_a_topic_that_is_idle_after_an_event_ahead_of_its_time(
    start: Start, upstream: Tape, folder: Path
) -> None:
    """The delivered event counts, not the file with the latest date."""
    begin_ms = upstream.started_ms - 110 * MINUTES_MS
    upstream.write(OTHER, begin_ms, times=3)
    upstream.write(HOME, begin_ms + 59 * MINUTES_MS)
    for number in range(450):
        upstream.write(HOME, begin_ms + number)
    relay_until(start, lambda _: published_count(folder) == 454)
    for path in folder.glob("[0-9]*/*.json"):
        path.unlink()
    relay_until(start, lambda relay: relay.metric(REPEATED) >= 450)
    assert published_count(folder) == 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--resume=false"],
        ["--upstream.overlap=100m", "--dedup.window=100m"],
        ["--dedup.window=100m"],
    ],
    ids=["a new start", "a longer overlap", "a longer window"],
)
def test_what_was_published_long_ago(
    start: Start, upstream: Tape, folder: Path, flags: list[str]
) -> None:
    for number in range(1_000):
        upstream.write(
            HOME if number % 3 else OTHER, upstream.started_ms - (6_000 - 6 * number) * 1000
        )
    relay_until(start, lambda _: published_count(folder) == 1_000)
    for path in folder.glob("[0-9]*/*.json"):
        path.unlink()
    upstream.write(HOME, times=5)
    upstream.write(OTHER, times=5)
    relay_until(start, lambda _: published_count(folder) == 10, *flags)
    names = {path.name for path in folder.glob("[0-9]*/*.json")}
    assert len(names) == 10


def test_a_new_start_from_before_the_first_one(start: Start, upstream: Tape, folder: Path) -> None:
    """It publishes only the events that the first start did not request."""
    for number in range(600):
        upstream.write(HOME, upstream.started_ms - (6_000 - 10 * number) * 1000)
    middle_ms = upstream.started_ms - 3_000_000
    with start(since_ms=middle_ms) as relay:
        relay.until(lambda: published_count(folder) == 300, "the later half", WAIT_SECONDS)
        assert relay.stop() == 0, relay.log
    for path in folder.glob("[0-9]*/*.json"):
        path.unlink()
    upstream.write(HOME)
    relay_until(start, lambda _: published_count(folder) == 301, "--resume=false")
    early = [path for path in folder.glob("[0-9]*/*.json") if path.name < _name_at(middle_ms)]
    assert len(early) == 300


def _name_at(milliseconds: int) -> str:
    """A name that sorts before all files from this time on."""
    return iso_time(milliseconds).replace("-", "").replace(":", "")
