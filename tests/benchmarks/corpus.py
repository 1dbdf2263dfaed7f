"""The served data: seeded events of recorded shapes as the bytes of an HTTP body, made once and kept.

The bodies, the disorder of the timestamps and the alternation of the topics are those of the local
upstream (`pleiades.simulator`). Here they are framed beforehand, including the chunks of the transfer
encoding, so that serving them costs next to nothing.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import orjson

from pleiades.core.framing import ids_in
from pleiades.core.ids import read_ids
from pleiades.core.resume_cursor import ResumeCursor
from pleiades.simulator.feed import Feed
from pleiades.simulator.generator import generated
from pleiades.simulator.log import Cluster, Fresh, UpstreamLog, sources_of
from pleiades.simulator.request import Asked
from pleiades.simulator.settings import DATA_CENTRES, SimulatorSettings, topics_of
from tests.harness.script import chunked

VERSION = 4
"""The version of the file format; another version remakes the files."""
SEED = 20_250_601
STREAM = "recentchange"
ENDED_MS = 1_764_000_000_000
"""The newest event is dated shortly before."""
LIVE_RATE = 40.0
"""Events per second in the timestamps of the history, as in the real stream."""
CHUNK_BYTES = 16 * 1024
"""Chunk size of the transfer encoding: a proxy's buffer. The real service writes each line separately,
and a proxy forwards what has arrived by then: a lot, when history is read."""
PIECE_EVENTS = 100_000
"""The number of events made at a time; bounds memory."""
OPENING = b":ok\n\n"


@dataclass(frozen=True, slots=True)
class Shape:
    """The form of the events in one file."""

    events: int
    size_factor: int = 1
    """The factor by which an event's data is longer than the recorded one."""
    dated_rate: float = LIVE_RATE
    """Events per second in their timestamps: determines how many of them one window holds."""
    chunk_bytes: int = CHUNK_BYTES
    """0: one chunk per line, as the service itself writes them."""


class Corpus(NamedTuple):
    """A file of `Shape.events` events."""

    path: Path
    events: int
    data_bytes: int
    """The size of all events' data, without framing."""
    reached_ms: dict[str, int]
    """Topic → greatest timestamp in an id: the position of a client that has received everything."""

    @property
    def mean_bytes(self) -> float:
        """The mean size of one event's data."""
        return self.data_bytes / self.events


def corpus(folder: Path, shape: Shape) -> Corpus:
    """The file of a shape; made if it does not exist."""
    described = orjson.dumps([VERSION, SEED, asdict(shape)])
    path = folder / f"{shape.events}-{hashlib.sha256(described).hexdigest()[:12]}.http"
    facts = path.with_suffix(".json")
    if not facts.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _make(path, shape, facts)
    return Corpus(path, **orjson.loads(facts.read_bytes()))


def frames(shape: Shape) -> Iterator[list[bytes]]:
    """The SSE frames in the order of their sending, many at a time."""
    settings = SimulatorSettings(
        seed=SEED,
        streams=(STREAM,),
        history_events=shape.events,
        history_seconds=shape.events / shape.dated_rate,
        canary_every_seconds=0,
    )
    sources = sources_of(topics_of(STREAM), partitions=1)
    events = islice(generated(settings, ENDED_MS), shape.events)
    log = UpstreamLog(sources, retention_bytes=2**62)
    cluster = Cluster(log, DATA_CENTRES[0], SEED)
    # Ids show the offset that a time was resolved to. Another number would mean that nothing was found,
    # and the relay would reconnect.
    asked = [Asked(source, cluster.bases[source], None) for source in sources]
    feed = Feed(cluster, asked, random.Random(SEED), 0.0)
    neighbour = b"{}"
    while piece := list(islice(events, PIECE_EVENTS)):
        for fresh in piece:
            log.append(_longer(fresh, neighbour, shape.size_factor), 0.0)
            neighbour = fresh.payload
        while True:
            blob, count = feed.next_batch(0.0)
            if not count:
                break
            yield [frame + b"\n\n" for frame in blob.split(b"\n\n")[:-1]]
        for partition in log.partitions.values():
            while partition.expire_oldest():
                pass


def _longer(fresh: Fresh, neighbour: bytes, factor: int) -> Fresh:
    """Add a field with another event's text: it compresses as events do."""
    if factor == 1:
        return fresh
    field = b',"details":' + orjson.dumps((neighbour * (factor - 1)).decode())
    return fresh._replace(payload=fresh.payload[:-1] + field + b"}")


def _make(path: Path, shape: Shape, facts: Path) -> None:
    data_bytes = count = 0
    rest = b""
    reached = ResumeCursor(0, 1)
    with path.open("wb") as file:
        file.write(chunked(OPENING))
        for batch in frames(shape):
            data_bytes += sum(len(lines_of(frame)[2]) - len(b"data: \n\n") for frame in batch)
            reached.observe(read_ids(ids_in(b"".join(batch))).greatest())
            if not shape.chunk_bytes:
                file.writelines(chunked(line) for frame in batch for line in lines_of(frame))
            count += len(batch)
            if shape.chunk_bytes:
                body = rest + b"".join(batch)
                whole = len(body) - len(body) % shape.chunk_bytes
                for start in range(0, whole, shape.chunk_bytes):
                    file.write(chunked(body[start : start + shape.chunk_bytes]))
                rest = body[whole:]
        if rest:
            file.write(chunked(rest))
        file.write(chunked(b""))
    reached_ms = {topic: timestamp_ms for (topic, _), timestamp_ms in reached.position.items()}
    described = {"events": count, "data_bytes": data_bytes, "reached_ms": reached_ms}
    facts.write_bytes(orjson.dumps(described))


def lines_of(frame: bytes) -> list[bytes]:
    """The lines of a frame as the service writes them; the data line includes the empty one."""
    event, sse_id, data = frame.removesuffix(b"\n\n").split(b"\n")
    return [event + b"\n", sse_id + b"\n", data + b"\n\n"]
