"""The manifests of an archive: which segments there should be, and where the streams have gaps.

Law: pure. Lines in, segments, gaps and findings out.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pleiades.core.position import Position
from pleiades.core.sse_id import compose_id
from pleiades.core.units import iso_time, plural
from pleiades.runtime.findings import Finding, note, problem
from pleiades.sinks.archive.layout import DEAD_LETTERS
from pleiades.sinks.archive.manifest import DamagedManifest, Entry, decode_entry

NAMED_LATELY = 16
"""Segments at the end of a manifest that may still be without a name."""

Found = tuple[str, Finding]
"""The part of the archive that a finding is about, and the finding."""


class ListedSegment(NamedTuple):
    """A line of a manifest, without its positions."""

    name: str
    manifest: str
    sequence: int
    stream: str
    events: int
    lost: int
    file_bytes: int
    text_bytes: int
    first_ms: int
    last_ms: int
    sha256: bytes
    is_recent: bool = False
    """A relay may not have named it yet."""


class Gap(NamedTuple):
    """Two segments of a stream that do not follow on each other."""

    manifest: str
    stream: str
    after: Position
    """Where the first one ends."""
    from_ms: int
    to_ms: int
    begins: str
    """The second one."""
    new_start: bool


class Manifest(NamedTuple):
    """The content of a manifest, and the findings about it."""

    segments: list[ListedSegment]
    gaps: list[Gap]
    findings: list[Found]
    lost: int
    """Events that somebody's damage took from segments before they were closed."""


def read_manifest(name: str, lines: Iterable[bytes], place: str) -> Manifest:
    """Read a manifest to its end, whatever its lines are.

    Args:
        lines: with their line ends.
        place: the archive.
    """
    read = Manifest([], [], [], 0)
    expected = 1
    last: dict[str, Entry] = {}
    lost = 0
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            unfinished = "a relay writes it just now, or its next start completes it"
            read.findings.append(
                ("manifest", note(f"{name}: its last line is not complete: {unfinished}"))
            )
            break
        try:
            entry = decode_entry(line)
        except DamagedManifest as error:
            remedy = "put the line back from a copy of the manifest, if you have one"
            unknown = f"The segment that it named can't be checked: {remedy}"
            read.findings.append(
                ("manifest", problem(f"{name}, line {number}: {error}. {unknown}"))
            )
            expected += 1
            last.clear()
            continue
        if entry.sequence != expected:
            wrong = _missing_lines(name, number, expected, entry.sequence)
            read.findings.append(("manifest", problem(wrong)))
            last.clear()
        expected = entry.sequence + 1
        before = last.get(entry.stream)
        if before is not None and before.after != entry.before:
            read.gaps.append(_gap(name, before, entry))
        last[entry.stream] = entry
        if entry.lost:
            lost += entry.lost
            replay = replay_command(
                place, entry.stream, entry.before, entry.first_ms, entry.last_ms + 1
            )
            took = (
                f"somebody's damage took {plural(entry.lost, 'event')} from it before it was closed"
            )
            read.findings.append(
                ("segment", problem(f"{entry.name}: {took}. Fill it with: {replay}"))
            )
        read.segments.append(_segment(entry, name))
    recent = [segment._replace(is_recent=True) for segment in read.segments[-NAMED_LATELY:]]
    read.segments[-NAMED_LATELY:] = recent
    return read._replace(lost=lost)


def _gap(manifest: str, before: Entry, entry: Entry) -> Gap:
    return Gap(
        manifest,
        entry.stream,
        before.after,
        before.last_ms,
        entry.first_ms,
        entry.name,
        not entry.before,
    )


def look_at_gaps(
    gaps: Sequence[Gap], segments: Sequence[ListedSegment], place: str
) -> Iterator[Found]:
    """A problem for each gap, and a note for each that a replay has filled."""
    for gap in gaps:
        inside = [
            segment
            for segment in segments
            if segment.stream == gap.stream
            and segment.manifest != gap.manifest
            and segment.first_ms < gap.to_ms
            and segment.last_ms > gap.from_ms
        ]
        why = (
            "the relay began anew there, without its stored position"
            if gap.new_start
            else "the positions of the segments do not follow on each other"
        )
        text = (
            f"{gap.stream}: between {iso_time(gap.from_ms)} and {iso_time(gap.to_ms)}, before "
            f"{gap.begins}: {why}"
        )
        if inside:
            manifests = ", ".join(sorted({segment.manifest for segment in inside}))
            first = iso_time(min(segment.first_ms for segment in inside))
            last = iso_time(max(segment.last_ms for segment in inside))
            events = plural(sum(segment.events for segment in inside), "event")
            replayed = f"a replay relayed {events} from {first} to {last} ({manifests})"
            yield "gap", note(f"{text}; {replayed}")
        else:
            replay = replay_command(place, gap.stream, gap.after, gap.from_ms, gap.to_ms)
            yield "gap", problem(f"{text}. Events may be missing. Fill it with: {replay}")


def replay_command(place: str, stream: str, after: Position, from_ms: int, to_ms: int) -> str:
    """The command that relays what is missing.

    Args:
        place: the archive, or its copy, into which nothing can be relayed.
        after: the position before it; empty: `from_ms` counts.
    """
    begin = compose_id(after) if any(after.values()) else iso_time(from_ms)
    directory = "ARCHIVE" if "://" in place else place
    words = ["pleiades", "replay", "--archive.enable", f"--archive.dir={directory}"]
    if stream != DEAD_LETTERS:
        words.append(f"--upstream.stream={stream}")
    words += [f"--from={begin}", f"--to={iso_time(max(to_ms, from_ms + 1))}"]
    return shlex.join(words)


def _segment(entry: Entry, manifest: str) -> ListedSegment:
    return ListedSegment(
        entry.name,
        manifest,
        entry.sequence,
        entry.stream,
        entry.events,
        entry.lost,
        entry.file_bytes,
        entry.text_bytes,
        entry.first_ms,
        entry.last_ms,
        bytes.fromhex(entry.sha256),
    )


def _missing_lines(name: str, number: int, expected: int, found: int) -> str:
    if found < expected:
        return (
            f"{name}, line {number}: segment {found} after {expected - 1}: somebody copied or moved a "
            "line; put the manifest back from a copy"
        )
    missing = (
        f"segment {expected}" if found == expected + 1 else f"segments {expected} to {found - 1}"
    )
    return (
        f"{name}, line {number}: the lines of {missing} are missing: somebody removed them, or, in a "
        "copy, the segments were gone before they were uploaded. Put the manifest back from a copy"
    )
