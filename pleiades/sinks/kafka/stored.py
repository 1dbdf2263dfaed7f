"""What stands in the metadata of the committed offset: the position, and what a restart reads back.

Kafka keeps at most 4,096 bytes there (`offset.metadata.max.bytes`). The usual position is readable
JSON of about 300 bytes. A long one, of many streams, is packed: zlib brings 128 topic-partitions to
about half of what there is.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from pleiades.core.position import Checkpoint, Position, UnreadableCheckpoint, read_done
from pleiades.core.span import Mark, Span
from pleiades.core.wire import MAX_TIMESTAMP_MS, TopicPartition, is_source
from pleiades.runtime.errors import Fatal

FORMAT_VERSION = 1
MAX_METADATA_BYTES = 4096
"""The broker's default for `offset.metadata.max.bytes`."""
MAX_UNPACKED_BYTES = 1024 * 1024
_PACKED = "zlib:"
_WRITER = re.compile(r"[0-9a-f]{1,32}")


class Stored(NamedTuple):
    """All that is durable beside the events themselves."""

    checkpoint: Checkpoint
    span: Span
    writer: str
    """Names the process that committed it: how one that was fenced learns by whom."""

    def metadata(self) -> str:
        """As the offset's metadata.

        Raises:
            Fatal: the position has more topic-partitions than fit.
        """
        checkpoint, span = self.checkpoint, self.span
        position = sorted(checkpoint.position.items())
        mark = None
        if span.mark is not None:
            # As what the position has gained since, in its order: small numbers pack well.
            marked = span.mark.position
            gained = [
                None if source not in marked else reached - marked[source]
                for source, reached in position
            ]
            # After a start that ignored the position these have not come again yet.
            others = marked.keys() - checkpoint.position.keys()
            mark = [
                span.mark.time_ms,
                gained,
                _listed(sorted((source, marked[source]) for source in others)),
            ]
        stored = {
            "version": FORMAT_VERSION,
            "position": _listed(position),
            "started_ms": checkpoint.started_ms,
            "clock_ms": checkpoint.clock_ms,
            "window_since_ms": span.since_ms,
            "mark": mark,
            "writer": self.writer,
        }
        if checkpoint.done is not None:
            stored["done"] = checkpoint.done.listed(source for source, _ in position)
        plain = orjson.dumps(stored)
        if len(plain) <= MAX_METADATA_BYTES:
            return plain.decode()
        packed = _PACKED + base64.b85encode(zlib.compress(plain, 9)).decode()
        if len(packed) > MAX_METADATA_BYTES:
            raise Fatal(
                f"the position of {len(position)} upstream topics does not fit into the "
                f"{MAX_METADATA_BYTES} bytes that Kafka keeps with an offset. Nothing is lost: what is "
                "committed is safe. Give fewer streams to one instance (--upstream.stream) and start "
                "another one for the rest"
            )
        return packed


def read_metadata(metadata: str) -> Stored:
    """Read what `Stored.metadata` gave.

    Raises:
        UnreadableCheckpoint: it is cut short, damaged, of another version, or somebody else's.
    """
    try:
        stored = _unpacked(metadata)
        version = stored["version"]
        if type(version) is not int or version != FORMAT_VERSION:
            raise UnreadableCheckpoint(f"its format version is {str(version)[:20]}")
        position = _position(stored["position"])
        times = [stored["started_ms"], stored["clock_ms"], stored["window_since_ms"]]
        mark = stored["mark"]
        if mark is not None:
            time_ms, gained, others = mark
            mark = Mark(time_ms, _marked(position, gained) | _position(others))
            times += [mark.time_ms, *mark.position.values()]
        if not all(map(_is_time, [*times, *position.values()])):
            raise UnreadableCheckpoint("it holds values that are no position")
        writer = stored["writer"]
        if type(writer) is not str or _WRITER.fullmatch(writer) is None:
            raise UnreadableCheckpoint("it does not say who wrote it")
        done = read_done(stored.get("done"), position)
    except UnreadableCheckpoint:
        raise
    except (ValueError, KeyError, TypeError, IndexError, zlib.error) as error:
        raise UnreadableCheckpoint(f"it can't be read ({type(error).__name__})") from None
    checkpoint = Checkpoint(position, stored["started_ms"], stored["clock_ms"], done)
    return Stored(checkpoint, Span(stored["window_since_ms"], mark), writer)


def _unpacked(metadata: str) -> Any:
    if not metadata.startswith(_PACKED):
        return orjson.loads(metadata)
    unpacking = zlib.decompressobj()
    plain = unpacking.decompress(
        base64.b85decode(metadata.removeprefix(_PACKED)), MAX_UNPACKED_BYTES
    )
    if not unpacking.eof:
        raise UnreadableCheckpoint("it is cut short or too large")
    return orjson.loads(plain)


def _listed(position: Iterable[tuple[TopicPartition, int]]) -> list[tuple[str, int, int]]:
    return [(*source, reached) for source, reached in position]


def _position(listed: Any) -> Position:
    position = {(topic, partition): reached for topic, partition, reached in listed}
    if len(position) != len(listed) or not all(map(is_source, position)):
        raise UnreadableCheckpoint("it holds values that are no position")
    return position


def _marked(position: Position, gained: list[int | None]) -> Position:
    return {
        source: reached - since
        for (source, reached), since in zip(position.items(), gained, strict=True)
        if since is not None
    }


def _is_time(number: object) -> bool:
    return type(number) is int and 0 <= number <= MAX_TIMESTAMP_MS
