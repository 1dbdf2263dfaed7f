"""One run of the relay, or of a rival, over one file of events: time, CPU and memory.

Time counts from the arrival of the request, so that an interpreter's start does not count. It ends when
the last event has arrived: in a committed transaction, in a file under the durable position, or, for a
rival without a position, acknowledged at its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import psutil
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from pleiades.core.checkpoint import decode_checkpoint
from pleiades.core.position import Position
from pleiades.sinks.directory import OWN_FOLDER
from pleiades.sinks.kafka.offset_metadata import read_stored
from tests.benchmarks.corpus import STREAM, Corpus
from tests.benchmarks.serve import MAX_RECORD_BYTES
from tests.harness.destinations import DEAD_LETTERS, Directory
from tests.harness.relay import Relay, ingest_flags, kafka_flags

SINCE = "2001-01-01T00:00:00Z"
LONGEST_SECONDS = 300.0
REQUEST_SECONDS = 30.0
LOOK_SECONDS = 0.05
"""Interval of the checks for the end: checking continuously took 6 % of the two cores from the relay."""
MEASURE_SECONDS = 0.25
PLAIN = 0
"""Stands for a TLS record size: HTTP without TLS."""
FULL_RECORD = MAX_RECORD_BYTES
"""The usual size of TLS records when much is sent at a time."""


class Sample(NamedTuple):
    """The measurements of one run."""

    events: int
    seconds: float
    cpu_seconds: float = 0.0
    """CPU time of all its processes, from the request to the end; 0: not measured."""
    peak_bytes: int = 0
    """The peak memory of all its processes together (PSS: shared pages count once)."""

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds


class Upstream:
    """The process that serves a file.

    Args:
        corpus: the file.
        record_bytes: limit of one TLS record; `PLAIN`: HTTP without TLS.
        rate: events per second; 0: as fast as the client reads.
        times: receives the times at which events were due.
    """

    def __init__(
        self,
        corpus: Corpus,
        record_bytes: int = PLAIN,
        rate: float = 0.0,
        times: Path | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self._authority = Path(self._folder.name) / "ca.pem" if record_bytes else None
        command = [sys.executable, "-m", "tests.benchmarks.serve", str(corpus.path)]
        command += [f"--rate={rate}"] if rate else []
        command += [f"--times={times}"] if times else []
        if self._authority:
            command += [f"--ca={self._authority}", f"--record={record_bytes}"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._lines = self._process.stdout
        scheme = "https" if record_bytes else "http"
        self.url = f"{scheme}://127.0.0.1:{int(self._lines.readline())}/v2/stream"

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._lines.close()
        self._folder.cleanup()

    @property
    def flags(self) -> list[str]:
        """Flags of a relay that reads all events."""
        trust = [f"--upstream.ca={self._authority}"] if self._authority else []
        return [*ingest_flags(self.url, SINCE), *trust]

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a rival: curl and requests trust the authority in these files."""
        if self._authority is None:
            return {}
        return dict.fromkeys(("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"), str(self._authority))

    def asked(self) -> float:
        """Wait for a request that gets events; returns its time by `time.monotonic()`."""
        while True:
            came, fresh = self._said("request")
            if fresh == "1":
                return float(came)

    def unread_bytes(self) -> int:
        """Wait until a moment after all events are due; returns the number of unread bytes."""
        (unread_bytes,) = self._said("unread")
        return int(unread_bytes)

    def _said(self, kind: str) -> list[str]:
        for line in self._lines:
            found, *facts = line.split()
            if found == kind:
                return facts
        raise AssertionError("the upstream ended")


class Meter:
    """CPU and memory of a process and all its descendants."""

    def __init__(self, pid: int) -> None:
        self._parent = psutil.Process(pid)
        self._begun = self._cpu()
        self.peak_bytes = 0

    def _family(self) -> list[psutil.Process]:
        return [self._parent, *self._parent.children(recursive=True)]

    def _cpu(self) -> float:
        return sum(_cpu_seconds(process.pid) for process in self._family())

    def look(self) -> None:
        """Sample the current memory."""
        held = sum(process.memory_full_info().pss for process in self._family())
        self.peak_bytes = max(self.peak_bytes, held)

    def cpu_seconds(self) -> float:
        """The CPU time since the creation of this meter."""
        return self._cpu() - self._begun


