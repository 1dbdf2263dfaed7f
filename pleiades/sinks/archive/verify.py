"""Checks the segments of an archive, or of its copy, and its manifests against each other.

Laws:
- It changes nothing, and works while a relay writes to the archive: a manifest names a segment before
  the segment has its name.
- Every event is read once, or as often as `duplicates.passes_for` says; memory is bounded by that.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from pleiades.core.units import plural
from pleiades.runtime.findings import note, problem
from pleiades.sinks.archive.chain import (
    Found,
    Gap,
    ListedSegment,
    look_at_gaps,
    read_manifest,
    replay_command,
)
from pleiades.sinks.archive.codecs import DamagedSegment
from pleiades.sinks.archive.contents import ParquetMissing, identities_in, is_alike, lines_of
from pleiades.sinks.archive.duplicates import Span, Sweep, passes_for
from pleiades.sinks.archive.manifest import (
    MANIFESTS,
    DamagedManifest,
    decode_entry,
)
from pleiades.sinks.archive.target import OWN_FOLDER, Reader, Target
from pleiades.sinks.archive.upload import State, read_state

LOOKS, LOOK_SECONDS = 5, 0.2
"""How often, and after which pause, it looks for a segment that a relay may be naming just now."""


@dataclass
class Summary:
    """The totals of a check."""

    manifests: int = 0
    segments: int = 0
    removed: int = 0
    """Segments that are uploaded and no longer here."""
    events: int = 0
    bytes: int = 0
    text_bytes: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    gaps: int = 0
    duplicates: int = 0
    lost: int = 0
    problems: int = 0
    streams: Counter[str] = field(default_factory=Counter)
    """Events by stream."""


def states_in(archive: Path) -> dict[str, State]:
    """How far the manifests of a local archive are uploaded."""
    states = {}
    for path in sorted((archive / OWN_FOLDER).glob("upload-*")):
        try:
            state = read_state(path)
        except OSError:
            continue
        if state is not None:
            states[state.manifest] = state
    return states


class Verification:
    """One check of an archive.

    Args:
        target: the archive.
        states: of `states_in`; of a copy, there are none.
        pauses: waits between two looks.
        most_held: see `duplicates`.
    """

    def __init__(
        self,
        target: Target,
        states: Callable[[], Mapping[str, State]] = dict,
        pauses: Callable[[float], object] = time.sleep,
        most_held: int | None = None,
    ) -> None:
        self.summary = Summary()
        self._target = target
        self._states = states
        self._pauses = pauses
        self._most_held = most_held
        self._listed: dict[str, int] = {}
        self._segments: list[ListedSegment] = []
        self._unread_parquet = 0

    def findings(self) -> Iterator[Found]:
        """Check everything; `summary` is complete afterwards.

        Raises:
            TargetError: the archive can't be read.
        """
        for part, finding in self._all():
            self.summary.problems += bool(finding.exit_status)
            yield part, finding

    def _all(self) -> Iterator[Found]:
        # The listing comes first: all that it has is named by the manifests that are read after it.
        self._listed = {found.name: found.bytes for found in self._target.list()}
        manifests = [name for name in self._listed if "/" not in name and fnmatch(name, MANIFESTS)]
        self.summary.manifests = len(manifests)
        if not manifests:
            yield (
                "manifest",
                problem(
                    f"there is no manifest in {self._target.place}, so it is no archive, or somebody "
                    "removed the manifest: put it back"
                ),
            )
        gaps: list[Gap] = []
        for name in manifests:
            read = read_manifest(name, self._lines(name), self._target.place)
            yield from read.findings
            self.summary.lost += read.lost
            self._segments += read.segments
            gaps += read.gaps
        yield from self._named_twice()
        for part, finding in look_at_gaps(gaps, self._segments, self._target.place):
            self.summary.gaps += bool(finding.exit_status)
            yield part, finding
        self._segments.sort(key=lambda segment: (segment.first_ms, segment.name))
        spans = [_span(segment) for segment in self._segments]
        passes = passes_for(spans, *([self._most_held] if self._most_held else []))
        for number in range(passes):
            sweep = Sweep(number, passes)
            for segment in self._segments:
                yield from self._segment(segment, sweep, number == 0)
        if self._unread_parquet:
            yield (
                "segment",
                problem(
                    f"{plural(self._unread_parquet, 'segment')} of Parquet: size and SHA-256 are "
                    "checked, the events are not. Reading them needs: pip install 'pleiades[archive]'"
                ),
            )
        yield from self._not_named(manifests)

    def _lines(self, manifest: str) -> Iterator[bytes]:
        read = self._target.read(manifest)
        yield from () if read is None else read.content.splitlines(keepends=True)

    def _named_twice(self) -> Iterator[Found]:
        names = Counter(segment.name for segment in self._segments)
        twice = {name for name, count in names.items() if count > 1}
        for name in sorted(twice):
            yield (
                "manifest",
                problem(f"{name} is named twice: somebody copied a line or a manifest; remove one"),
            )
        if twice:
            once = {segment.name: segment for segment in self._segments}
            self._segments = list(once.values())

    # ---- segments ----

    def _segment(self, segment: ListedSegment, sweep: Sweep, first_pass: bool) -> Iterator[Found]:
        sweep.begin(_span(segment))
        size = self._size_of(segment)
        if size is None:
            if first_pass:
                yield from self._missing(segment)
            return
        if not first_pass and size != segment.file_bytes:
            return
        if first_pass:
            self._take(segment)
        if size != segment.file_bytes:
            self.summary.lost += segment.events
            yield (
                "segment",
                problem(
                    f"{segment.name} has {size} bytes instead of {segment.file_bytes}: somebody "
                    f"truncated or changed it. {self._remedy(segment)}"
                ),
            )
            return
        try:
            with self._target.open(segment.name) as reader:
                yield from self._content(segment, _Hashed(reader), sweep, first_pass)
        except FileNotFoundError:
            if first_pass:
                self._take(segment, -1)
                yield from self._missing(segment)

    def _content(
        self, segment: ListedSegment, reader: _Hashed, sweep: Sweep, first_pass: bool
    ) -> Iterator[Found]:
        events = 0
        repeats: dict[str, list[str]] = defaultdict(list)
        wrong = ""
        try:
            for lines in lines_of(segment.name, reader.read):
                identities = identities_in(lines)
                events += len(identities)
                for found in sweep.add(identities):
                    repeats[found.name] += found.identities
        except DamagedSegment as error:
            wrong = f"{error}"
        except ParquetMissing:
            self._unread_parquet += first_pass
            events = segment.events
        yield from self._repeated(segment, repeats)
        if not first_pass:
            return
        reader.read_to_end()
        if reader.digest != segment.sha256:
            wrong = f"its SHA-256 is not the one in the manifest{f', and {wrong}' if wrong else ''}"
        if wrong:
            self.summary.lost += max(segment.events - events, 0)
            yield (
                "segment",
                problem(
                    f"{segment.name} is damaged: {wrong}. {plural(events, 'event')} of "
                    f"{segment.events} can be read. {self._remedy(segment)}"
                ),
            )
        elif events != segment.events:
            yield (
                "segment",
                problem(
                    f"{segment.name} holds {plural(events, 'event')}, and the manifest says "
                    f"{segment.events}: somebody changed the manifest. Put the line back from a copy"
                ),
            )

    def _take(self, segment: ListedSegment, sign: int = 1) -> None:
        summary = self.summary
        summary.segments += sign
        summary.events += sign * segment.events
        summary.streams[segment.stream] += sign * segment.events
        summary.bytes += sign * segment.file_bytes
        summary.text_bytes += sign * segment.text_bytes
        summary.first_ms = min(segment.first_ms, summary.first_ms or segment.first_ms)
        summary.last_ms = max(segment.last_ms, summary.last_ms or segment.last_ms)

    def _size_of(self, segment: ListedSegment) -> int | None:
        size = self._listed.get(segment.name)
        # It may have been named since.
        looks = LOOKS if segment.is_recent else 1
        while size is None and looks:
            if self._is_uploaded(segment):
                return None
            size = self._target.size(segment.name)
            looks -= 1
            if size is None and looks:
                self._pauses(LOOK_SECONDS)
        return size

    def _is_uploaded(self, segment: ListedSegment) -> bool:
        state = self._states().get(segment.manifest)
        return state is not None and state.is_uploaded(segment.sequence)

    def _missing(self, segment: ListedSegment) -> Iterator[Found]:
        if self._is_uploaded(segment):
            self.summary.removed += 1
            return
        self.summary.lost += segment.events
        yield (
            "segment",
            problem(
                f"{segment.name} is missing, with {plural(segment.events, 'event')}: somebody moved or "
                f"removed it. {self._remedy(segment)}"
            ),
        )

    def _remedy(self, segment: ListedSegment) -> str:
        replay = replay_command(
            self._target.place, segment.stream, {}, segment.first_ms, segment.last_ms + 1
        )
        return f"Put a copy in its place, or, while the upstream has the events: {replay}"

    def _repeated(
        self, segment: ListedSegment, repeats: Mapping[str, list[str]]
    ) -> Iterator[Found]:
        manifest_of = {other.name: other.manifest for other in self._segments} if repeats else {}
        for name, identities in repeats.items():
            alike = [identity for identity in identities if is_alike(identity)]
            again = len(identities) - len(alike)
            where = "itself" if name == segment.name else name
            if alike:
                yield (
                    "duplicate",
                    note(
                        f"{plural(len(alike), 'event')} without a usable meta.id of {segment.name} have "
                        f"the content of others in {where}: they may be repeats, or different events"
                    ),
                )
            if not again:
                continue
            self.summary.duplicates += again
            example = next(identity for identity in identities if not is_alike(identity))
            remedy = "queries count them twice unless they drop equal values of meta.id"
            if manifest_of[name] != segment.manifest:
                remedy += "; a replay relayed them again"
            yield (
                "duplicate",
                problem(
                    f"{plural(again, 'event')} of {segment.name} are also in {where}, such as "
                    f"{example}: {remedy}"
                ),
            )

    # ---- what no manifest names ----

    def _not_named(self, manifests: list[str]) -> Iterator[Found]:
        named = {segment.name for segment in self._segments}
        strange = self._listed.keys() - named - {*manifests}
        for look in range(LOOKS):
            if not strange:
                return
            if look:
                self._pauses(LOOK_SECONDS)
            # An upload has a name before the manifest there has its line.
            for manifest in manifests:
                for line in self._lines(manifest):
                    try:
                        strange.discard(decode_entry(line).name)
                    except DamagedManifest:
                        continue
        for name in sorted(strange):
            if self._target.size(name) is None:
                continue
            hint = ""
            if "://" in self._target.place:
                hint = " An upload that was interrupted has such a name until it is repeated."
            yield (
                "file",
                problem(
                    f"{name}: no manifest names it. If it holds events, queries count them as well: "
                    f"move it away, unless a line of the manifest is missing.{hint}"
                ),
            )


class _Hashed:
    """Computes the SHA-256 of what is read."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        content = self._reader.read(size)
        self._sha256.update(content)
        return content

    def read_to_end(self) -> None:
        while self.read(1 << 20):
            pass

    @property
    def digest(self) -> bytes:
        return self._sha256.digest()


def _span(segment: ListedSegment) -> Span:
    return Span(segment.name, segment.first_ms, segment.last_ms, segment.events)
