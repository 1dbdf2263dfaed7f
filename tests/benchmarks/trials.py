"""The trials: what is measured, the rivals, and the target ratios.

Every comparison consists of pairs, alternately ours and the rival's, so that a slow minute of the
machine affects both.
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
from typing import NamedTuple, TypeAlias, TypeVar

from tests.benchmarks.corpus import Corpus, Shape, corpus
from tests.benchmarks.runs import (
    FULL_RECORD,
    PLAIN,
    Arrivals,
    Meter,
    Sample,
    Topic,
    Upstream,
    drained,
    lags,
    relay_into_archive,
    relay_into_files,
    relay_into_kafka,
    rival_into_archive,
    rival_into_files,
    rival_into_kafka,
)
from tests.harness.relay import Relay, kafka_flags
from tests.harness.waiting import until

T = TypeVar("T")

MEBIBYTE = 1024 * 1024
WINDOW_SECONDS = 600
LONGEST_SECONDS = 120.0
SEGMENT_RECORD = 1400
"""Bytes of a TLS record that fits into one TCP segment: the size that servers send at first, or always.
"""
BYTE_RECORD = 1
BYTE_RECORD_PART = 300
"""With records of one byte, this part of the events takes several seconds."""


class Spread(NamedTuple):
    """The spread of several runs."""

    median: float
    least: float
    most: float


def spread(figures: list[float]) -> Spread:
    """The spread of at least one figure."""
    return Spread(statistics.median(figures), min(figures), max(figures))


class Target(NamedTuple):
    """The limit for a figure."""

    limit: float
    at_least: bool

    def is_met(self, figure: float) -> bool:
        """True if the figure meets the target."""
        return figure >= self.limit if self.at_least else figure <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


class OverTls(NamedTuple):
    """The same comparison over HTTPS, in the same run."""

    ours: Spread
    rival: Spread | None
    figure: float | None
    """ours / the rival's, both over HTTPS."""
    to_http: float
    """ours over HTTPS / ours over HTTP."""


class Row(NamedTuple):
    """One line of the result."""

    name: str
    what: str
    unit: str
    ours: Spread
    rival: Spread | None = None
    figure: float | None = None
    """The figure compared with the target, if not our own: usually ours / the rival's."""
    target: Target | None = None
    https: OverTls | None = None

    @property
    def met(self) -> bool | None:
        """True if the target is met; None if there is none."""
        if self.target is None:
            return None
        return self.target.is_met(self.ours.median if self.figure is None else self.figure)


Pairs: TypeAlias = tuple[list[Sample], list[Sample]]
"""Ours, and the rival's."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The common settings of all trials."""

    bootstrap: str
    folder: Path
    """For input and files; on the measured file system."""
    events: int
    """The events of one run into Kafka; other trials take a part of it, or several times as many."""
    runs: int
    seconds: float
    """The duration of a live stream."""
    tell: Callable[[str], None]
    quick: bool = False
    """Only show that every trial works: use the first of several variants."""
    samples: list[Sample] = field(default_factory=list)
    """All runs of the relay into Kafka."""
    other: Path | None = None
    """Another checkout, whose relay is compared with this one."""

    def some(self, *variants: T) -> tuple[T, ...]:
        """All variants, or the first if `quick`."""
        return variants[:1] if self.quick else variants

    def corpus(self, shape: Shape) -> Corpus:
        """The input file of a shape."""
        self.tell(f"input: {shape.events} events")
        return corpus(self.folder / "input", shape)

    def kafka(
        self, source: Corpus, *flags: str, partitions: int = 1, record_bytes: int = PLAIN
    ) -> Sample:
        """Run the relay once into Kafka."""
        sample = relay_into_kafka(
            source, self.bootstrap, *flags, partitions=partitions, record_bytes=record_bytes
        )
        self.samples.append(sample)
        over = f"over HTTPS, records of {_bytes(record_bytes)}: " if record_bytes else ""
        self.tell(f"ours {over}{' '.join(flags)} {sample.rate:,.0f} events/s")
        return sample

    def pairs(
        self, ours: Callable[[], Sample], rival: Callable[[], Sample], runs: int | None = None
    ) -> Pairs:
        """Run both alternately, `runs` times each; None: as often as usual."""
        pairs = []
        for _ in range(self.runs if runs is None else runs):
            pairs.append((ours(), rival()))
            self.tell(f"rival {pairs[-1][1].rate:,.0f} events/s")
        return [mine for mine, _ in pairs], [theirs for _, theirs in pairs]

    def both_ways(
        self, source: Corpus, command: Callable[[str, str], list[str]], *flags: str
    ) -> tuple[Pairs, Pairs]:
        """Run the relay and a rival into Kafka, over HTTP and over HTTPS, all in turns."""
        ways = (PLAIN, FULL_RECORD)
        taken: dict[int, Pairs] = {way: ([], []) for way in ways}
        for _ in range(self.runs):
            for way in ways:
                ours, rival = self.pairs(
                    partial(self.kafka, source, *flags, record_bytes=way),
                    partial(rival_into_kafka, source, self.bootstrap, command, way),
                    runs=1,
                )
                taken[way][0].extend(ours)
                taken[way][1].extend(rival)
        return taken[PLAIN], taken[FULL_RECORD]


