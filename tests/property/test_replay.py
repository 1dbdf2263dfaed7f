"""A topic-partition of a range, read by the real reader, range, publisher and window, on random logs.

Events in the logs are dated ahead or back by up to years; connections are cut or fall silent; runs are
limited or interrupted, and continue; history expires.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import cast

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pleiades.config.settings import ReplaySettings, Settings
from pleiades.core.checkpoint import Checkpoint
from pleiades.core.decoding import decode
from pleiades.core.event import Batch, End, Frames
from pleiades.core.range import PAST_EVENTS, Bound, Range, within
from pleiades.core.resume_cursor import ResumeCursor
from pleiades.core.sse_id import TopicPartition, parse_id
from pleiades.publisher import Publisher
from pleiades.runtime.channel import Channel
from pleiades.runtime.errors import HistoryMissing, Transient
from pleiades.runtime.metric_store import FOLDER_VARIABLE
from pleiades.runtime.metrics import Metrics
from pleiades.upstream.body import Connection
from pleiades.upstream.frames import Received
from pleiades.upstream.http import Upstream
from pleiades.upstream.partition import PartitionReader
from pleiades.upstream.session import Finished, Item, Opened
from tests.harness.memory import MemorySink, MemoryStore
from tests.harness.settings import settings_of
from tests.unit.conftest import FakeChannel, FakeChildContext

SOURCE: TopicPartition = ("eqiad.x", 0)
BEGIN = 1_760_000_000_000
OVERLAP = 60_000
YEAR_MS = 31_536_000_000


@dataclass
class Log:
    """The upstream's log: timestamps by offset, the oldest expired."""

    times: list[int]
    chance: random.Random
    start: int = 0
    furthest: int = 0
    """The first offset that no connection has reached."""
    was_silent: bool = False
    nothing: int = 0
    """The number of consecutive connections that brought nothing."""
    address: str = "the model"

    def first_at(self, time_ms: int) -> int | None:
        """The earliest offset with a timestamp at or after `time_ms`."""
        return next(
            (n for n in range(self.start, len(self.times)) if self.times[n] >= time_ms), None
        )

    def connect(self, last_event_id: str | None, _since_ms: int) -> Connection:
        """See `Upstream.connect`."""
        assert last_event_id is not None
        ((_, asked_ms),) = parse_id(last_event_id.encode())
        assert asked_ms is not None
        return cast("Connection", _Connection(self, asked_ms))


@dataclass
class _Connection:
    log: Log
    asked_ms: int
    server_ms: None = None

    def chunks(self) -> Iterator[bytes]:
        log = self.log
        place = log.first_at(self.asked_ms)
        yield b":ok\n\n"
        log.nothing = log.nothing + 1 if place is None else 0
        if log.nothing > 5:
            raise Stuck
        stop = min(max(log.furthest, place or 0) + log.chance.randint(1, 30), len(log.times))
        # Silence comes once, as when the service's own Kafka fails, and at the end of the log.
        silent = (
            place is None
            or stop == len(log.times)
            or (not log.was_silent and log.chance.random() < 0.3)
        )
        log.was_silent = silent
        while place is not None and place < stop:
            piece = min(place + log.chance.randint(1, 8), stop)
            log.furthest = max(log.furthest, piece)
            yield b"".join(_frame(n, log.times[n]) for n in range(place, piece))
            place = piece
        if silent:
            raise Transient("silence", "idle")

    def close(self) -> None:
        """Do nothing: no connection is open."""


def _frame(number: int, time_ms: int) -> bytes:
    sse_id = [{"topic": SOURCE[0], "partition": 0, "timestamp": time_ms + 1}]
    meta = {"id": f"id-{number}", "topic": SOURCE[0], "partition": 0}
    data = orjson.dumps({"meta": meta})
    return b"event: message\nid: " + orjson.dumps(sse_id) + b"\ndata: " + data + b"\n\n"


