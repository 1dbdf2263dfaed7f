"""What is measured, against what, and which ratio is wanted.

Every comparison is made of pairs, ours and the rival alternately, so that a slow minute of the machine
hits both.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.corpus import Corpus, Shape, corpus
from tests.benchmarks.runs import (
    SINCE,
    Arrivals,
    Meter,
    Sample,
    Topic,
    Upstream,
    lags,
    relay_into_files,
    relay_into_kafka,
    rival_into_files,
    rival_into_kafka,
)
from tests.harness.relay import Relay, ingest_flags, kafka_flags
from tests.harness.waiting import until

MEBIBYTE = 1024 * 1024
WINDOW_SECONDS = 600
LONGEST_SECONDS = 120.0


class Spread(NamedTuple):
    """Of several runs."""

    median: float
    least: float
    most: float


def spread(figures: list[float]) -> Spread:
    """Of at least one figure."""
    return Spread(statistics.median(figures), min(figures), max(figures))


class Target(NamedTuple):
    """What a figure must reach."""

    limit: float
    at_least: bool

    def is_met(self, figure: float) -> bool:
        """Whether it does."""
        return figure >= self.limit if self.at_least else figure <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


class Row(NamedTuple):
    """One line of the result."""

    name: str
    what: str
    unit: str
    ours: Spread
    rival: Spread | None = None
    figure: float | None = None
    """What is held against the target, if not ours by itself: as a rule ours / the rival's."""
    target: Target | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is; None where there is none."""
        if self.target is None:
            return None
        return self.target.is_met(self.ours.median if self.figure is None else self.figure)


@dataclass(frozen=True, slots=True)
class Bench:
    """What all trials need."""

    bootstrap: str
    folder: Path
    """Input and files; on the file system that is measured."""
    events: int
    """In one run into Kafka; other trials take a part of it, or several times as many."""
    runs: int
    seconds: float
    """For how long a live stream is watched."""
    tell: Callable[[str], None]
    samples: list[Sample] = field(default_factory=list)
    """Of the relay into Kafka, all of them."""

    def corpus(self, shape: Shape) -> Corpus:
        """Its input."""
        self.tell(f"input: {shape.events} events")
        return corpus(self.folder / "input", shape)

    def kafka(self, source: Corpus, *flags: str, partitions: int = 1) -> Sample:
        """One run of ours into Kafka."""
        sample = relay_into_kafka(source, self.bootstrap, *flags, partitions=partitions)
        self.samples.append(sample)
        self.tell(f"ours {' '.join(flags)} {sample.rate:,.0f} events/s")
        return sample

    def pairs(
        self, ours: Callable[[], Sample], rival: Callable[[], Sample]
    ) -> tuple[list[Sample], list[Sample]]:
        """So many runs of each, alternately."""
        pairs = []
        for _ in range(self.runs):
            pairs.append((ours(), rival()))
            self.tell(f"rival {pairs[-1][1].rate:,.0f} events/s")
        return [mine for mine, _ in pairs], [theirs for _, theirs in pairs]


Trial = Callable[[Bench], list[Row]]


def compare(
    name: str,
    what: str,
    samples: tuple[list[Sample], list[Sample]],
    target: Target | None = None,
    scale: float = 1.0,
) -> Row:
    """A row of the rates of two; `scale`: what one of our events counts."""
    ours, rival = (spread([sample.rate for sample in those]) for those in samples)
    return Row(name, what, "events/s", ours, rival, ours.median * scale / rival.median, target)


def kafka(bench: Bench) -> list[Row]:
    """Exactly once into Kafka, against a pipe of standard tools."""
    source = bench.corpus(Shape(bench.events))
    if shutil.which("kcat") is None:
        bench.tell("kcat is missing: no comparison")
        samples = [bench.kafka(source) for _ in range(bench.runs)]
        rate = spread([sample.rate for sample in samples])
        return [Row("kafka", "ingest into Kafka", "events/s", rate), _cpu(samples)]

    def pipe(url: str, topic: str) -> list[str]:
        produce = f"kcat -P -z lz4 -b {bench.bootstrap} -t {topic}"
        return ["sh", "-c", f"curl -sN {url} | grep -a '^data:' | cut -c7- | {produce}"]

    rival = partial(rival_into_kafka, source, bench.bootstrap, pipe)
    pairs = bench.pairs(partial(bench.kafka, source), rival)
    alike = bench.pairs(partial(bench.kafka, source, "--kafka.compression=lz4"), rival)
    what = "ingest into Kafka : curl | grep | cut | kcat"
    return [
        compare("kafka", what, pairs, Target(0.7, at_least=True)),
        _cpu(pairs[0]),
        # Ours compresses by zstd by default: half as much on the brokers' disks.
        compare("kafka", "the same with lz4, as the rival", alike),
        _cpu(alike[0], "the same with lz4"),
    ]


def _cpu(samples: list[Sample], what: str = "CPU for a million events, all processes") -> Row:
    seconds = [sample.cpu_seconds / sample.events * 1e6 for sample in samples]
    return Row("kafka", what, "s", spread(seconds), target=Target(10, at_least=False))


def plain(bench: Bench) -> list[Row]:
    """The same against the straightforward Python program."""
    source = bench.corpus(Shape(bench.events // 4))
    rows = []
    for how, piece, target in (
        ("as their READMEs say", [], Target(5, at_least=True)),
        ("in pieces of 64 KiB", ["65536"], None),
    ):

        def program(url: str, topic: str, piece: list[str] = piece) -> list[str]:
            command = [sys.executable, "-m", "tests.benchmarks.plain", url, bench.bootstrap, topic]
            return command + piece

        pairs = bench.pairs(
            partial(bench.kafka, source),
            partial(rival_into_kafka, source, bench.bootstrap, program),
        )
        what = f"ingest into Kafka : requests + sseclient-py + json + produce, {how}"
        rows.append(compare("plain", what, pairs, target))
    return rows


def files(bench: Bench) -> list[Row]:
    """One file per event, against open, write, close."""
    source = bench.corpus(Shape(bench.events // 4))
    rows = []
    with _scratch(bench.folder) as scratch:
        for sync, least in (("batch", 0.5), ("none", 0.9)):

            def ours(sync: str = sync) -> Sample:
                sample = relay_into_files(source, scratch(), f"--file.sync={sync}")
                bench.tell(f"ours --file.sync={sync} {sample.rate:,.0f} events/s")
                return sample

            pairs = bench.pairs(ours, lambda: rival_into_files(source, scratch()))
            what = f"files, --file.sync={sync} : open, write, close"
            rows.append(compare("files", what, pairs, Target(least, at_least=True)))
    return rows


@contextmanager
def _scratch(folder: Path) -> Iterator[Callable[[], Path]]:
    """Gives new folders, and removes them all at the end: ext4 takes ten times as long to make a file
    while it avoids the inodes of files that were deleted in the last minutes.
    """
    root = folder / f"files-{uuid.uuid4().hex[:8]}"
    root.mkdir(parents=True)
    try:
        yield lambda: root / uuid.uuid4().hex[:8]
    finally:
        shutil.rmtree(root)


def parsers(bench: Bench) -> list[Row]:
    """More parsers: up to where another stage, or the machine, is the limit."""
    source = bench.corpus(Shape(bench.events))
    by_number = _variants(
        bench, {f"{many}": (source, [f"--parsers={many}"], 1) for many in (1, 2, 4)}
    )
    one = by_number.pop("1")
    return [
        compare("parsers", f"--parsers={many} : 1", (samples, one))
        for many, samples in by_number.items()
    ]


def growth(bench: Bench) -> list[Row]:
    """What costs more than in proportion."""
    least = bench.events // 2
    base = bench.corpus(Shape(least))
    tenfold = bench.corpus(Shape(least * 10))
    large = bench.corpus(Shape(least // 5, size_factor=10))
    # So many that all of them are within the window, and more than it may hold by default.
    many = bench.corpus(Shape(least * 10, dated_rate=least * 10 / (WINDOW_SECONDS / 2)))
    variants = _variants(
        bench,
        {
            "as usual": (base, [], 1),
            "10 times the events": (tenfold, [], 1),
            "10 times the size, per byte": (large, [], 1),
            # The first transactions on a new topic take a second with so many.
            "64 partitions": (tenfold, [], 64),
            "500,000 identities in the window": (many, [], 1),
        },
    )
    usual = variants.pop("as usual")
    rows = []
    for name, samples in variants.items():
        is_long = "identities" in name or "partitions" in name
        against = variants["10 times the events"] if is_long else usual
        scale = large.mean_bytes / base.mean_bytes if "size" in name else 1.0
        target = Target(0.9, at_least=True)
        what = f"{name} : as usual"
        rows.append(compare("growth", what, (samples, against), target, scale))
    return rows


def _variants(
    bench: Bench, variants: dict[str, tuple[Corpus, list[str], int]]
) -> dict[str, list[Sample]]:
    """So many runs of each into Kafka, one after the other, in turns."""
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    for _ in range(bench.runs):
        for name, (source, flags, partitions) in variants.items():
            bench.tell(name)
            samples[name].append(bench.kafka(source, *flags, partitions=partitions))
    return samples


def live(bench: Bench) -> list[Row]:
    """Lag and cost of a live stream."""
    rows = []
    for rate in (50, 1000):
        what = f"at {rate} events/s"
        late, busy = _watched(bench, rate)
        late.sort()
        for part, limit in ((0.5, 300.0), (0.99, 600.0)):
            ms = [late[int(len(late) * part)] * 1000]
            target = Target(limit, at_least=False)
            rows.append(
                Row("live", f"lag {what}, p{part * 100:g}", "ms", spread(ms), target=target)
            )
        idle = Target(2.0, at_least=False) if rate == 50 else None
        rows.append(Row("live", f"CPU {what}", "% of a core", spread([busy]), target=idle))
    return rows


def _watched(bench: Bench, rate: int) -> tuple[list[float], float]:
    """Lags in seconds, and the CPU in percent of a core."""
    events = int(rate * bench.seconds)
    source = bench.corpus(Shape(events, chunk_bytes=0))
    written = bench.folder / f"times-{uuid.uuid4().hex[:8]}"
    bench.tell(f"{rate} events/s for {bench.seconds:.0f} s")
    with (
        Upstream(source, rate, written) as upstream,
        Topic(bench.bootstrap) as topic,
        Arrivals(topic) as arrivals,
        Relay(
            *ingest_flags(upstream.url, SINCE), *kafka_flags(bench.bootstrap, topic.name)
        ) as relay,
    ):
        upstream.asked()
        until(lambda: arrivals.times, "the first event", LONGEST_SECONDS)
        meter, begun = Meter(relay.process.pid), time.monotonic()
        relay.until(
            lambda: len(arrivals.times) >= events and written.exists(), "all", LONGEST_SECONDS
        )
        busy = meter.cpu_seconds() / (time.monotonic() - begun) * 100
        assert relay.stop() == 0, relay.log
        late = lags(written, arrivals.times)
    written.unlink()
    return late, busy


def start(bench: Bench) -> list[Row]:
    """From the command to the first event in a committed transaction."""
    source = bench.corpus(Shape(1000, chunk_bytes=0))
    seconds = []
    for number in range(bench.runs + 1):
        with (
            Upstream(source, 50) as upstream,
            Topic(bench.bootstrap) as topic,
            Arrivals(topic) as arrivals,
        ):
            begun = time.time()
            flags = [*ingest_flags(upstream.url, SINCE), *kafka_flags(bench.bootstrap, topic.name)]
            with Relay(*flags) as relay:
                relay.until(lambda: arrivals.times, "the first event", LONGEST_SECONDS)
        if number:
            # The first one warms the disk's cache.
            seconds.append(arrivals.times[0] - begun)
            bench.tell(f"{seconds[-1]:.2f} s")
    what = "from the command to the first published event"
    return [Row("start", what, "s", spread(seconds), target=Target(1.5, at_least=False))]


def memory(bench: Bench) -> list[Row]:
    """Most memory of all runs into Kafka; by itself, of one of large events."""
    if not bench.samples:
        bench.kafka(bench.corpus(Shape(bench.events // 10, size_factor=10)))
    held = [sample.peak_bytes / MEBIBYTE for sample in bench.samples]
    target = Target(250, at_least=False)
    return [Row("memory", "all processes, most", "MiB", spread(held), None, max(held), target)]


TRIALS: dict[str, Trial] = {
    "kafka": kafka,
    "plain": plain,
    "files": files,
    "parsers": parsers,
    "live": live,
    "growth": growth,
    "start": start,
    "memory": memory,
}
"""By name, in their order; `memory` comes last, as it looks at all the others."""