def _cpu_seconds(pid: int) -> float:
    """The CPU time of all threads of a process, to the nanosecond: /proc counts in steps of 10 ms, in
    which an idle relay does nothing. The clock is that of clock_getcpuclockid(3) on Linux."""
    return time.clock_gettime((~pid << 3) | 2)


class Topic:
    """A private topic, with its dead-letter topic; deleted in the end."""

    def __init__(self, bootstrap: str, partitions: int = 1) -> None:
        self.bootstrap = bootstrap
        self.name = f"bench-{uuid.uuid4().hex[:12]}"
        self._admin = AdminClient({"bootstrap.servers": bootstrap})
        wanted = [NewTopic(self.name, partitions, 1), NewTopic(self.name + DEAD_LETTERS, 1, 1)]
        for made in self._admin.create_topics(wanted).values():
            made.result(REQUEST_SECONDS)

    def __enter__(self) -> Topic:
        return self

    def __exit__(self, *_: object) -> None:
        for deleted in self._admin.delete_topics([self.name, self.name + DEAD_LETTERS]).values():
            deleted.result(REQUEST_SECONDS)

    @contextmanager
    def position(self) -> Iterator[Callable[[], Position]]:
        """Yields a function that returns the committed position."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": f"pleiades-{self.name}-{STREAM}",
                "isolation.level": "read_committed",
            }
        )

        def ask() -> Position:
            (found,) = consumer.committed([TopicPartition(self.name, 0)], REQUEST_SECONDS)
            at, metadata = (self.name, 0), found.metadata
            return read_stored({at: metadata}, at).checkpoint.position if metadata else {}

        try:
            yield ask
        finally:
            consumer.close()

    def events(self) -> int:
        """The number of offsets: the published events of a rival without transactions."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": self.name})
        try:
            _, end = consumer.get_watermark_offsets(TopicPartition(self.name, 0), REQUEST_SECONDS)
        finally:
            consumer.close()
        return int(end)


def relay_into_kafka(
    corpus: Corpus,
    bootstrap: str,
    *flags: str,
    partitions: int = 1,
    record_bytes: int = PLAIN,
    checkout: Path | None = None,
) -> Sample:
    """Run the relay from the first event to the last one in a committed transaction.

    Args:
        checkout: another checkout, whose relay is run; None: this one.
    """
    with (
        Upstream(corpus, record_bytes) as upstream,
        Topic(bootstrap, partitions) as topic,
        topic.position() as position,
        _relay(checkout, *upstream.flags, *kafka_flags(bootstrap, topic.name), *flags) as relay,
    ):
        sample = _until_all_is_there(corpus, upstream, relay, position)
        assert relay.stop() == 0, relay.log
    return sample


def relay_into_files(
    corpus: Corpus, folder: Path, *flags: str, checkout: Path | None = None
) -> Sample:
    """Run the relay from the first event to the durable position after the last; see above."""
    flags = (*Directory(folder).flags, *flags)
    return _relay_into_directory(corpus, folder, *flags, checkout=checkout)


def relay_into_archive(corpus: Corpus, folder: Path) -> Sample:
    """The same into an archive."""
    return _relay_into_directory(
        corpus, folder, "--archive.enable", f"--archive.dir={folder}", checkout=None
    )


def _relay_into_directory(
    corpus: Corpus, folder: Path, *flags: str, checkout: Path | None
) -> Sample:
    checkpoint = folder / OWN_FOLDER / f"checkpoint-{STREAM}"

    def position() -> Position:
        try:
            return decode_checkpoint(checkpoint.read_bytes()).position
        except FileNotFoundError:
            return {}

    with (
        Upstream(corpus) as upstream,
        _relay(checkout, *upstream.flags, *flags) as relay,
    ):
        sample = _until_all_is_there(corpus, upstream, relay, position)
        assert relay.stop() == 0, relay.log
    return sample


def _relay(checkout: Path | None, *flags: str) -> Relay:
    if checkout is None:
        return Relay(*flags)
    # All its processes must import this checkout, whatever is installed.
    return Relay(*flags, cwd=checkout, environment={"PYTHONPATH": str(checkout)})


