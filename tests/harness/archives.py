"""Archives made by hand, as the relay makes them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import orjson

from pleiades.core.position import Position
from pleiades.sinks.archive.codecs import Compressor
from pleiades.sinks.archive.layout import NDJSON_ZST, segment_name
from pleiades.sinks.archive.manifest import MANIFEST, Entry, decode_entry

STREAM = "mediawiki.recentchange"
SOURCE = (f"eqiad.{STREAM}", 0)
BEGIN_MS = 1_790_000_000_000
CODECS = {"ndjson.zst": "zst", "ndjson.gz": "gz", "ndjson": ""}


def event(at_ms: int, identity: str | None = None, **meta: Any) -> bytes:
    """The data of an event."""
    meta = {"id": identity or str(uuid.uuid4()), "stream": STREAM, "topic": SOURCE[0], **meta}
    return orjson.dumps({"meta": meta, "timestamp": at_ms // 1000, "title": "A" * 20})


class Archive:
    """An archive that segments are added to."""

    def __init__(self, root: Path, manifest: str = MANIFEST) -> None:
        self.root = root
        self.manifest = root / manifest
        (root / ".pleiades").mkdir(parents=True, exist_ok=True)
        self.manifest.touch()
        self.clock_ms = BEGIN_MS
        self.after: dict[str, Position] = {}

    def entries(self) -> list[Entry]:
        """The manifest."""
        return [decode_entry(line) for line in self.manifest.read_bytes().splitlines()]

    @property
    def length(self) -> int:
        """What the sink tells the uploader."""
        return self.manifest.stat().st_size

    def add(
        self,
        events: Sequence[bytes] | int = 10,
        stream: str = STREAM,
        extension: str = NDJSON_ZST,
        first_ms: int | None = None,
        before: Position | None = None,
        content: bytes | None = None,
    ) -> Entry:
        """Close a segment of so many events, one a second."""
        first_ms = self.clock_ms if first_ms is None else first_ms
        if isinstance(events, int):
            events = [event(first_ms + 1000 * number) for number in range(events)]
        last_ms = first_ms + 1000 * (len(events) - 1)
        self.clock_ms = max(self.clock_ms, last_ms + 1000)
        text = b"".join(each + b"\n" for each in events)
        if content is None:
            content = encoded_segment(events, text, extension)
        number = len(self.entries()) + 1
        source = (f"eqiad.{stream}", 0)
        entry = Entry(
            sequence=number,
            name=segment_name(stream, first_ms, f"{self.manifest.stem}-{number:08}", extension),
            stream=stream,
            events=len(events),
            file_bytes=len(content),
            text_bytes=len(text),
            first_ms=first_ms,
            last_ms=last_ms,
            before=self.after.get(stream, {}) if before is None else before,
            after={source: last_ms + 1},
            sha256=hashlib.sha256(content).hexdigest(),
        )
        self.after[stream] = entry.after
        path = self.root / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        with self.manifest.open("ab") as file:
            file.write(entry.encoded())
        return entry


def encoded_segment(events: Sequence[bytes], text: bytes, extension: str) -> bytes:
    """The content of a segment of that format."""
    if extension == "parquet":
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
        sink = arrow.BufferOutputStream()
        parquet.write_table(arrow.table({"json": arrow.array([*events], arrow.string())}), sink)
        written: bytes = sink.getvalue().to_pybytes()
        return written
    compressor = Compressor(CODECS[extension])
    compressor.add(text)
    return compressor.frame()