Trial = Callable[[Bench], list[Row]]


def compare(
    name: str,
    what: str,
    samples: Pairs,
    target: Target | None = None,
    scale: float = 1.0,
    over_tls: Pairs | None = None,
) -> Row:
    """Compare the rates of two programs in a row; `scale`: the weight of one of our events."""
    ours, rival = map(rates, samples)
    figure = ours.median * scale / rival.median
    https = None
    if over_tls is not None:
        mine, theirs = map(rates, over_tls)
        https = OverTls(
            mine, theirs, mine.median * scale / theirs.median, mine.median / ours.median
        )
    return Row(name, what, "events/s", ours, rival, figure, target, https)


def rates(samples: list[Sample]) -> Spread:
    """Events per second."""
    return spread([sample.rate for sample in samples])


def kafka(bench: Bench) -> list[Row]:
    """Exactly once into Kafka, against a pipe of standard tools."""
    source = bench.corpus(Shape(bench.events))
    if shutil.which("kcat") is None:
        bench.tell("kcat is missing: no comparison")
        samples, encrypted = bench.pairs(
            partial(bench.kafka, source), partial(bench.kafka, source, record_bytes=FULL_RECORD)
        )
        ours, mine = rates(samples), rates(encrypted)
        https = OverTls(mine, None, None, mine.median / ours.median)
        row = Row("kafka", "ingest into Kafka", "events/s", ours, https=https)
        return [row, _cpu(samples, over_tls=encrypted)]

    def pipe(url: str, topic: str) -> list[str]:
        produce = f"kcat -P -z lz4 -b {bench.bootstrap} -t {topic}"
        return ["sh", "-c", f"curl -sN {url} | grep -a '^data:' | cut -c7- | {produce}"]

    pairs, over_tls = bench.both_ways(source, pipe)
    what = "ingest into Kafka : curl | grep | cut | kcat"
    rows = [
        compare("kafka", what, pairs, over_tls=over_tls),
        _cpu(pairs[0], over_tls=over_tls[0]),
    ]
    if bench.quick:
        return rows
    # The relay compresses with zstd by default: half as much on the brokers' disks.
    alike, alike_over_tls = bench.both_ways(source, pipe, "--kafka.compression=lz4")
    return [
        *rows,
        compare(
            "kafka",
            "the same with lz4, as the rival",
            alike,
            Target(0.75, at_least=True),
            over_tls=alike_over_tls,
        ),
        _cpu(alike[0], "the same with lz4", over_tls=alike_over_tls[0]),
    ]


