"""The relay's destination seen from outside: counts its events and judges them."""

from __future__ import annotations

import contextlib
import json
import uuid
from pathlib import Path
from typing import Protocol

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from pleiades.simulator.log import JournalEntry
from tests.harness import archived
from tests.harness.broker import FETCH_MESSAGES, topic_records
from tests.harness.oracle import Verdict, judge, judge_lines, judge_topic, published_count
from tests.harness.relay import kafka_flags

DEAD_LETTERS = "-dead-letters"
METADATA_SECONDS = 2.0
FOLLOW_SECONDS = 0.02


class Destination(Protocol):
    """The interface of a destination for the rows of the fault matrix."""

    name: str
    flags: list[str]
    """The relay's flags to publish here."""
    published_metric: str

    def count(self) -> int:
        """The number of events that a reader can see now."""
        ...

    def judge(self, journal: list[JournalEntry], since_ms: int, finished: bool) -> Verdict:
        """Read everything from scratch and compare; see `oracle.judge`."""
        ...

    def values(self) -> list[bytes]:
        """The published events' bytes, in no particular order."""
        ...

    def dead_letters(self) -> int:
        """The number of dead letters."""
        ...

    def close(self) -> None:
        """End its reader."""
        ...


class Directory:
    """One file per event."""

    name = "files"
    published_metric = "pleiades_file_publish_events_total"
    errors_metric = "pleiades_file_publish_errors_total"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.flags = ["--file.enable", f"--file.publishDir={folder}"]

    @property
    def working(self) -> Path:
        """The folder into which the relay writes before anything has its name."""
        return self.folder / ".pleiades" / "staging"

    def in_the_way(self) -> list[str]:
        """Paths in the directory at which a foreign file would be in the way."""
        return [max(path.name for path in self.folder.glob("2*")), ".pleiades/staging"]

    def count(self) -> int:
        """The number of published files."""
        return published_count(self.folder)

    def identities(self) -> set[str]:
        """The identities in the names, which are `<UTC time>-<identity>.json`."""
        return {path.stem.partition("-")[2] for path in self.folder.glob("[0-9]*/*.json")}

    def judge(self, journal: list[JournalEntry], since_ms: int, finished: bool) -> Verdict:
        """See `oracle.judge`."""
        return judge(self.folder, journal, since_ms, finished)

    def values(self) -> list[bytes]:
        """The contents without the final newline of each file."""
        return [path.read_bytes().removesuffix(b"\n") for path in self.folder.glob("[0-9]*/*.json")]

    def dead_letters(self) -> int:
        """The number of dead-letter files."""
        letters = self.folder / ".pleiades" / "dead-letters"
        return len(list(letters.iterdir())) if letters.is_dir() else 0

    def close(self) -> None:
        """Do nothing: a directory has no reader."""


class Archive(Directory):
    """Compressed segments, closed every few seconds."""

    name = "archive"
    published_metric = "pleiades_archive_publish_events_total"
    errors_metric = "pleiades_archive_publish_errors_total"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.flags = ["--archive.enable", f"--archive.dir={folder}", "--archive.rotate=3s"]

    @property
    def working(self) -> Path:
        """See `Directory.working`."""
        return self.folder / ".pleiades" / "segments"

    def in_the_way(self) -> list[str]:
        """See `Directory.in_the_way`."""
        return [".pleiades/segments"]

    def count(self) -> int:
        """The number of events that the checkpoint covers."""
        with contextlib.suppress(FileNotFoundError):
            return archived.count(self.folder)
        return 0

    def identities(self) -> set[str]:
        """`meta.id` of all events."""
        return {json.loads(line)["meta"]["id"] for line in self.values()}

    def judge(self, journal: list[JournalEntry], since_ms: int, finished: bool) -> Verdict:
        """See `oracle.judge_lines`."""
        return judge_lines(self.values(), journal, since_ms, finished)

    def values(self) -> list[bytes]:
        """The lines."""
        return archived.lines(self.folder)

    def dead_letters(self) -> int:
        """The number of dead letters."""
        return len(archived.letters(self.folder))


class Topic:
    """A topic of a real Kafka, followed by a reader of committed records."""

    name = "kafka"
    published_metric = "pleiades_kafka_publish_events_total"

    def __init__(self, bootstrap: str, topic: str | None = None) -> None:
        self.bootstrap = bootstrap
        self.topic = topic or f"faults-{uuid.uuid4()}"
        self.flags = kafka_flags(bootstrap, self.topic)
        self._follower: Consumer | None = None
        self._seen = 0

    def count(self) -> int:
        """The number of records that the follower has received since the beginning."""
        if self._follower is None:
            self._follower = self._follow()
            if self._follower is None:
                return 0
        while messages := self._follower.consume(FETCH_MESSAGES, FOLLOW_SECONDS):
            self._seen += sum(message.error() is None for message in messages)
        return self._seen

    def _follow(self) -> Consumer | None:
        follower = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": f"follower-{uuid.uuid4()}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "reconnect.backoff.max.ms": 200,
                # The relay reports these errors itself.
                "log_level": 0,
            }
        )
        try:
            described = follower.list_topics(self.topic, timeout=METADATA_SECONDS)
        except KafkaException:
            follower.close()
            return None
        found = described.topics[self.topic]
        if found.error is not None:
            follower.close()
            return None
        follower.assign(
            [TopicPartition(self.topic, number, OFFSET_BEGINNING) for number in found.partitions]
        )
        return follower

    def judge(self, journal: list[JournalEntry], since_ms: int, finished: bool) -> Verdict:
        """See `oracle.judge_topic`."""
        return judge_topic(self.bootstrap, self.topic, journal, since_ms, finished)

    def values(self) -> list[bytes]:
        """The committed records' values."""
        return [record.value or b"" for record in topic_records(self.bootstrap, self.topic)]

    def dead_letters(self) -> int:
        """The number of committed records in the dead-letter topic."""
        return len(topic_records(self.bootstrap, self.topic + DEAD_LETTERS))

    def close(self) -> None:
        """End the follower."""
        if self._follower is not None:
            self._follower.close()
            self._follower = None
