"""Closes sealed segments: makes the file for readers, enters it in the manifest, gives it its name."""

from __future__ import annotations

import logging
import time

from pleiades.core.backoff import Backoff
from pleiades.core.units import iso_time
from pleiades.runtime import faultpoints
from pleiades.sinks.archive.codecs import PLAIN, DamagedSegment
from pleiades.sinks.archive.destination import ArchiveDestination
from pleiades.sinks.archive.finish import Finished, Job, finish
from pleiades.sinks.archive.finisher import Finisher
from pleiades.sinks.archive.layout import DEAD_LETTERS, NDJSON_ZST, PARQUET, segment_name
from pleiades.sinks.archive.manifest import Entry
from pleiades.sinks.archive.naming import Manifest, give_name
from pleiades.sinks.archive.open_segment import OpenSegment
from pleiades.sinks.archive.raw import FINISHED, RawSegments, report_lost
from pleiades.sinks.archive.segment import Closing, Segment, Segments

log = logging.getLogger(__name__)

COMPACTED_BYTES = 512 * 1024
"""A segment with more text in each commit, on average, is compressed well enough."""
SMALL_BYTES = 1024 * 1024
"""Text that is compressed within some milliseconds."""
FINISH_BACKOFF = Backoff(first_seconds=1.0, max_seconds=60.0)