def _until_all_is_there(
    corpus: Corpus, upstream: Upstream, relay: Relay, position: Callable[[], Position]
) -> Sample:
    asked = upstream.asked()
    meter = Meter(relay.process.pid)
    looked = measured = asked

    def is_there() -> bool:
        nonlocal looked, measured
        now = time.monotonic()
        if now - looked < LOOK_SECONDS:
            return False
        looked = now
        if now - measured >= MEASURE_SECONDS:
            measured = now
            meter.look()
        return {topic: ms for (topic, _), ms in position().items()} == corpus.reached_ms

    relay.until(is_there, "all events", LONGEST_SECONDS)
    seconds, cpu_seconds = time.monotonic() - asked, meter.cpu_seconds()
    # A short run may end before the first sample.
    meter.look()
    return Sample(corpus.events, seconds, cpu_seconds, meter.peak_bytes)


def rival_into_kafka(
    corpus: Corpus,
    bootstrap: str,
    command: Callable[[str, str], list[str]],
    record_bytes: int = PLAIN,
) -> Sample:
    """Run a program that ends with the stream, from its request to its end.

    Args:
        command: the program, for a URL and a topic. For TLS, the environment names the trusted
            authority, as for curl and requests.
    """
    with Upstream(corpus, record_bytes) as upstream, Topic(bootstrap) as topic:
        process = subprocess.Popen(
            command(f"{upstream.url}/{STREAM}", topic.name), env=os.environ | upstream.environment
        )
        asked = upstream.asked()
        assert process.wait(LONGEST_SECONDS) == 0
        seconds = time.monotonic() - asked
        assert topic.events() == corpus.events, "the rival lost or doubled events"
    return Sample(corpus.events, seconds)


def drained(corpus: Corpus, record_bytes: int) -> Sample:
    """curl into /dev/null: the upstream's maximum rate."""
    with Upstream(corpus, record_bytes) as upstream:
        command = ["curl", "-sN", "-o", os.devnull, f"{upstream.url}/{STREAM}"]
        process = subprocess.Popen(command, env=os.environ | upstream.environment)
        asked = upstream.asked()
        assert process.wait(LONGEST_SECONDS) == 0
        return Sample(corpus.events, time.monotonic() - asked)


def rival_into_archive(corpus: Corpus, folder: Path) -> Sample:
    """A pipe of standard tools into one compressed file; neither exactly once nor resumable."""
    folder.mkdir()
    with Upstream(corpus) as upstream:
        pipe = 'curl -sN "$0" | grep -a \'^data:\' | cut -c7- | zstd -q -3 -o "$1"'
        url, target = f"{upstream.url}/{STREAM}", str(folder / "events.ndjson.zst")
        process = subprocess.Popen(["sh", "-c", pipe, url, target])
        asked = upstream.asked()
        assert process.wait(LONGEST_SECONDS) == 0
        return Sample(corpus.events, time.monotonic() - asked)


def rival_into_files(corpus: Corpus, folder: Path) -> Sample:
    """Open, write, close."""
    command = [sys.executable, "-m", "tests.benchmarks.plain_files", str(corpus.path), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Sample(corpus.events, float(done.stdout))


class Arrivals:
    """Reads a topic's committed records as they arrive, and records the times."""

    def __init__(self, topic: Topic) -> None:
        self.times: list[float] = []
        self._over = threading.Event()
        self._consumer = Consumer(
            {
                "bootstrap.servers": topic.bootstrap,
                "group.id": f"{topic.name}-arrivals",
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                # Instead of the default wait of half a second while a new topic has no leader yet.
                "fetch.error.backoff.ms": 10,
                "topic.metadata.refresh.fast.interval.ms": 10,
            }
        )
        self._consumer.assign([TopicPartition(topic.name, 0, 0)])
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Arrivals:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._consumer.close()

    def _read(self) -> None:
        while not self._over.is_set():
            for message in self._consumer.consume(1000, 0.05):
                assert message.error() is None, message.error()
                self.times.append(time.time())


def lags(due: Path, arrived: list[float], now: float) -> list[float]:
    """Seconds from each event's due time to its arrival; missing events count as arriving now."""
    times = array("d")
    times.frombytes(due.read_bytes())
    assert len(arrived) <= len(times), "doubled events"
    return [there - begun for begun, there in zip_longest(times, arrived, fillvalue=now)]
