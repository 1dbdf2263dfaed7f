"""How far the segments of a manifest are uploaded.

Laws:
- The manifest at the target holds lines of the local one, in their order, and nothing else. So it says
  by itself how far the uploads are, whatever became of the state file.
- A line is added there after its segment is there.
- A local segment is removed only after the state file says that it is uploaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from pleiades.sinks.archive.manifest import MAX_LINE_BYTES, Entry, decode_entry
from pleiades.sinks.archive.target import OWN_FOLDER
from pleiades.sinks.disk import open_own

MAX_STATE_BYTES = 16 << 20
MAX_NAME = 200


class ForeignManifest(ValueError):
    """The manifest at the target is not a copy of this archive's."""


class Settings(NamedTuple):
    """The settings of the uploader; a line of JSON."""

    archive: str
    """Its directory."""
    manifest: str
    """The name of the manifest in it, and at the target."""
    state: str
    """The path of the state file; see `state_path`."""
    target: str
    """See `target.parse_location`."""
    keep_local_seconds: float | None = None
    """How long an uploaded segment stays in the archive; None: for ever."""

    def encoded(self) -> bytes:
        """A line."""
        return orjson.dumps(self._asdict()) + b"\n"


class State(NamedTuple):
    """The content of the state file."""

    target: str = ""
    manifest: str = ""
    length: int = 0
    """The bytes of the manifest whose segments are uploaded, or skipped."""
    sequence: int = 0
    """The last of these segments."""
    removed_length: int = 0
    removed: int = 0
    """As `length` and `sequence`, for segments that may have been removed from the archive since."""
    skipped: tuple[int, ...] = ()
    """Segments that somebody removed before they were uploaded."""

    def encoded(self) -> bytes:
        """The file's content."""
        return orjson.dumps(self._asdict()) + b"\n"

    def is_uploaded(self, sequence: int) -> bool:
        """True if the target has a segment, so that it may be missing here."""
        return sequence <= max(self.sequence, self.removed) and sequence not in self.skipped


def decode_state(encoded: bytes) -> State | None:
    """Read what `State.encoded` wrote; None: it is damaged."""
    try:
        fields: Any = orjson.loads(encoded)
        state = State(**{**fields, "skipped": tuple(fields["skipped"])})
    except (ValueError, TypeError, LookupError):
        return None
    numbers = (state.length, state.sequence, state.removed_length, state.removed, *state.skipped)
    is_usable = all(type(number) is int and number >= 0 for number in numbers)
    texts = (state.target, state.manifest)
    return state if is_usable and all(type(text) is str for text in texts) else None


def state_path(archive: Path, manifest: str) -> Path:
    """The state file of a manifest's uploads."""
    return archive / OWN_FOLDER / f"upload-{manifest.removesuffix('.ndjson')[:MAX_NAME]}"


def read_state(path: Path) -> State | None:
    """The state file; None: there is none, or it is damaged.

    Raises:
        OSError: it can't be read.
    """
    try:
        descriptor = open_own(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return decode_state(file.read(MAX_STATE_BYTES))


class Line(NamedTuple):
    """A line of the local manifest."""

    text: bytes
    end: int
    """The bytes of the manifest up to its end."""

    def entry(self) -> Entry:
        """The segment.

        Raises:
            DamagedManifest: see `decode_entry`.
        """
        return decode_entry(self.text)


def lines_between(path: Path, begin: int, end: int) -> Iterator[Line]:
    """The whole lines of a manifest between two lengths.

    Raises:
        OSError: it can't be read.
    """
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        file.seek(begin)
        while begin < end:
            text = file.readline(MAX_LINE_BYTES)
            begin += len(text)
            if begin > end or not text.endswith(b"\n"):
                return
            yield Line(text, begin)


class Matched(NamedTuple):
    """How far the manifest at the target is."""

    length: int = 0
    """Of the local manifest, up to the last line that the target has."""
    sequence: int = 0
    skipped: tuple[int, ...] = ()
    """The segments before it that the target does not name."""


def match(local: Iterable[Line], remote: bytes) -> Matched:
    """Find the lines of the target's manifest in the local one.

    Raises:
        ForeignManifest: one is not there, or not in the same order.
        DamagedManifest: a line of the local one is damaged.
    """
    lines = iter(local)
    reached, skipped = Matched(), list[int]()
    for number, wanted in enumerate(remote.splitlines(keepends=True), 1):
        for line in lines:
            if line.text == wanted:
                break
            skipped.append(line.entry().sequence)
        else:
            raise ForeignManifest(f"line {number}")
        reached = Matched(line.end, line.entry().sequence, tuple(skipped))
    return reached


def go_on(state: State, matched: Matched, settings: Settings) -> State:
    """The state at a start: the manifest at the target counts, and what was skipped after it."""
    if state.manifest != settings.manifest:
        state = State()
    own = State(
        settings.target,
        settings.manifest,
        matched.length,
        matched.sequence,
        state.removed_length,
        state.removed,
        matched.skipped,
    )
    after = range(matched.sequence + 1, state.sequence + 1)
    if state.target != settings.target or not after or not {*after} <= {*state.skipped}:
        return own
    return own._replace(
        length=state.length, sequence=state.sequence, skipped=(*matched.skipped, *after)
    )


class Status(NamedTuple):
    """A report of the uploader; a line of JSON."""

    pending_segments: int = 0
    """Closed, and not yet named at the target."""
    pending_bytes: int = 0
    oldest_pending: float | None = None
    """When the oldest of them was closed, seconds since 1970."""
    uploaded: int = 0
    """Segments since the uploader began."""
    uploaded_bytes: int = 0
    errors: int = 0
    """Failed attempts since the uploader began."""
    skipped: int = 0
    """Segments that can't be uploaded any more, since the uploader began."""
    removed: int = 0
    """Segments removed from the archive since the uploader began."""
    problem: str = ""
    """The present failure, in words for an operator; empty: there is none."""
    message: str = ""
    """Something to log once."""

    def encoded(self) -> bytes:
        """A line."""
        return orjson.dumps(self._asdict()) + b"\n"


def decode_status(line: bytes) -> Status:
    """Read what `Status.encoded` wrote."""
    return Status(**orjson.loads(line))


def decode_settings(line: bytes) -> Settings:
    """Read what `Settings.encoded` wrote."""
    return Settings(**orjson.loads(line))


def summary_of_skipped(entries: Sequence[Entry], place: str) -> str:
    """A message about segments that can't be uploaded any more."""
    first, last = entries[0], entries[-1]
    names = first.name if first is last else f"{first.name} to {last.name}"
    return (
        f"{len(entries)} closed segments ({names}) were removed from the archive before they were "
        f"uploaded: {place} lacks their {sum(entry.events for entry in entries)} events. To complete "
        "it, copy the files there by hand, if you have them"
    )
