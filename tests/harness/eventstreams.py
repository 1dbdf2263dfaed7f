"""The real upstream: Wikimedia's own SSE layer, started by `scripts/eventstreams`, in front of a Kafka.

A test writes events into the upstream topics and reads them back over HTTP or HTTPS.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import orjson
import psutil
import pytest
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from pleiades.simulator.journal import JournalEntry
from pleiades.simulator.server import Stats
from tests.harness.broker import Guard, free_port
from tests.harness.prerequisites import NODE, require
from tests.harness.waiting import until

SCRIPT = Path(__file__).parents[2] / "scripts" / "eventstreams"

SCRIPT_TIMEOUT_SECONDS = 60
# What kafka-sse logs before it sends the headers.
STREAM_BEGUN = b"starting consume loop"
KAFKA_TIMEOUT_SECONDS = 30
DELIVERY_TIMEOUT_SECONDS = 120

DATA_CENTRES = ("eqiad", "codfw")


def now_ms() -> int:
    """The wall clock, ms since 1970."""
    return time.time_ns() // 1_000_000


def topics_of(stream: str) -> tuple[str, str]:
    """The topics behind a stream, of the first data centre and of the second."""
    first, second = (f"{data_centre}.mediawiki.{stream}" for data_centre in DATA_CENTRES)
    return first, second


def run_script(*arguments: str) -> None:
    """Run `scripts/eventstreams`; its errors fail the test, but what it lacks skips it."""
    require(NODE)
    done = subprocess.run(
        [SCRIPT, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SCRIPT_TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"scripts/eventstreams {' '.join(arguments)}: {done.stderr}"


class EventStreams:
    """One instance of the service; the `with` block starts and stops it. It never outlives this process.

    Args:
        folder: its pid, log and certificate.
        bootstrap: host:port of the Kafka that it reads from and that `produce` writes to.
        streams: those that it serves; their topics are created.
        options: more of the script's, such as `--cut-seconds`, `5`.
    """

    def __init__(
        self,
        folder: Path,
        bootstrap: str,
        streams: Sequence[str] = ("recentchange",),
        options: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.streams = tuple(streams)
        self.started_ms = now_ms()
        self._bootstrap = bootstrap
        # The second one is for HTTPS.
        self._port = free_port(span=2)
        self._options = options
        self._guard = Guard(folder, SCRIPT)
        self._lock = threading.Lock()
        self._journal: list[JournalEntry] = []
        self._refused: list[KafkaError] = []
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                # The order within a topic is that of the calls, whatever happens to the broker.
                "enable.idempotence": True,
                "linger.ms": 0,
                "reconnect.backoff.max.ms": 200,
                "log_level": 0,
            }
        )

    def __enter__(self) -> EventStreams:
        try:
            self.create_topics(topic for stream in self.streams for topic in topics_of(stream))
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- the service ----

    @property
    def url(self) -> str:
        """What a client puts a slash and its streams behind."""
        return f"http://127.0.0.1:{self._port}/v2/stream"

    @property
    def tls_url(self) -> str:
        """The same over HTTPS; clients must trust `ca`."""
        return f"https://127.0.0.1:{self._port + 1}/v2/stream"

    @property
    def ca(self) -> Path:
        """The certificate authority's certificate, in PEM."""
        return self.folder / "tls" / "ca.pem"

    @property
    def process(self) -> psutil.Process:
        """The running service."""
        return psutil.Process(int((self.folder / "pid").read_text()))

    def streams_begun(self) -> int:
        """How many connections have got a stream, since the start of the process."""
        return (self.folder / "service.log").read_bytes().count(STREAM_BEGUN)

    def start(self) -> None:
        """Start, or start again with the same ports and certificate; returns when it answers."""
        self._guard.post()
        run_script(
            "start",
            "--dir",
            str(self.folder),
            "--bootstrap",
            self._bootstrap,
            "--port",
            str(self._port),
            "--tls-port",
            str(self._port + 1),
            "--streams",
            ",".join(self.streams),
            *self._options,
        )

    def stop(self) -> None:
        """End it, if it runs: all its connections break."""
        run_script("stop", "--dir", str(self.folder))
        self._guard.dismiss()

    def kill(self) -> None:
        """SIGKILL; returns when it is dead."""
        process = self.process
        process.send_signal(signal.SIGKILL)
        process.wait(KAFKA_TIMEOUT_SECONDS)

    # ---- its Kafka ----

    def create_topics(self, topics: Iterable[str]) -> None:
        """Make topics of one partition; those that are there already stay as they are."""
        admin = AdminClient({"bootstrap.servers": self._bootstrap})
        made = admin.create_topics(
            [NewTopic(topic, 1, 1) for topic in topics], request_timeout=KAFKA_TIMEOUT_SECONDS
        )
        for creation in made.values():
            try:
                creation.result(KAFKA_TIMEOUT_SECONDS)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise

    def produce(self, topic: str, timestamp_ms: int, value: bytes) -> None:
        """Write an event, later or now; `flush` waits for it. Its identity is `meta.id`."""
        self._producer.produce(
            topic, value, partition=0, timestamp=timestamp_ms, on_delivery=self._delivered
        )
        self._producer.poll(0)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._refused.append(error)
            return
        topic, offset, value = message.topic(), message.offset(), message.value()
        assert topic is not None
        assert offset is not None
        meta = orjson.loads(value or b"")["meta"]
        canary = meta.get("domain") == "canary"
        entry = JournalEntry(topic, 0, offset, message.timestamp()[1], meta["id"], canary)
        with self._lock:
            self._journal.append(entry)

    def flush(self, timeout_seconds: float = DELIVERY_TIMEOUT_SECONDS) -> None:
        """Wait until the Kafka has all events."""
        left = self._producer.flush(timeout_seconds)
        assert not left, f"{left} events not delivered in {timeout_seconds:g} s"
        assert not self._refused, self._refused

    def journal(self) -> list[JournalEntry]:
        """All events that the Kafka has acknowledged; those of a topic in the order of their offsets."""
        with self._lock:
            return list(self._journal)

    def stats(self) -> Stats:
        """What is known of a simulator's counters: how many events there are."""
        return Stats(events_appended_total=len(self.journal()))

    def wait_for_appended(self, count: int, timeout_seconds: float) -> None:
        """Wait until the Kafka has so many events in all."""
        until(lambda: len(self.journal()) >= count, f"{count} events upstream", timeout_seconds)


@pytest.fixture
def eventstreams(kafka: str, tmp_path: Path) -> Iterator[EventStreams]:
    """The real service in front of the run's Kafka, with one stream of this test's own."""
    with EventStreams(tmp_path / "eventstreams", kafka, [f"test-{uuid.uuid4()}"]) as service:
        yield service
