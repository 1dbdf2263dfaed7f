"""Pictures of the measurements: rates as curves, and each stage's profile as a flame graph.

They are made on demand, for docs/performance.md: SVG files with fixed names.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.benchmarks.corpus import Corpus, Shape
from tests.benchmarks.runs import Topic, Upstream
from tests.benchmarks.trials import Bench, Row, Spread, spread
from tests.harness.relay import Relay, kafka_flags

SIZE_FACTORS = (1, 2, 4, 8, 16)
PARTITIONS = (1, 4, 16, 64)
PARSERS = (1, 2, 4)
STAGES = ("reader", "parser-0", "publisher")
PROFILED_SECONDS = 5.0
PROFILED_HERTZ = 200
LONGEST_SECONDS = 120.0

_TITLE = re.compile(r"(<text id=\"title\"[^>]*>)[^<]*(</text>)")

Picture: TypeAlias = Callable[[Bench, Path], None]
"""Measures, and writes its files into a folder."""


class Point(NamedTuple):
    """One point of a curve."""

    place: float
    rate: Spread


class Curve(NamedTuple):
    """Rates over a varied parameter."""

    across: str
    up: str
    points: list[Point]


def curves(bench: Bench, folder: Path) -> None:
    """Rate against event size, partitions and parsers."""
    usual = bench.corpus(Shape(bench.events))
    # About the same total bytes each, because they determine the time of a run.
    sizes = [
        bench.corpus(Shape(max(bench.events // factor, 1000), size_factor=factor))
        for factor in SIZE_FACTORS
    ]
    draw(
        [
            Curve(
                "bytes of an event's data",
                "MB/s",
                [
                    _point(bench, source.mean_bytes, source, scale=source.mean_bytes / 1e6)
                    for source in sizes
                ],
            ),
            Curve(
                "partitions of the topic",
                "events/s",
                [_point(bench, count, usual, partitions=count) for count in PARTITIONS],
            ),
            Curve(
                "parsers",
                "events/s",
                [_point(bench, count, usual, f"--parsers={count}") for count in PARSERS],
            ),
        ],
        folder / "rates.svg",
    )


def _point(
    bench: Bench,
    place: float,
    source: Corpus,
    *flags: str,
    partitions: int = 1,
    scale: float = 1.0,
) -> Point:
    rates = [bench.kafka(source, *flags, partitions=partitions).rate for _ in range(bench.runs)]
    return Point(place, spread([rate * scale for rate in rates]))


def draw(drawn: Sequence[Curve], file: Path) -> None:
    """Curves side by side: the medians, and a bar from the minimum to the maximum."""
    # The same figures give the same file, so that every change in it is meaningful.
    with mpl.rc_context({"svg.hashsalt": "pleiades", "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.0 * len(drawn), 3.2), layout="constrained")
        for axes, curve in zip(
            figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True
        ):
            places = [point.place for point in curve.points]
            medians = [point.rate.median for point in curve.points]
            below = [point.rate.median - point.rate.least for point in curve.points]
            above = [point.rate.most - point.rate.median for point in curve.points]
            axes.errorbar(places, medians, yerr=[below, above], marker="o", capsize=3)
            axes.set_xscale("log", base=2)
            axes.set_xticks(places, [f"{place:,.0f}" for place in places])
            axes.set_ylim(0, 1.1 * max(point.rate.most for point in curve.points))
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.set_xlabel(curve.across)
            axes.set_ylabel(curve.up)
            axes.grid(visible=True, alpha=0.3)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})


def ratios(rows: Sequence[Row], file: Path) -> None:
    """A bar for each comparison of rates: ours, relative to the rival's; a mark for the target."""
    rates = [row for row in rows if row.unit == "events/s"]
    compared = [(row, row.figure) for row in reversed(rates) if row.figure is not None]
    with mpl.rc_context({"svg.hashsalt": "pleiades", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10.0, 1.2 + 0.32 * len(compared)), layout="constrained")
        axes = figure.subplots()
        for place, (row, ratio) in enumerate(compared):
            axes.barh(place, ratio, color="tab:red" if row.met is False else "tab:blue")
            axes.text(ratio, place, f" {ratio:.2f}", va="center")
            if row.target is not None:
                axes.plot([row.target.limit] * 2, [place - 0.4, place + 0.4], color="black")
        axes.axvline(1.0, color="grey", linestyle=":")
        axes.set_yticks(range(len(compared)), [f"{row.name}: {row.what}" for row, _ in compared])
        axes.set_xlabel("ours : rival. Black: target; red: missed")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})


def profile(bench: Bench, folder: Path) -> None:
    """A flame graph of each stage at full speed, by py-spy."""
    folder.mkdir(parents=True, exist_ok=True)
    source = bench.corpus(Shape(bench.events * 2))
    for stage in STAGES:
        bench.tell(f"profile of the {stage}")
        with (
            Upstream(source) as upstream,
            Topic(bench.bootstrap) as topic,
            topic.position() as position,
            Relay(*upstream.flags, *kafka_flags(bench.bootstrap, topic.name)) as relay,
        ):
            upstream.asked()
            relay.until(position, "the first commit", LONGEST_SECONDS)
            flame_graph(relay.child(stage).pid, folder / f"{stage.removesuffix('-0')}.svg", bench)


def flame_graph(pid: int, file: Path, bench: Bench) -> None:
    """Profile a running process for some seconds."""
    command = [str(Path(sys.executable).with_name("py-spy")), "record", f"--pid={pid}"]
    command += [
        f"--rate={PROFILED_HERTZ}",
        f"--duration={min(PROFILED_SECONDS, bench.seconds):.0f}",
    ]
    command += ["--threads", "--format=flamegraph", f"--output={file}"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False
    )
    if done.returncode:
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
        last = (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
        raise RuntimeError(f"py-spy can't look into a process here: {last}")
    # py-spy's title is its own command line.
    titled, found = _TITLE.subn(rf"\g<1>{file.stem}\g<2>", file.read_text())
    assert found == 1, "py-spy writes its title in another way"
    file.write_text(titled)


PICTURES: dict[str, Picture] = {"curves": curves, "profile": profile}
"""By name."""