class Stuck(Exception):
    """The upstream has expired the events that the relay requests again and again."""


@dataclass
class Replay:
    """Successive runs of one replay."""

    log: Log
    span: Range
    now_ms: int
    settings: Settings
    metrics: Metrics
    store: MemoryStore = field(default_factory=MemoryStore)
    finished: bool = False
    incomplete: bool = False

    def run(self, limit: int | None, messages: int | None, allow_gap: bool = False) -> None:
        """Run once; `messages`: stop after so many.

        Raises:
            HistoryMissing: part of the range is missing.
        """
        first = self.log.first_at(self.span.begin.default_ms)
        self.log.nothing = 0
        checkpoint = self._publish([], None)
        assert checkpoint.done is not None
        if SOURCE in checkpoint.done.finished:
            self.finished = True
            return
        said: list[Item | Finished] = []
        cursor = ResumeCursor(
            self.span.begin.of(SOURCE),
            OVERLAP,
            {SOURCE: checkpoint.position[SOURCE]},
            {SOURCE: checkpoint.known_from.get(SOURCE, 0)},
            {SOURCE: 0 if first is None else self.log.times[first] + 1},
        )
        end_ms = self.span.end.of(SOURCE)
        upstream = cast("Upstream", self.log)
        reader = PartitionReader(SOURCE, cursor, end_ms, self.now_ms, allow_gap, upstream, 60.0)
        missing = None
        try:
            for item in islice(reader.items(), messages):
                said.append(item)  # noqa: PERF402  # those before an error count
        except HistoryMissing as error:
            missing = error
        until = None if limit is None else checkpoint.done.total + limit
        self._publish(said, until)
        assert limit is None or len(self.store.events) <= checkpoint.done.total + limit
        if missing is not None:
            raise missing

    def _publish(self, said: list[Item | Finished], until_total: int | None) -> Checkpoint:
        resume: FakeChannel[Checkpoint] = FakeChannel()
        replay = ReplaySettings(
            range=self.span,
            resolved_ms=self.now_ms,
            first_ms={SOURCE: None},
            connections=1,
            rate=0.0,
            until_total=until_total,
            allow_gap=False,
            incomplete=False,
            skip_existing=False,
        )
        batches = FakeChannel[Batch | End](*self._batches(said), End())
        Publisher(
            FakeChildContext(0),
            self.metrics,
            replace(self.settings, replay=replay),
            MemorySink(self.store),
            cast("Channel[Checkpoint]", resume),
            [cast("Channel[Batch | End]", batches)],
        ).run()
        told = resume.items[0]
        assert isinstance(told, Checkpoint)
        return told

    def _batches(self, said: list[Item | Finished]) -> Iterator[Batch]:
        numbers = count()
        connection = 0
        for item in said:
            if isinstance(item, Opened):
                connection += 1
            elif isinstance(item, Received) and item.blob:
                frames = Frames(
                    next(numbers),
                    connection,
                    item.blob,
                    item.last_event_id,
                    0,
                    self.now_ms,
                    SOURCE,
                    gap=bool(item.gaps),
                )
                self.incomplete = self.incomplete or bool(item.gaps)
                yield within(decode(frames, False, False).batch, self.span, SOURCE)[0]
            elif isinstance(item, Finished):
                self.incomplete = self.incomplete or item.gap
                yield Batch(next(numbers), 0, [], {}, 0, self.now_ms, SOURCE, True, item.gap)

    def published(self) -> list[int]:
        """The numbers of the events, in the order of their publication."""
        return [int(event.identity.removeprefix("id-")) for event in self.store.events]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Log, Range], Replay]]:
    folder: Path = tmp_path_factory.mktemp("metrics")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(FOLDER_VARIABLE, str(folder))
        patched.setattr(PartitionReader, "_pause", lambda *_: None)
        metrics = Metrics("test", str(folder))
        made = settings_of("--file.enable")
        yield lambda log, span: Replay(log, span, BEGIN + YEAR_MS // 365, made, metrics)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int], Range]:
    """Unique timestamps by offset, and a range.

    A few are dated ahead, by minutes to years, too few to be believed; some are dated back. No event of
    the range comes later than the overlap after its end: that is not promised.
    """
    size = draw(st.integers(1, 150))
    step = draw(st.sampled_from([11, 1_000, 30_000]))
    true = [BEGIN + number * step for number in range(size)]
    first = draw(st.integers(0, size - 1))
    last = draw(st.integers(first, size - 1))
    begin, end = true[first], true[last] + 5
    places = st.integers(0, size - 1)
    far = st.sampled_from([120_000, 3_000_000, YEAR_MS, 3 * YEAR_MS])
    times = list(true)
    for place in draw(st.lists(places, max_size=PAST_EVENTS - 1, unique=True)):
        times[place] += draw(far) + draw(st.integers(1, 9))
    for place in draw(st.lists(places, max_size=8, unique=True)):
        odd = true[place] - draw(far) - draw(st.integers(1, 9))
        if odd < begin or true[place] < end:
            times[place] = odd
    for place in draw(st.lists(places, max_size=8, unique=True)):
        times[place] = true[place] - draw(st.integers(1, min(OVERLAP - 1, 50 * step)))
    if len(set(times)) < len(times):
        # Unique, because two events in one millisecond may be confused.
        seen: set[int] = set()
        for place in range(size):
            while times[place] in seen:
                times[place] += 1
            seen.add(times[place])
    return times, Range(Bound(begin), Bound(end))


runs = st.lists(
    st.tuples(st.none() | st.integers(1, 40), st.none() | st.integers(1, 12)), max_size=6
)
many = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


def expected(log: Log, span: Range) -> list[int]:
    return [n for n, time in enumerate(log.times) if span.holds(SOURCE, time + 1)]


@given(histories(), runs, st.integers(0, 10**6))
@many
def test_whatever_the_dates_it_is_exactly_the_range_and_nothing_is_missing(
    start: Callable[[Log, Range], Replay],
    history: tuple[list[int], Range],
    some: list[tuple[int | None, int | None]],
    seed: int,
) -> None:
    times, span = history
    replay = start(Log(times, random.Random(seed)), span)
    for limit, messages in some:
        replay.run(limit, messages)
    replay.run(None, None)
    assert replay.published() == expected(replay.log, span)
    assert not replay.incomplete


@example(
    history=(
        [BEGIN + 11 * n for n in range(9)],
        Range(Bound(BEGIN), Bound(BEGIN + 82)),
    ),
    some=[(None, 3)],
    seed=0,
    expired=8,
)
@given(histories(), runs, st.integers(0, 10**6), st.integers(1, 150))
@many
def test_what_expires_meanwhile_is_lost_with_a_word_or_not_at_all(
    start: Callable[[Log, Range], Replay],
    history: tuple[list[int], Range],
    some: list[tuple[int | None, int | None]],
    seed: int,
    expired: int,
) -> None:
    times, span = history
    replay = start(Log(times, random.Random(seed)), span)
    for limit, messages in some:
        replay.run(limit, messages)
    if not replay.store.events:
        return
    replay.log.start = min(expired, len(times))
    wanted = expected(replay.log, span)
    try:
        replay.run(None, None)
    except Stuck:
        # It keeps reporting this.
        return
    except HistoryMissing:
        pass
    else:
        assert replay.published() == wanted
        return
    with pytest.raises(HistoryMissing):
        # The number of attempts does not matter.
        replay.run(None, None)
    with contextlib.suppress(Stuck):
        replay.run(None, None, allow_gap=True)
        replay.run(None, None)
    assert replay.incomplete
    assert replay.finished
    published = replay.published()
    assert sorted(set(published)) == sorted(published), "each once"
    assert set(published) <= set(wanted)
