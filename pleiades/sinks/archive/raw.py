"""All segments of an archive that are not closed yet, and their raw files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from pleiades.core.position import Position
from pleiades.core.sse_id import UNKNOWN_SOURCE, TopicPartition
from pleiades.core.units import iso_time
from pleiades.sinks.archive.layout import DEAD_LETTERS, OTHER
from pleiades.sinks.archive.open_segment import OpenSegment
from pleiades.sinks.archive.segment import Segment, Segments
from pleiades.sinks.journal import JournalLost

log = logging.getLogger(__name__)

MAX_STREAMS = 64
"""Open segments: as many as a relay can have streams. The events of further ones share one."""
MAX_SEALED = 64
"""The most segments that wait to be closed. At that limit the open ones take events for longer."""
FINISHED = ".finished"
"""The end of the name of a file that readers will get, before it has its name."""


class RawSegments:
    """The segments of one position, in `<folder>/<name>.<number>`.

    Args:
        codec: of new ones.
        rotate_ms: the longest time, by the events or by the clock, that one takes events.
        rotate_bytes: one with so much text takes no more.
        now_ms: the wall clock, ms since 1970.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        codec: str,
        rotate_ms: int,
        rotate_bytes: int,
        now_ms: Callable[[], int],
    ) -> None:
        self.folder = folder
        self._prefix = f"{name}."
        self._codec = codec
        self._rotate_ms = rotate_ms
        self._rotate_bytes = rotate_bytes
        self._now_ms = now_ms
        self._open: dict[str, OpenSegment] = {}
        """The segment that takes events, of each stream."""
        self.sealed: list[OpenSegment] = []
        """Those that take none any more, the oldest first."""
        self._ends: dict[str, Position] = {}
        """See `Segments.ends`."""
        self._number = 0
        self.is_changed = False
        """Something was sealed since the last commit."""

    def __iter__(self) -> Iterator[OpenSegment]:
        return chain(self.sealed, self._open.values())

    def state(self) -> Segments:
        """Their part of a checkpoint."""
        return Segments(
            tuple(each.segment for each in self), ends=dict(self._ends), number=self._number
        )

    def path_of(self, number: int) -> Path:
        """The raw file of a segment."""
        return self.folder / f"{self._prefix}{number}"

    # ---- events ----

    @property
    def has_taken(self) -> bool:
        """True if there are events that are not committed."""
        return any(each.has_taken for each in self)

    def take(
        self,
        stream: str,
        texts: Sequence[bytes],
        times_ms: Sequence[int],
        sources: Sequence[TopicPartition],
    ) -> None:
        """Take events of one stream, or dead letters, in upstream order.

        Args:
            texts: a line of each, without its end.
            times_ms: the Kafka timestamp of each, ms since 1970.
            sources: the topic-partition of each.
        """
        if stream not in self._open and len(self._open) >= MAX_STREAMS:
            stream = OTHER
        now_ms, begin = self._now_ms(), 0
        while begin < len(texts):
            taking = self._taking(stream, times_ms[begin], now_ms)
            end = self._end(taking.segment.slot_ms, times_ms, begin, now_ms)
            part = slice(begin, end)
            is_ordered = stream not in (DEAD_LETTERS, OTHER)
            after = _reached(sources[part], times_ms[part]) if is_ordered else {}
            taking.take(texts[part], times_ms[part], after)
            begin = end

    def _taking(self, stream: str, time_ms: int, now_ms: int) -> OpenSegment:
        """The segment that takes the next event of a stream."""
        slot_ms = self._slot(time_ms, now_ms)
        taking = self._open.get(stream)
        if taking is not None:
            state = taking.segment
            # An event of an earlier slot is late, and belongs into this one: otherwise two topics that
            # are read side by side would close a segment with each event.
            is_full = slot_ms > state.slot_ms or state.text_bytes >= self._rotate_bytes
            if not is_full or len(self.sealed) >= MAX_SEALED:
                return taking
            self._seal(stream)
        self._number += 1
        before = self._ends.get(stream, {})
        times = (slot_ms, now_ms, time_ms, time_ms, time_ms)
        begun = Segment(self._number, self._codec, stream, *times, before, before)
        self._open[stream] = OpenSegment(self.path_of(self._number), self._codec, begun)
        return self._open[stream]

    def _end(self, slot_ms: int, times_ms: Sequence[int], begin: int, now_ms: int) -> int:
        """The place of the first event from `begin` on that belongs into a later slot."""
        if len(self.sealed) >= MAX_SEALED or self._slot(max(times_ms), now_ms) <= slot_ms:
            return len(times_ms)
        for place in range(begin, len(times_ms)):
            if self._slot(times_ms[place], now_ms) > slot_ms:
                return place
        return len(times_ms)

    def _slot(self, time_ms: int, now_ms: int) -> int:
        # An event that is dated ahead must not keep the segment open until then.
        time_ms = min(time_ms, now_ms)
        return time_ms - time_ms % self._rotate_ms

    # ---- sealing ----

    def seal_due(self) -> None:
        """Seal the segments of quiet streams."""
        now_ms = self._now_ms()
        for stream, each in list(self._open.items()):
            if (
                len(self.sealed) < MAX_SEALED
                and abs(now_ms - each.segment.opened_ms) >= self._rotate_ms
            ):
                self._seal(stream)

    def seal_all(self) -> None:
        """Seal all segments."""
        for stream in list(self._open):
            self._seal(stream)

    def begin_anew(self) -> None:
        """A new start follows, not where the last one ended."""
        self.seal_all()
        self.is_changed = self.is_changed or bool(self._ends)
        self._ends = {}

    def _seal(self, stream: str) -> None:
        sealed = self._open.pop(stream)
        sealed.seal()
        self.sealed.append(sealed)
        if sealed.segment.after:
            self._ends[stream] = sealed.segment.after
        self.is_changed = True

    # ---- the steps of a commit ----

    @property
    def has_removed(self) -> bool:
        """True if `give_up_removed` has something to do."""
        return any(each.is_settled and each.is_lost() for each in self.sealed)

    def give_up_removed(self) -> None:
        """Give up sealed segments whose raw files somebody removed: they would be waited for."""
        for each in [each for each in self.sealed if each.is_settled and each.is_lost()]:
            report_lost(each.segment, "was removed")
            self.leave(each)

    def leave(self, sealed: OpenSegment) -> None:
        """The next checkpoint has it no more."""
        sealed.close()
        self.sealed.remove(sealed)
        self.is_changed = True

    def append(self) -> None:
        """Append what was taken, durably. It may be repeated before `keep`.

        Raises:
            OSError: for example, the disk is full.
        """
        for each in self:
            if each.is_lost():
                self._number += 1
                lost = each.begin_again(self.path_of(self._number), self._number)
                report_lost(lost, "was removed")
            each.append()
        for each in self:
            each.sync()

    def keep(self) -> None:
        """Never overwrite what was appended: a checkpoint that names it is about to be stored."""
        for each in self:
            each.keep()

    def covered(self) -> None:
        """The stored checkpoint covers everything that was taken."""
        for each in self:
            each.covered()
        self.is_changed = False

    def close(self) -> None:
        """Close all files."""
        for each in self:
            each.close()

    # ---- the start ----

    def recover(self, stored: Segments) -> None:
        """Open the segments that a checkpoint has, and truncate their raw files to what it covers.

        Raises:
            OSError: one can't be opened.
        """
        self.close()
        self._open, self.sealed = {}, []
        self._ends = dict(stored.ends)
        self._number = max([stored.number, *(number for _, number in self._files())])
        for segment in stored.segments:
            found = OpenSegment(self.path_of(segment.number), segment.codec, segment)
            try:
                found.open()
            except JournalLost as error:
                self.is_changed = True
                if not segment.sealed and segment.after:
                    # The next one begins behind it, so that the manifest shows what is missing.
                    self._ends[segment.stream] = segment.after
                if not found.path.exists():
                    report_lost(segment, "is missing")
                    continue
                log.error(
                    "a segment was cut: %s. What is left of it is kept; the rest is missing from the "
                    "archive",
                    error,
                )
                segment = segment._replace(sealed=True, damaged=True)  # noqa: PLW2901  # closed so
                found = OpenSegment(found.path, segment.codec, segment)
            if segment.sealed:
                self.sealed.append(found)
            else:
                self._open[segment.stream] = found
                if segment.codec != self._codec:
                    self._seal(segment.stream)

    def remove_others(self, closing: set[int]) -> None:
        """Remove what a crash left: files that neither a segment nor a closing one has.

        Args:
            closing: the numbers of the closing ones.
        """
        named = {each.path for each in self}
        for path, number in self._files():
            if path not in named and number not in closing:
                path.unlink()

    def unknown_files(self) -> int:
        """Count the files, where nothing is known of them."""
        return sum(1 for _ in self._files())

    def are_whole(self, stored: Segments) -> bool:
        """True if the raw files are as long as a checkpoint says."""
        paths = [(self.path_of(segment.number), segment.length) for segment in stored.segments]
        return all(path.is_file() and path.stat().st_size >= length for path, length in paths)

    def _files(self) -> Iterator[tuple[Path, int]]:
        """The files of this position, with their numbers."""
        for path in self.folder.iterdir():
            number = path.name.removeprefix(self._prefix).removesuffix(FINISHED)
            if path.name.startswith(self._prefix) and number.isascii() and number.isdigit():
                yield path, int(number)


def _reached(sources: Sequence[TopicPartition], times_ms: Sequence[int]) -> Position:
    """The position after these events, of known topic-partitions."""
    reached: Position = {}
    for source, time_ms in zip(sources, times_ms, strict=True):
        # As in SSE ids.
        if time_ms + 1 > reached.get(source, -1):
            reached[source] = time_ms + 1
    reached.pop(UNKNOWN_SOURCE, None)
    return reached


def report_lost(lost: Segment, what: str) -> None:
    """Log which events are missing, if there are any."""
    if lost.events:
        log.error(
            "the file of an open segment %s: %d events of %s, dated from %s to %s, are missing from the "
            "archive. pleiades replay with --from and --to publishes them again while the upstream has "
            "them",
            what,
            lost.events,
            lost.stream,
            iso_time(lost.first_ms),
            iso_time(lost.last_ms),
        )
