"""The manifest of an archive: a line of JSON for each closed segment, in the order of closing.

Laws:
- A line is appended before its segment gets its name, and never changes.
- The sequence numbers of a manifest are 1, 2, 3 …: a missing line shows.
- For each stream, a segment begins where the one before it ended, unless a new start lies between them.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import orjson

from pleiades.core.position import Position
from pleiades.core.sse_id import is_source
from pleiades.core.units import iso_time, parse_iso_time_ms

MANIFEST = "manifest.ndjson"
"""Of `ingest`. Each replay into the archive has its own, `manifest-<position>.ndjson`."""
MANIFESTS = "manifest*.ndjson"
MAX_LINE_BYTES = 1024 * 1024
"""A position of 1,024 topic-partitions with the longest names fits twice."""

_NAME = re.compile(
    r"(?:dead-letters|stream=[A-Za-z0-9._-]{1,249})/date=\d{4}-\d\d-\d\d/hour=\d\d/"
    r"\d{8}T\d{6}\.\d{3}Z-[A-Za-z0-9+._-]{1,160}\.(?:ndjson|ndjson\.zst|ndjson\.gz|parquet)"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DamagedManifest(ValueError):
    """A line of the manifest is none of the relay's."""


class Entry(NamedTuple):
    """A closed segment."""

    sequence: int
    """Its place in the manifest, from 1."""
    name: str
    """Its path in the archive; see `layout.segment_name`."""
    stream: str
    events: int
    file_bytes: int
    """The size of its file."""
    text_bytes: int
    """The size of its lines, uncompressed."""
    first_ms: int
    """The least Kafka timestamp of its events, ms since 1970."""
    last_ms: int
    """The greatest."""
    before: Position
    """The position of its stream's topic-partitions before its first event. Empty: a start without a
    stored position lies right before it."""
    after: Position
    """The position after its last event."""
    sha256: str
    """Of its file, in hexadecimal digits."""
    lost: int = 0
    """Events that somebody's damage took from it before it was closed."""

    def encoded(self) -> bytes:
        """A line of the manifest."""
        fields: dict[str, Any] = self._asdict()
        fields["bytes"] = fields.pop("file_bytes")
        fields |= {
            "first": iso_time(fields.pop("first_ms")),
            "last": iso_time(fields.pop("last_ms")),
        }
        for side in ("before", "after"):
            fields[f"position_{side}"] = [
                {"topic": topic, "partition": partition, "timestamp": timestamp_ms}
                for (topic, partition), timestamp_ms in sorted(fields.pop(side).items())
            ]
        if not self.lost:
            del fields["lost"]
        return orjson.dumps(fields) + b"\n"


def decode_entry(line: bytes) -> Entry:
    """Read what `Entry.encoded` wrote.

    Raises:
        DamagedManifest: it is something else.
    """
    try:
        fields: Any = orjson.loads(line)
        fields["file_bytes"] = fields.pop("bytes")
        for side in ("before", "after"):
            rows = fields.pop(f"position_{side}")
            fields[side] = {(row["topic"], row["partition"]): row["timestamp"] for row in rows}
        for side in ("first", "last"):
            fields[f"{side}_ms"] = parse_iso_time_ms(fields.pop(side))
        entry = Entry(**fields)
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError) as error:
        raise DamagedManifest(f"a line can't be read ({type(error).__name__})") from None
    numbers = (entry.sequence, entry.events, entry.file_bytes, entry.text_bytes, entry.lost)
    positions = [*entry.before.items(), *entry.after.items()]
    if (
        not all(type(number) is int and number >= 0 for number in numbers)
        or not all(is_source(at) and type(reached) is int for at, reached in positions)
        or not (type(entry.name) is str and _NAME.fullmatch(entry.name))
        or not (type(entry.stream) is str and f"={entry.stream}/" in f"={entry.name}")
        or not (type(entry.sha256) is str and _SHA256.fullmatch(entry.sha256))
    ):
        raise DamagedManifest("a line holds values that describe no segment")
    return entry
