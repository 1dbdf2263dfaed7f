"""A segment that takes events, and its raw file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pleiades.core.position import Position, join
from pleiades.sinks.archive.codecs import Compressor
from pleiades.sinks.archive.segment import Segment
from pleiades.sinks.journal import Journal


class OpenSegment:
    """A segment and its raw file, which the first commit creates.

    Args:
        path: of the raw file.
        codec: of its frames.
        segment: as the checkpoint has it, or without any events.
    """

    def __init__(self, path: Path, codec: str, segment: Segment) -> None:
        self.path = path
        self.segment = segment
        """Its state with all events that were taken."""
        self._committed = segment
        self._compressor = Compressor(codec)
        self._frames: bytes | None = None
        """The bytes that the present commit appends; None: it has not begun."""
        self._journal: Journal | None = None

    @property
    def has_taken(self) -> bool:
        """True if there are events that are not committed."""
        return self.segment.events > self._committed.events

    @property
    def is_settled(self) -> bool:
        """True if the stored checkpoint has all of it, as sealed."""
        return self._committed is self.segment and self.segment.sealed

    def open(self) -> None:
        """Open the raw file of a segment that the checkpoint has.

        Raises:
            JournalLost: it is missing or too short.
            OSError: it can't be opened.
        """
        self._journal = Journal(self.path, self.segment.length)

    def take(self, texts: Sequence[bytes], times_ms: Sequence[int], after: Position) -> None:
        """Take events as lines without their ends.

        Args:
            times_ms: the Kafka timestamp of each.
            after: the greatest timestamp of each topic-partition among them, as in an SSE id.
        """
        text = b"\n".join(texts) + b"\n"
        self._compressor.add(text)
        state, first_ms, last_ms = self.segment, min(times_ms), max(times_ms)
        self.segment = state._replace(
            first_ms=min(first_ms, state.first_ms),
            last_ms=max(last_ms, state.last_ms),
            after=join(state.after, after),
            events=state.events + len(texts),
            text_bytes=state.text_bytes + len(text),
        )

    def seal(self) -> None:
        """Let it take no more events."""
        self.segment = self.segment._replace(sealed=True)

    def damaged(self) -> None:
        """Somebody has damaged the raw file."""
        self.segment = self._committed = self.segment._replace(damaged=True)

    def append(self) -> None:
        """Append what was taken to the raw file. It may be repeated before `keep`.

        Raises:
            OSError: for example, the disk is full, or the file was removed (ENOENT).
        """
        if not self.has_taken:
            return
        if self._frames is None:
            self._frames = self._compressor.frame()
        if self._journal is None:
            self._journal = Journal(self.path, 0)
        commits = self._committed.commits + 1
        length = self._journal.append(self._frames)
        self.segment = self.segment._replace(length=length, commits=commits)

    def sync(self) -> None:
        """Bring what was appended to the disk."""
        if self._journal is not None and self.has_taken:
            self._journal.sync()

    def keep(self) -> None:
        """Never overwrite what was appended: a checkpoint that names it is about to be stored."""
        if self._journal is not None:
            self._journal.length = self.segment.length

    def covered(self) -> None:
        """The stored checkpoint covers what was appended."""
        self._frames, self._committed = None, self.segment

    def is_lost(self) -> bool:
        """True if somebody has removed the raw file. One that was moved may be put back."""
        return self._journal is not None and self._journal.is_removed()

    def begin_again(self, path: Path, number: int) -> Segment:
        """Go on in a new raw file with what is not committed; returns what was committed."""
        self.close()
        lost, state = self._committed, self.segment
        self.path = path
        self.segment = state._replace(
            number=number,
            before=lost.after,
            events=state.events - lost.events,
            text_bytes=state.text_bytes - lost.text_bytes,
            length=0,
            commits=0,
        )
        self._committed = self.segment._replace(events=0, text_bytes=0)
        return lost

    def close(self) -> None:
        """Close the raw file."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