class Closer:
    """Closes the sealed segments of one position, one at a time.

    Args:
        tag: begins the sequence number in names, so that two writers never choose the same.
    """

    def __init__(
        self,
        archive: ArchiveDestination,
        raw: RawSegments,
        finisher: Finisher,
        manifest: Manifest,
        tag: str = "",
    ) -> None:
        self._directory = archive.directory
        self._format = archive.format
        self._codec = archive.codec
        self._compact = archive.compact
        self._raw = raw
        self._finisher = finisher
        self._manifest = manifest
        self._tag = tag
        self._finishing: OpenSegment | None = None
        """The sealed segment that the finisher has."""
        self.closing: list[Closing] = []
        """Segments that the next checkpoint, or the stored one, has as such."""
        self._sequence = 0
        self._failures = 0
        self._retry_at = 0.0
        """Monotonic time before which the finisher gets no job."""
        self.manifest_bytes = 0
        """The length of the manifest that describes segments which have their names."""

    def recover(self, stored: Segments) -> None:
        """Take over what a checkpoint has.

        Raises:
            OSError: the manifest can't be read.
        """
        self._finisher.close()
        self._finishing = None
        self.closing = list(stored.closing)
        self._sequence = max(stored.sequence, self._manifest.last_sequence())
        self.manifest_bytes = self._manifest.length()

    def with_closing(self, state: Segments) -> Segments:
        """A state of the raw segments with that of the closing ones."""
        return Segments(
            state.segments, tuple(self.closing), state.ends, state.number, self._sequence
        )

    @property
    def is_done(self) -> bool:
        """True if nothing is sealed or closing."""
        return not (self._raw.sealed or self.closing)

    def start(self) -> None:
        """Have the next sealed segment finished."""
        if time.monotonic() < self._retry_at:
            return
        chosen = self._next()
        if chosen is None or self._is_small(chosen):
            return
        self._finishing = chosen
        try:
            self._finisher.start(self._job(chosen))
        except OSError as error:
            self._failed(error)

    def take(self) -> None:
        """Take the finished segment, if there is one: the next checkpoint has it as a closing one."""
        finishing = self._finishing
        if finishing is None:
            return
        try:
            finished = self._finisher.take()
        except OSError as error:
            self._failed(error)
            return
        except DamagedSegment as error:
            self._damaged(finishing, error)
            self._finishing = None
            return
        if finished is not None:
            self._finishing = None
            self._enter(finishing, finished)

    def _next(self) -> OpenSegment | None:
        """The next segment, if the stored checkpoint has it as sealed: they are closed in order."""
        sealed = self._raw.sealed
        return sealed[0] if sealed and sealed[0].is_settled and self._finishing is None else None

    def _is_small(self, sealed: OpenSegment) -> bool:
        """True if finishing it costs less than a process."""
        segment = sealed.segment
        return segment.text_bytes < SMALL_BYTES and self._format_of(segment) != PARQUET

    @property
    def has_small(self) -> bool:
        """True if `finish_small` has something to do."""
        chosen = self._next()
        is_time = time.monotonic() >= self._retry_at
        return is_time and chosen is not None and self._is_small(chosen)

    def finish_small(self) -> None:
        """Finish small segments in this process: the next checkpoint has them as closing ones."""
        while self.has_small:
            chosen = self._raw.sealed[0]
            try:
                self._enter(chosen, finish(self._job(chosen)))
            except DamagedSegment as error:
                self._damaged(chosen, error)
            except OSError as error:
                self._failed(error)
                return

    def _damaged(self, sealed: OpenSegment, error: DamagedSegment) -> None:
        log.error(
            "a segment was damaged before it was closed (%s). Its lines before the damage are kept; the "
            "others are missing from the archive",
            error,
        )
        sealed.damaged()

    def name(self) -> list[Entry]:
        """Enter the closing segments in the manifest and give their files their names; returns them.

        The stored checkpoint must have them. May be repeated.

        Raises:
            OSError: try again.
        """
        for closing in self.closing:
            raw = self._raw.path_of(closing.number)
            finished = raw.with_name(raw.name + FINISHED)
            self.manifest_bytes = self._manifest.ensure(closing.entry)
            faultpoints.passing(faultpoints.LISTED)
            give_name(finished if closing.finished else raw, self._directory, closing.entry.name)
            faultpoints.passing(faultpoints.RENAMED)
            if closing.finished:
                raw.unlink(missing_ok=True)
        named, self.closing = self.closing, []
        return [closing.entry for closing in named]

    def close(self) -> None:
        """End the finisher."""
        self._finisher.close()

    def _job(self, chosen: OpenSegment) -> Job:
        segment, path = chosen.segment, chosen.path
        form = self._format_of(segment)
        output = path.with_name(path.name + FINISHED) if self._needs_output(segment, form) else ""
        return Job(
            raw=str(path),
            length=segment.length,
            codec=segment.codec,
            output=str(output),
            format=form,
            salvage=segment.damaged,
        )

    def _format_of(self, segment: Segment) -> str:
        # Dead letters are no rows of a table.
        is_letters = segment.stream == DEAD_LETTERS
        return NDJSON_ZST if is_letters and self._format == PARQUET else self._format

    def _needs_output(self, segment: Segment, form: str) -> bool:
        if form == PARQUET or segment.damaged or segment.codec != self._codec:
            return True
        is_loose = segment.text_bytes < COMPACTED_BYTES * max(segment.commits, 1)
        return self._compact and segment.codec != PLAIN and is_loose

    def _enter(self, sealed: OpenSegment, finished: Finished) -> None:
        """Make the entry of a segment."""
        self._failures = 0
        if sealed not in self._raw.sealed:
            # Its raw file was removed meanwhile.
            return
        self._raw.leave(sealed)
        segment = sealed.segment
        has_output = finished.events >= 0
        events = finished.events if has_output else segment.events
        if not events:
            # The next start removes the files.
            report_lost(segment, "was damaged, and nothing of it is left")
            return
        self._sequence += 1
        sequence = f"{self._tag}{self._sequence:08}"
        name = segment_name(segment.stream, segment.started_ms, sequence, self._format_of(segment))
        entry = Entry(
            self._sequence,
            name,
            segment.stream,
            events,
            finished.bytes,
            finished.text_bytes if has_output else segment.text_bytes,
            segment.first_ms,
            segment.last_ms,
            segment.before,
            segment.after,
            finished.sha256,
            segment.events - events,
        )
        if entry.lost:
            log.error(
                "%d events of %s are missing from the segment %s, dated from %s to %s. pleiades replay "
                "with --from and --to publishes them again while the upstream has them",
                entry.lost,
                entry.stream,
                entry.name,
                iso_time(entry.first_ms),
                iso_time(entry.last_ms),
            )
        self.closing.append(Closing(entry, segment.number, has_output))

    def _failed(self, error: OSError) -> None:
        self._finishing = None
        self._failures += 1
        pause_seconds = FINISH_BACKOFF.pause_seconds(self._failures, jitter=1.0)
        self._retry_at = time.monotonic() + pause_seconds
        log.error(
            "can't close a segment in %s: %s. Its events are kept in the file of the open segment, and "
            "the relay goes on: trying again in %.0f s",
            self._directory,
            error,
            pause_seconds,
        )