def _cpu(
    samples: list[Sample],
    what: str = "CPU for a million events, all processes",
    over_tls: list[Sample] | None = None,
) -> Row:
    seconds = _cpu_spread(samples)
    https = None
    if over_tls is not None:
        mine = _cpu_spread(over_tls)
        https = OverTls(mine, None, None, mine.median / seconds.median)
    return Row("kafka", what, "s", seconds, https=https)


def _cpu_spread(samples: list[Sample]) -> Spread:
    return spread([sample.cpu_seconds / sample.events * 1e6 for sample in samples])


def plain(bench: Bench) -> list[Row]:
    """Exactly once into Kafka, against the straightforward Python program."""
    source = bench.corpus(Shape(bench.events))
    rows = []
    ways: tuple[tuple[str, list[str], Target | None], ...] = (
        ("as their READMEs say", [], None),
        ("in pieces of 64 KiB", ["65536"], Target(1.7, at_least=True)),
    )
    for how, piece, target in bench.some(*ways):

        def program(url: str, topic: str, piece: list[str] = piece) -> list[str]:
            command = [sys.executable, "-m", "tests.benchmarks.plain", url, bench.bootstrap, topic]
            return command + piece

        # The rival compresses with lz4.
        pairs, over_tls = bench.both_ways(source, program, "--kafka.compression=lz4")
        what = f"ingest into Kafka : requests + sseclient-py + json + produce, {how}"
        rows.append(compare("plain", what, pairs, target, over_tls=over_tls))
    return rows


