from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.checkpoint import Checkpoint, ReplayProgress
from pleiades.core.range import Bound, Range
from pleiades.replay.arguments import Arguments
from pleiades.replay.progress import PLAIN_SECONDS, ProgressLine, fraction, plain_line
from pleiades.replay.report import Report
from pleiades.runtime.liveline import DRAW_SECONDS, Status
from pleiades.runtime.output import Output
from tests.harness.settings import settings_of

A, B = ("eqiad.mediawiki.recentchange", 0), ("codfw.mediawiki.recentchange", 0)
BEGIN, END = 1_790_000_000_000, 1_790_003_600_000
SPAN = Range(Bound(BEGIN), Bound(END))


def at(reached: int, events: int = 0, *finished: tuple[str, int]) -> Checkpoint:
    return Checkpoint({A: reached, B: 0}, 0, END, ReplayProgress({A: events}, frozenset(finished)))


def line_of(now: Clock, terminal: Terminal | None = None, quiet: bool = False) -> ProgressLine:
    told = Arguments(settings_of("--file.enable"), dry_run=False)
    return ProgressLine(Report(told, SPAN, None), quiet, now, terminal or Pipe())


class Pipe(Output):
    def __init__(self) -> None:
        super().__init__(-1)
        self.drawn = ""

    def isatty(self) -> bool:
        return False

    def draw(self, text: str) -> None:
        self.drawn += text


class Terminal(Pipe):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.integers(0, 2 * END), min_size=2, max_size=2).map(sorted))
def test_a_fraction_lies_between_0_and_1_and_grows_with_the_position(reached: list[int]) -> None:
    low, high = (fraction(SPAN, A, at(time)) for time in reached)
    assert 0.0 <= low <= high <= 1.0


def test_what_is_finished_or_empty_is_all_there() -> None:
    assert fraction(SPAN, A, at(0, 0, A)) == 1.0
    assert fraction(Range(Bound(1, {A: 5}), Bound(9, {A: 5})), A, at(0)) == 1.0


def test_the_rest_is_reckoned_from_what_this_run_did() -> None:
    clock = Clock()
    progress = line_of(clock)
    half = BEGIN + (END - BEGIN) // 2
    assert progress.state(at(half, 1000, B)).left_seconds is None
    clock.now += 10
    # From three quarters of both topics to seven eighths within ten seconds.
    state = progress.state(at(half + (END - BEGIN) // 4, 3000, B))
    assert state.part == pytest.approx(0.875)
    assert state.left_seconds == pytest.approx(10.0, rel=0.01)
    assert state.rate == pytest.approx(200.0)
    assert state.events == 3000


def test_a_plain_line_says_it_all() -> None:
    clock = Clock()
    progress = line_of(clock)
    progress.state(at(BEGIN))
    clock.now += 60
    line = plain_line(progress.state(at(BEGIN + 1_800_000, 123_456)))
    assert line == (
        "25.0 %, 123,456 events, 2,058 events/s, reached codfw.mediawiki.recentchange not begun, "
        "eqiad.mediawiki.recentchange 2026-09-21T14:43:19.999Z, left about 3 min"
    )


def test_the_slowest_of_many_topics_are_shown() -> None:
    many = {(f"t{number}", 0): BEGIN + number for number in range(1, 9)}
    line = plain_line(line_of(Clock()).state(Checkpoint(many, 0, 0, ReplayProgress())))
    assert "t1 2026" in line
    assert "t4" not in line
    assert "and 5 more" in line


def test_in_a_pipe_one_line_now_and_then_whatever_the_log_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    logging.getLogger("pleiades").setLevel(logging.ERROR)
    line = line_of(clock, quiet=True)
    for _ in range(int(3 * PLAIN_SECONDS / DRAW_SECONDS)):
        clock.now += DRAW_SECONDS
        line.show(Status(0, 0.0, 0, at(BEGIN + 1000, 5)))
    assert len(caplog.records) == 3
    logging.getLogger("pleiades").setLevel(logging.NOTSET)


@given(st.integers(1, 200), st.integers(0, 2 * END), st.integers(0, 10**12))
def test_on_a_terminal_it_is_one_line_at_any_width(width: int, reached: int, events: int) -> None:
    clock = Clock()
    out = Terminal()
    line = line_of(clock, out)
    clock.now += 1
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("COLUMNS", str(width))
        line.show(Status(0, 0.0, 0, at(reached, events)))
    text = out.drawn
    assert "\n" not in text
    shown = text.rpartition("\x1b[2K")[2]
    assert len(shown) < width
    assert shown or width < 2
    line.draw("")
    assert out.drawn.endswith("\r\x1b[2K")


def test_a_wide_terminal_shows_a_bar_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    clock = Clock()
    out = Terminal()
    line = line_of(clock, out)
    for reached in (BEGIN, BEGIN + 1_800_000):
        clock.now += 60
        line.show(Status(0, 0.0, 0, at(reached, 7200)))
    assert out.drawn.rpartition("\x1b[2K")[2] == (
        "━━━━━━────────────────── "
        " 25 % · 7,200 events · 0/s · 0:03:00 left · codfw - · eqiad 14:43:19"
    )


def test_before_anything_is_durable_there_is_nothing_to_show() -> None:
    out = Terminal()
    clock = Clock()
    line = line_of(clock, out)
    clock.now += 1
    line.show(Status(0, 0.0, 0, None))
    assert out.drawn == ""
