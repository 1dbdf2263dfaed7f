"""One run of the relay, or of a rival, over one file of events: how long, how much CPU, how much memory.

Time counts from the arrival of the request, so that nobody pays for the start of an interpreter, to
when the last event is where it should be: in a committed transaction, in a file under the durable
position, or acknowledged at the end of a rival that keeps no position.
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
from pleiades.sinks.files.destination import OWN_FOLDER
from pleiades.sinks.kafka.offset_metadata import read_stored
from tests.benchmarks.corpus import STREAM, Corpus
from tests.benchmarks.serve import MAX_RECORD_BYTES
from tests.harness.destinations import DEAD_LETTERS, Directory
from tests.harness.relay import Relay, ingest_flags, kafka_flags

SINCE = "2001-01-01T00:00:00Z"
LONGEST_SECONDS = 300.0
REQUEST_SECONDS = 30.0
LOOK_SECONDS = 0.05
"""Between two looks for the end: to look all the time took 6 % of the two cores from the relay."""
MEASURE_SECONDS = 0.25
PLAIN = 0
"""In place of the size of TLS records: HTTP without TLS."""
FULL_RECORD = MAX_RECORD_BYTES
"""The usual size of TLS records where much is sent at a time."""


class Sample(NamedTuple):
    """What one run took."""

    events: int
    seconds: float
    cpu_seconds: float = 0.0
    """Of all its processes, from the request to the end; 0: not measured."""
    peak_bytes: int = 0
    """The most memory that all its processes held together (PSS: shared pages count once)."""

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds


class Upstream:
    """The process that serves a file.

    Args:
        corpus: the file.
        record_bytes: at most in one TLS record; `PLAIN`: HTTP without TLS.
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
        """Of a relay that reads all events."""
        trust = [f"--upstream.ca={self._authority}"] if self._authority else []
        return [*ingest_flags(self.url, SINCE), *trust]

    @property
    def environment(self) -> dict[str, str]:
        """Of a rival: curl and requests trust the authority of these files."""
        if self._authority is None:
            return {}
        return dict.fromkeys(("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"), str(self._authority))

    def asked(self) -> float:
        """Wait for a request that is answered with events; when it came, `time.monotonic()`."""
        while True:
            came, fresh = self._said("request")
            if fresh == "1":
                return float(came)

    def unread_bytes(self) -> int:
        """Wait until all events are due, and a moment more; what the client has not read then."""
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
        """Take note of the memory now."""
        held = sum(process.memory_full_info().pss for process in self._family())
        self.peak_bytes = max(self.peak_bytes, held)

    def cpu_seconds(self) -> float:
        """Since this was made."""
        return self._cpu() - self._begun


def _cpu_seconds(pid: int) -> float:
    """Of all threads of a process, to the nanosecond: /proc counts by 10 ms, in which an idle relay does
    nothing. The clock is what clock_getcpuclockid(3) gives on Linux.
    """
    return time.clock_gettime((~pid << 3) | 2)


class Topic:
    """A topic of one's own, with one for its dead letters; deleted in the end."""

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
        """What asks for the committed position."""
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
        """Offsets given so far: what a rival without transactions has published."""
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
    """Ours, from the first event to the last in a committed transaction.

    Args:
        checkout: the relay of another checkout; None: this one.
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
    """Ours, from the first event to the durable position behind the last; `checkout`: as above."""
    checkpoint = folder / OWN_FOLDER / f"checkpoint-{STREAM}"

    def position() -> Position:
        try:
            return decode_checkpoint(checkpoint.read_bytes()).position
        except FileNotFoundError:
            return {}

    with (
        Upstream(corpus) as upstream,
        _relay(checkout, *upstream.flags, *Directory(folder).flags, *flags) as relay,
    ):
        sample = _until_all_is_there(corpus, upstream, relay, position)
        assert relay.stop() == 0, relay.log
    return sample


def _relay(checkout: Path | None, *flags: str) -> Relay:
    if checkout is None:
        return Relay(*flags)
    # All its processes must import it, whatever is installed.
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
    # A short run is over before it was measured.
    meter.look()
    return Sample(corpus.events, seconds, cpu_seconds, meter.peak_bytes)


def rival_into_kafka(
    corpus: Corpus,
    bootstrap: str,
    command: Callable[[str, str], list[str]],
    record_bytes: int = PLAIN,
) -> Sample:
    """A program that ends with the stream, from its request to its end.

    Args:
        command: the program, for a URL and a topic. Over TLS it finds the authority to trust in the
            environment, as curl and requests do.
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
    """curl into /dev/null: how much the upstream can send."""
    with Upstream(corpus, record_bytes) as upstream:
        command = ["curl", "-sN", "-o", os.devnull, f"{upstream.url}/{STREAM}"]
        process = subprocess.Popen(command, env=os.environ | upstream.environment)
        asked = upstream.asked()
        assert process.wait(LONGEST_SECONDS) == 0
        return Sample(corpus.events, time.monotonic() - asked)


def rival_into_files(corpus: Corpus, folder: Path) -> Sample:
    """Open, write, close."""
    command = [sys.executable, "-m", "tests.benchmarks.plain_files", str(corpus.path), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Sample(corpus.events, float(done.stdout))


class Arrivals:
    """Reads a topic's committed records as they come, and notes when."""

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
                # Not the half second by default that it waits where a new topic has no leader yet.
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
    """Seconds from when each event was due to its arrival; events that have not arrived arrive now."""
    times = array("d")
    times.frombytes(due.read_bytes())
    assert len(arrived) <= len(times), "doubled events"
    return [there - begun for begun, there in zip_longest(times, arrived, fillvalue=now)]
