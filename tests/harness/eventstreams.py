"""The SSE layer of the real EventStreams, started by `scripts/eventstreams`, and events for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from pleiades.simulator.log import JournalEntry
from tests.harness.broker import free_port
from tests.harness.prerequisites import KAFKA, NODE, require

SCRIPT = Path(__file__).parents[2] / "scripts" / "eventstreams"
SCRIPT_TIMEOUT_SECONDS = 600
"""The very first start builds Node's Kafka client."""
KAFKA_TIMEOUT_SECONDS = 30
DATA_CENTRES = ("eqiad", "codfw")


class EventStreams:
    """The real service; the `with` block starts and stops it.

    Args:
        bootstrap: host:port of the Kafka that it reads.
        streams: the streams that it serves.
        max_connections: per address; 0: no limit.
        cut_seconds: lifetime of a connection; 0: no limit.
    """

    def __init__(
        self,
        bootstrap: str,
        streams: Iterable[str] = ("recentchange",),
        max_connections: int = 0,
        cut_seconds: float = 0.0,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pleiades-eventstreams-")
        self._port, self._tls_port = free_port(1), free_port(1)
        self._options = [
            f"--bootstrap={bootstrap}",
            f"--streams={','.join(streams)}",
            f"--port={self._port}",
            f"--tls-port={self._tls_port}",
            f"--max-connections={max_connections}",
            f"--cut-seconds={cut_seconds}",
        ]

    def __enter__(self) -> EventStreams:
        try:
            self.start()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._folder.cleanup()

    @property
    def url(self) -> str:
        """The URL to which a client appends a slash and its streams."""
        return f"http://127.0.0.1:{self._port}/v2/stream"

    @property
    def tls_url(self) -> str:
        """The HTTPS counterpart of `url`."""
        return f"https://127.0.0.1:{self._tls_port}/v2/stream"

    @property
    def ca(self) -> Path:
        """PEM file of the authority that an HTTPS client must trust."""
        return Path(self._folder.name) / "tls" / "ca.pem"

    def start(self) -> None:
        """Start, or start again at the same ports; returns when the service answers."""
        require(NODE)
        self._run("start", *[part for option in self._options for part in option.split("=", 1)])

    def stop(self) -> None:
        """End it and all its connections; harmless if it is not running."""
        self._run("stop")

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def cut_all(self) -> None:
        """Cut all connections, possibly inside an event."""
        os.kill(int((Path(self._folder.name) / "pid").read_text()), signal.SIGUSR2)

    def _run(self, command: str, *options: str) -> None:
        done = subprocess.run(
            [SCRIPT, command, "--dir", self._folder.name, *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SCRIPT_TIMEOUT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"scripts/eventstreams {command}: {done.stderr}"


class UpstreamTopics:
    """The topics behind a private stream, and their events.

    Args:
        bootstrap: host:port of a running broker.
        stream: None: a name that no other test uses.
    """

    def __init__(self, bootstrap: str, stream: str | None = None) -> None:
        require(KAFKA)
        self.stream = stream or f"test-{uuid.uuid4().hex}"
        self.eqiad, self.codfw = (f"{centre}.mediawiki.{self.stream}" for centre in DATA_CENTRES)
        self._admin = AdminClient({"bootstrap.servers": bootstrap})
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        self._journal: list[JournalEntry] = []
        self._changed = threading.Lock()

    def __enter__(self) -> UpstreamTopics:
        self.create(self.eqiad, self.codfw)
        return self

    def __exit__(self, *_: object) -> None:
        self.delete(self.eqiad, self.codfw)

    def create(self, *topics: str) -> None:
        """Create these topics."""
        new = [NewTopic(topic, 1, 1) for topic in topics]
        for creation in self._admin.create_topics(new).values():
            creation.result(KAFKA_TIMEOUT_SECONDS)

    def delete(self, *topics: str) -> None:
        """Delete these topics and their contents."""
        for deletion in self._admin.delete_topics(list(topics)).values():
            deletion.result(KAFKA_TIMEOUT_SECONDS)

    def produce(self, topic: str, *timestamps_ms: int) -> list[str]:
        """Append one event per Kafka timestamp; returns their identities once Kafka has them.

        Args:
            topic: `eqiad` or `codfw` of this object.
            timestamps_ms: in the order of the offsets, ms since 1970; none: one event, now.
        """
        with self._changed:
            added = [
                self._produce(topic, ms) for ms in timestamps_ms or (time.time_ns() // 1_000_000,)
            ]
            assert self._producer.flush(KAFKA_TIMEOUT_SECONDS) == 0, "Kafka did not take the events"
        return added

    def _produce(self, topic: str, timestamp_ms: int) -> str:
        identity = str(uuid.uuid4())

        def delivered(error: object, message: object) -> None:
            assert error is None, error
            offset: int = message.offset()  # type: ignore[attr-defined]
            entry = JournalEntry(topic, 0, offset, timestamp_ms, identity, canary=False)
            self._journal.append(entry)

        event = {
            "$schema": "/mediawiki/recentchange/1.0.0",
            "meta": {
                "id": identity,
                "dt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(timestamp_ms / 1000)),
                "domain": "en.wikipedia.org",
                "stream": f"mediawiki.{self.stream}",
            },
            "type": "edit",
            "title": "Žižkov 😀",
            "comment": "x" * 500,
        }
        value = json.dumps(event, ensure_ascii=False).encode()
        self._producer.produce(
            topic, value, partition=0, timestamp=timestamp_ms, on_delivery=delivered
        )
        return identity

    def journal(self) -> list[JournalEntry]:
        """All events produced so far, in the order of each topic's offsets."""
        with self._changed:
            return list(self._journal)
