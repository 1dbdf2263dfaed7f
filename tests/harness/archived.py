"""An archive seen from outside: its lines, closed segments and open ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backports import zstd

LETTERS = "dead-letters"
NOTHING: dict[str, list[Any]] = {"segments": [], "closing": []}


def closed(folder: Path) -> list[Path]:
    """The closed segments in the order of closing."""
    paths = [path for path in folder.glob("*/**/*Z-*") if ".pleiades" not in path.parts]
    return sorted(paths, key=lambda path: path.name.partition("Z-")[2])


def text_of(path: Path, length: int | None = None, codec: str | None = None) -> bytes:
    """The text of a segment, or of the first bytes of one."""
    content = path.read_bytes()[:length]
    codec = path.suffix.removeprefix(".") if codec is None else codec
    if codec == "zst":
        return zstd.decompress(content) if content else b""
    return gzip.decompress(content) if codec == "gz" else content


def opened(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Stream and text of each segment that is not closed, as far as the checkpoints cover it."""
    own = folder / ".pleiades"
    for checkpoint in [*own.glob("checkpoint-*"), *own.glob("replays/*/checkpoint-*")]:
        if checkpoint.suffix == ".new" or ".damaged-" in checkpoint.name:
            continue
        name = checkpoint.name.removeprefix("checkpoint-")
        stored = json.loads(checkpoint.read_bytes()).get("own") or NOTHING
        raw = checkpoint.parent / "segments"
        for number, codec, stream, *_, length, _commits, _sealed, _damaged in stored["segments"]:
            yield stream, text_of(raw / f"{name}.{number}", length, codec)
        for line, number, finished in stored["closing"]:
            # A crash came before it had its name.
            entry = json.loads(line)
            path = raw / (f"{name}.{number}" + (".finished" if finished else ""))
            if path.exists() and not (folder / entry["name"]).exists():
                yield entry["stream"], text_of(path, None, Path(entry["name"]).suffix[1:])


def texts(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Stream and text of each segment."""
    for path in closed(folder):
        first = path.relative_to(folder).parts[0]
        yield first.removeprefix("stream="), text_of(path)
    yield from opened(folder)


def count(folder: Path) -> int:
    """The number of events that the checkpoint covers, closed segments included."""
    while True:
        own = folder / ".pleiades"
        before = _checkpoints(own)
        entries = {}
        for manifest in folder.glob("manifest*.ndjson"):
            for line in manifest.read_bytes().splitlines():
                entry = json.loads(line)
                entries[entry["name"]] = entry
        events = 0
        for content in before:
            try:
                stored = json.loads(content).get("own") or NOTHING
            except ValueError:
                # A fault damaged it.
                stored = NOTHING
            events += sum(row[10] for row in stored["segments"] if row[2] != LETTERS)
            for line, *_ in stored["closing"]:
                entry = json.loads(line)
                entries[entry["name"]] = entry
        if before == _checkpoints(own):
            closed_events = [e["events"] for e in entries.values() if e["stream"] != LETTERS]
            return int(events + sum(closed_events))


def _checkpoints(own: Path) -> list[bytes]:
    paths = [path for path in sorted(own.glob("checkpoint-*")) if path.suffix != ".new"]
    return [path.read_bytes() for path in paths if ".damaged-" not in path.name]


def lines(folder: Path) -> list[bytes]:
    """All events, those of a stream in their order."""
    return [
        line
        for stream, text in texts(folder)
        if stream != LETTERS
        for line in text.split(b"\n")[:-1]
    ]


def letters(folder: Path) -> list[dict[str, str]]:
    """All dead letters."""
    return [
        json.loads(line)
        for stream, text in texts(folder)
        if stream == LETTERS
        for line in text.splitlines()
    ]