def files(bench: Bench) -> list[Row]:
    """One file per event, against open, write, close."""
    source = bench.corpus(Shape(bench.events // 4))
    rows = []
    with _scratch(bench.folder) as scratch:
        for sync, least in bench.some(("batch", 0.5), ("none", 0.95)):

            def ours(sync: str = sync) -> Sample:
                sample = relay_into_files(source, scratch(), f"--file.sync={sync}")
                bench.tell(f"ours --file.sync={sync} {sample.rate:,.0f} events/s")
                return sample

            pairs = bench.pairs(ours, lambda: rival_into_files(source, scratch()))
            what = f"files, --file.sync={sync} : open, write, close"
            rows.append(compare("files", what, pairs, Target(least, at_least=True)))
    return rows


def archive(bench: Bench) -> list[Row]:
    """Compressed segments, against a pipe of standard tools and against the other destinations."""
    source = bench.corpus(Shape(bench.events))
    few = bench.corpus(Shape(bench.events // 4))
    with _scratch(bench.folder) as scratch:

        def ours() -> Sample:
            sample = relay_into_archive(source, scratch())
            bench.tell(f"ours into an archive {sample.rate:,.0f} events/s")
            return sample

        def into_files() -> Sample:
            return relay_into_files(few, scratch(), "--file.sync=batch")

        rivals: list[tuple[str, Callable[[], Sample], Target | None]] = [
            ("our own into Kafka", partial(bench.kafka, source), Target(1.3, at_least=True)),
            ("our own into files, --file.sync=batch", into_files, Target(4, at_least=True)),
        ]
        if shutil.which("zstd"):
            pipe = partial(rival_into_archive, source)
            rivals.insert(0, ("curl | grep | cut | zstd", lambda: pipe(scratch()), None))
        rows = []
        for what, rival, target in bench.some(*rivals):
            pairs = bench.pairs(ours, rival)
            rows.append(compare("archive", f"archive, ndjson.zst : {what}", pairs, target))
            if len(rows) == 1:
                rows.append(_cpu(pairs[0])._replace(name="archive"))
                memory = _memory_spread(pairs[0])
                rows.append(Row("archive", "memory, all processes", "MB", memory))
        return rows


@contextmanager
def _scratch(folder: Path) -> Iterator[Callable[[], Path]]:
    """Yields a function that makes new folders, all removed at the end: for some minutes after a
    deletion, ext4 avoids the deleted files' inodes, and takes ten times as long to create a file."""
    root = folder / f"files-{uuid.uuid4().hex[:8]}"
    root.mkdir(parents=True)
    try:
        yield lambda: root / uuid.uuid4().hex[:8]
    finally:
        shutil.rmtree(root)


def parsers(bench: Bench) -> list[Row]:
    """More parsers, until another stage, or the machine, is the limit."""
    source = bench.corpus(Shape(bench.events))
    by_number = _variants(
        bench, {f"{many}": (source, [f"--parsers={many}"], 1) for many in (1, 2, 4)}
    )
    one = by_number.pop("1")
    least = {"2": 0.98, "4": 0.95}
    return [
        compare(
            "parsers",
            f"--parsers={many} : 1",
            (samples, one),
            Target(least[many], at_least=True),
        )
        for many, samples in by_number.items()
    ]


def growth(bench: Bench) -> list[Row]:
    """Parameters whose cost grows more than proportionally."""
    least = bench.events // 2
    base = bench.corpus(Shape(least))
    tenfold = bench.corpus(Shape(least * 10))
    large = bench.corpus(Shape(least // 5, size_factor=10))
    # So many that all of them are within the window, and more than it may hold by default.
    many = bench.corpus(Shape(least * 10, dated_rate=least * 10 / (WINDOW_SECONDS / 2)))
    compared: dict[str, tuple[Corpus, list[str], int]] = {
        "10 times the events": (tenfold, [], 1),
        "10 times the size, per byte": (large, [], 1),
        # With so many partitions the first transactions on a new topic take a second.
        "64 partitions": (tenfold, [], 64),
        "500,000 identities in the window": (many, [], 1),
    }
    variants = _variants(bench, {"as usual": (base, [], 1), **dict(bench.some(*compared.items()))})
    usual = variants.pop("as usual")
    rows = []
    for name, samples in variants.items():
        is_long = "identities" in name or "partitions" in name
        against = variants["10 times the events"] if is_long else usual
        scale = large.mean_bytes / base.mean_bytes if "size" in name else 1.0
        target = Target(0.85 if "partitions" in name else 0.9, at_least=True)
        what = f"{name} : as usual"
        rows.append(compare("growth", what, (samples, against), target, scale))
    return rows


def _variants(
    bench: Bench, variants: dict[str, tuple[Corpus, list[str], int]]
) -> dict[str, list[Sample]]:
    """Run each variant into Kafka, `runs` times, in turns."""
    samples: dict[str, list[Sample]] = {name: [] for name in variants}
    for _ in range(bench.runs):
        for name, (source, flags, partitions) in variants.items():
            bench.tell(name)
            samples[name].append(bench.kafka(source, *flags, partitions=partitions))
    return samples


def tls(bench: Bench) -> list[Row]:
    """The relay over HTTPS, against itself over HTTP."""
    return [*_history_over_tls(bench), *_live_over_tls(bench)]


def _history_over_tls(bench: Bench) -> list[Row]:
    """At the relay's full speed, by the size of TLS records."""
    sources = {
        FULL_RECORD: bench.corpus(Shape(bench.events)),
        SEGMENT_RECORD: bench.corpus(Shape(bench.events)),
        BYTE_RECORD: bench.corpus(Shape(max(bench.events // BYTE_RECORD_PART, 1))),
    }
    sources = dict(bench.some(*sources.items()))
    over_http: list[Sample] = []
    by_size: dict[int, Pairs] = {size: ([], []) for size in sources}
    for _ in range(bench.runs):
        over_http.append(bench.kafka(sources[FULL_RECORD]))
        for size, source in sources.items():
            ours, curl = by_size[size]
            ours.append(bench.kafka(source, record_bytes=size))
            if shutil.which("curl"):
                curl.append(drained(source, size))
                bench.tell(f"curl > /dev/null {curl[-1].rate:,.0f} events/s")
    rows = []
    for size, (ours, curl) in by_size.items():
        target = Target(0.8, at_least=True) if size == FULL_RECORD else None
        what = f"history over HTTPS, records of {_bytes(size)}"
        rows.append(compare("tls", f"{what} : over HTTP", (ours, over_http), target))
        if curl:
            # The upper limit: curl receives all that the server can send.
            least = Target(0.5, at_least=True) if size == BYTE_RECORD else None
            rows.append(compare("tls", f"{what} : curl > /dev/null", (ours, curl), least))
    return rows


def _bytes(size: int) -> str:
    return "1 byte" if size == 1 else f"{size:,} bytes"


def _live_over_tls(bench: Bench) -> list[Row]:
    """One TLS record per line of an event, as the real service writes them."""
    rows = []
    watches: tuple[tuple[int, float, float | None, float | None], ...] = (
        (50, bench.seconds, None, 1.5),
        (200, bench.seconds * 2, 500.0, None),
    )
    for rate, seconds, lag_limit_ms, cpu_limit in bench.some(*watches):
        over_http = _watched(bench, rate, seconds)
        over_tls = _watched(bench, rate, seconds, FULL_RECORD)
        for name, unit, mine, plain, limit in (
            ("lag, p50,", "ms", over_tls.lag_ms(0.5), over_http.lag_ms(0.5), lag_limit_ms),
            ("CPU", "% of a core", over_tls.cpu_percent, over_http.cpu_percent, cpu_limit),
            ("unread", "bytes", over_tls.unread_bytes, over_http.unread_bytes, 0.0),
        ):
            target = None if limit is None else Target(limit, at_least=False)
            what = f"{name} at {rate} events/s over HTTPS : over HTTP"
            rows.append(Row("tls", what, unit, spread([mine]), spread([plain]), target=target))
    return rows


def live(bench: Bench) -> list[Row]:
    """Lag and cost of a live stream."""
    rows = []
    for rate in bench.some(50, 1000):
        what = f"at {rate} events/s"
        seen = _watched(bench, rate, bench.seconds)
        for part, limit in ((0.5, 300.0), (0.99, 600.0)):
            ms = spread([seen.lag_ms(part)])
            target = Target(limit, at_least=False)
            rows.append(Row("live", f"lag {what}, p{part * 100:g}", "ms", ms, target=target))
        idle = Target(1.5, at_least=False) if rate == 50 else None
        busy = spread([seen.cpu_percent])
        rows.append(Row("live", f"CPU {what}", "% of a core", busy, target=idle))
    return rows


class Watched(NamedTuple):
    """The result of watching a live stream."""

    lags_seconds: list[float]
    """The lags of all events, in ascending order."""
    cpu_percent: float
    """Percent of a core, for all processes of the relay."""
    unread_bytes: int
    """Unread a moment after the last event."""

    def lag_ms(self, part: float) -> float:
        """The lag that this part of the events did not exceed."""
        return self.lags_seconds[int(len(self.lags_seconds) * part)] * 1000


def _watched(bench: Bench, rate: int, seconds: float, record_bytes: int = PLAIN) -> Watched:
    """Let a relay follow a live stream."""
    events = int(rate * seconds)
    source = bench.corpus(Shape(events, chunk_bytes=0))
    bench.tell(f"{rate} events/s over {'HTTPS' if record_bytes else 'HTTP'} for {seconds:.0f} s")
    due = bench.folder / f"times-{uuid.uuid4().hex[:8]}"
    with (
        Upstream(source, record_bytes, rate, due) as upstream,
        Topic(bench.bootstrap) as topic,
        Arrivals(topic) as arrivals,
        Relay(*upstream.flags, *kafka_flags(bench.bootstrap, topic.name)) as relay,
    ):
        upstream.asked()
        until(lambda: arrivals.times, "the first event", LONGEST_SECONDS)
        meter, begun = Meter(relay.process.pid), time.monotonic()
        unread_bytes = upstream.unread_bytes()
        busy = meter.cpu_seconds() / (time.monotonic() - begun) * 100
        if not unread_bytes:
            # A relay that has fallen behind might never finish.
            relay.until(lambda: len(arrivals.times) >= events, "all", LONGEST_SECONDS)
        assert relay.stop() == 0, relay.log
        late = lags(due, arrivals.times, time.time())
    due.unlink()
    return Watched(sorted(late), busy, unread_bytes)


def start(bench: Bench) -> list[Row]:
    """From the command to the first event in a committed transaction."""
    source = bench.corpus(Shape(1000, chunk_bytes=0))
    seconds = []
    warming = 0 if bench.quick else 1
    for number in range(bench.runs + warming):
        with (
            Upstream(source, rate=50) as upstream,
            Topic(bench.bootstrap) as topic,
            Arrivals(topic) as arrivals,
        ):
            begun = time.time()
            with Relay(*upstream.flags, *kafka_flags(bench.bootstrap, topic.name)) as relay:
                relay.until(lambda: arrivals.times, "the first event", LONGEST_SECONDS)
        if number >= warming:
            # The first run warms the disk's cache.
            seconds.append(arrivals.times[0] - begun)
            bench.tell(f"{seconds[-1]:.2f} s")
    what = "from the command to the first published event"
    return [Row("start", what, "s", spread(seconds), target=Target(0.8, at_least=False))]


def against(bench: Bench) -> list[Row]:
    """This relay and that of another checkout (`--against`), in turns."""
    if bench.other is None:
        return []
    source = bench.corpus(Shape(bench.events))
    few = bench.corpus(Shape(bench.events // 4))
    rows = []
    with _scratch(bench.folder) as scratch:

        def into_kafka(record_bytes: int, checkout: Path | None) -> Sample:
            lz4 = "--kafka.compression=lz4"
            return relay_into_kafka(
                source, bench.bootstrap, lz4, record_bytes=record_bytes, checkout=checkout
            )

        def into_files(_: int, checkout: Path | None) -> Sample:
            return relay_into_files(few, scratch(), "--file.sync=none", checkout=checkout)

        for what, way, run in bench.some(
            ("into Kafka, lz4", PLAIN, into_kafka),
            ("the same over HTTPS", FULL_RECORD, into_kafka),
            ("into files, --file.sync=none", PLAIN, into_files),
        ):
            pairs = bench.pairs(partial(run, way, None), partial(run, way, bench.other))
            rows.append(compare("against", f"{what} : the other checkout", pairs))
            for cost, unit, of in (
                ("CPU for a million events", "s", _cpu_spread),
                ("memory of all processes (PSS)", "MiB", _memory_spread),
            ):
                ours, other = map(of, pairs)
                figure = ours.median / other.median
                rows.append(Row("against", f"{what}: {cost}", unit, ours, other, figure))
    return rows


def _memory_spread(samples: list[Sample]) -> Spread:
    return spread([sample.peak_bytes / MEBIBYTE for sample in samples])


def memory(bench: Bench) -> list[Row]:
    """Peak memory of all runs into Kafka; if run alone, of one with large events."""
    if not bench.samples:
        bench.kafka(bench.corpus(Shape(bench.events // 10, size_factor=10)))
    held = _memory_spread(bench.samples)
    target = Target(200, at_least=False)
    return [Row("memory", "all processes, most (PSS)", "MiB", held, None, held.most, target)]


TRIALS: dict[str, Trial] = {
    "kafka": kafka,
    "plain": plain,
    "files": files,
    "archive": archive,
    "parsers": parsers,
    "tls": tls,
    "live": live,
    "growth": growth,
    "start": start,
    "against": against,
    "memory": memory,
}
"""By name, in order; `memory` is last, because it uses the samples of all the others."""
