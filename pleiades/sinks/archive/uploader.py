"""Uploads closed segments, one step at a time.

For each segment, in the order of the manifest: create the object, add its line to the manifest at the
target, store how far it is, remove the local file when its time has come. Each step can be repeated, so
the process may be killed at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pleiades.runtime import faultpoints
from pleiades.sinks.archive.manifest import DamagedManifest, Entry
from pleiades.sinks.archive.target import (
    Exists,
    Location,
    Reader,
    Target,
    TargetError,
    open_target,
    parse_location,
)
from pleiades.sinks.archive.upload import (
    ForeignManifest,
    Line,
    Matched,
    Settings,
    State,
    Status,
    go_on,
    lines_between,
    match,
    read_state,
    summary_of_skipped,
)
from pleiades.sinks.disk import open_own, replace_file

LINES_AT_ONCE = 32
"""Segments of a backlog whose lines are added by one request: a manifest is sent as a whole."""
PIECE_BYTES = 1 << 20

_NO_COPY = (
    "the target is the archive itself, so there would be no copy: choose another --archive.upload"
)

OpenTarget = Callable[[Location, str], Target]


class Uploader:
    """Brings segments to the target, one step at a time.

    Args:
        report: gets every new status.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        settings: Settings,
        report: Callable[[Status], object],
        clock: Callable[[], float] = time.time,
        opens: OpenTarget = open_target,
    ) -> None:
        self.announced = 0
        """The bytes up to which the manifest is valid."""
        self._settings = settings
        self._archive = Path(settings.archive)
        self._manifest = self._archive / settings.manifest
        self._report = report
        self._clock = clock
        self._opens = opens
        self._target: Target | None = None
        self._status = Status()
        self._state = State()
        self._stored: State | None = None
        """The state file's content."""
        self._joined = False
        self._remote = b""
        """The manifest at the target."""
        self._version: object = None
        self._waiting: list[tuple[Line, Entry]] = []
        """Segments that are there, before the manifest there has their lines."""
        self._gone: list[Entry] = []
        """Segments that can be uploaded no more, not yet reported."""
        self._reached = 0
        """The bytes of the manifest that were looked at."""
        self._counted: int | None = None
        """The bytes of the manifest that `Status` has counted; None: not yet begun."""
        self._at = ""
        """The segment or file that is being worked on, for messages."""

    def run_step(self) -> bool:
        """Do the next thing, and report; False: there is nothing to do, or it failed.

        After a failure, `Status.problem` is not empty.
        """
        self._at = self._settings.manifest
        try:
            advanced = self._step()
        except (TargetError, OSError, DamagedManifest) as error:
            # What an attempt left behind is found out by reading it.
            self._joined = False
            self._fail(_in_words(error))
            return False
        self._tell(problem="")
        return advanced

    @property
    def fails(self) -> bool:
        """True if the last step failed."""
        return bool(self._status.problem)

    def count(self) -> None:
        """Report what has become pending."""
        with contextlib.suppress(OSError, DamagedManifest):
            self._count()
            self._tell()

    def _step(self) -> bool:
        if not self._joined:
            self._join()
        self._count()
        line = next(self._lines(self._reached), None)
        if line is not None:
            entry = line.entry()
            self._at = entry.name
            if self._bring(entry):
                self._waiting.append((line, entry))
            else:
                self._gone.append(entry)
            self._reached = line.end
            if len(self._waiting) < LINES_AT_ONCE and self._reached < self.announced:
                return True
        self._at = self._settings.manifest
        if self._waiting or self._gone:
            self._add_lines()
        self._store()
        return line is not None or self._remove_next()

    def close(self) -> None:
        """Let go of the target. The next step finds out anew how far it is."""
        self._joined = False
        if self._target is not None:
            self._target.close()
            self._target = None

    def _join(self) -> None:
        """Find out how far the target is."""
        self.close()
        location = parse_location(self._settings.target)
        target = self._target = self._opens(location, self._settings.manifest)
        if self._stored is None:
            self._stored = read_state(Path(self._settings.state))
        before = self._stored or State()
        if target.is_same_file(self._settings.manifest, self._manifest):
            raise TargetError(_NO_COPY)
        read = target.read(self._settings.manifest)
        matched = Matched()
        if read is not None:
            try:
                matched = match(self._lines(0), read.content)
            except ForeignManifest as error:
                raise TargetError(
                    f"its {error} names a segment that this archive does not have: another relay "
                    "uploads there, or this archive replaces an older one. Give this one an "
                    "--archive.upload of its own"
                ) from None
        elif before.target == self._settings.target and before.sequence > len(before.skipped):
            raise TargetError(
                f"it is gone from {target.place}: the copy was moved or emptied, or its volume is not "
                "mounted. Put it back; to upload again what is still here, stop the relay, remove "
                f"{self._settings.state} and start it"
            )
        self._remote, self._version = (b"", None) if read is None else read
        self._state = go_on(before, matched, self._settings)
        self._reached = self._counted = self._state.length
        self._waiting, self._gone = [], []
        self._status = self._status._replace(pending_segments=0, pending_bytes=0)
        self._joined = True

    def _lines(self, begin: int) -> Iterator[Line]:
        if begin < self.announced:
            yield from lines_between(self._manifest, begin, self.announced)

    def _count(self) -> None:
        if self._counted is None:
            # The best guess while the target does not answer.
            stored = read_state(Path(self._settings.state)) or State()
            is_own = stored[:2] == (self._settings.target, self._settings.manifest)
            self._counted = stored.length if is_own else 0
        segments, size = self._status.pending_segments, self._status.pending_bytes
        for line in self._lines(self._counted):
            segments += 1
            size += line.entry().file_bytes
            self._counted = line.end
        self._status = self._status._replace(pending_segments=segments, pending_bytes=size)

    # ---- one segment ----

    def _bring(self, entry: Entry) -> bool:
        """Make sure that the target has a segment; False: nobody has it any more."""
        target = self._opened
        path = self._archive / entry.name
        try:
            descriptor = open_own(path, os.O_RDONLY)
        except FileNotFoundError:
            if target.size(entry.name) is None:
                return False
            self._compare(entry)
            return True
        with os.fdopen(descriptor, "rb") as file, _mapped(file.fileno(), entry) as content:
            if hashlib.sha256(content).hexdigest() != entry.sha256:
                raise TargetError(
                    "it is damaged: its SHA-256 is not the one in the manifest. It is not uploaded, and "
                    "those after it wait. Put an intact file in its place, or remove it to go on "
                    "without it"
                )
            try:
                target.create(entry.name, content)
            except Exists:
                if target.is_same_file(entry.name, path):
                    raise TargetError(_NO_COPY) from None
                self._compare(entry)
        faultpoints.passing(faultpoints.UPLOAD_CREATED)
        return True

    def _compare(self, entry: Entry) -> None:
        """Make sure that an object of the target is the segment."""
        found = hashlib.sha256()
        size = 0
        try:
            with self._opened.open(entry.name) as reader:
                for piece in _pieces(reader):
                    found.update(piece)
                    size += len(piece)
                    if size > entry.file_bytes:
                        break
        except FileNotFoundError:
            raise TargetError("it was there, and is gone") from None
        if (size, found.hexdigest()) != (entry.file_bytes, entry.sha256):
            raise TargetError(
                f"{self._opened.place}/{entry.name} is there with other content, and is not "
                "overwritten: find out whose it is, and move it away, or choose another "
                "--archive.upload"
            )

    def _add_lines(self) -> None:
        """Have the target's manifest name what is there, and note how far that is."""
        added = b"".join(line.text for line, _ in self._waiting)
        if added:
            content = self._remote + added
            self._version = self._opened.replace(self._settings.manifest, content, self._version)
            self._remote = content
            faultpoints.passing(faultpoints.UPLOAD_NAMED)
        done = [*(entry for _, entry in self._waiting), *self._gone]
        self._state = self._state._replace(
            length=self._reached,
            sequence=max(entry.sequence for entry in done),
            skipped=(*self._state.skipped, *(entry.sequence for entry in self._gone)),
        )
        status = self._status
        self._status = status._replace(
            pending_segments=max(status.pending_segments - len(done), 0),
            pending_bytes=max(status.pending_bytes - sum(entry.file_bytes for entry in done), 0),
            uploaded=status.uploaded + len(self._waiting),
            uploaded_bytes=status.uploaded_bytes
            + sum(entry.file_bytes for _, entry in self._waiting),
            skipped=status.skipped + len(self._gone),
        )
        gone, self._waiting, self._gone = self._gone, [], []
        if gone:
            self._tell(message=summary_of_skipped(gone, self._opened.place))

    def _store(self) -> None:
        if self._state != self._stored:
            points = (faultpoints.UPLOAD_STATE_STAGED, faultpoints.UPLOAD_STATE_REPLACED)
            replace_file(
                Path(self._settings.state), self._state.encoded(), synced=True, points=points
            )
            self._stored = self._state

    # ---- removing what is uploaded ----

    def _remove_next(self) -> bool:
        """Remove the next local segment whose time is over; False: there is none."""
        keep_seconds, state = self._settings.keep_local_seconds, self._state
        if keep_seconds is None or state.removed >= state.sequence:
            return False
        line = next(self._lines(state.removed_length), None)
        if line is None:
            return False
        entry = line.entry()
        self._at = entry.name
        path = self._archive / entry.name
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            # Of history, the events are old when the segment is new.
            until = max(entry.last_ms / 1000, found.st_mtime) + keep_seconds
            if until > self._clock():
                return False
            # What is not the segment, or was not uploaded, is not the relay's to remove.
            is_own = stat.S_ISREG(found.st_mode) and found.st_size == entry.file_bytes
            if is_own and state.is_uploaded(entry.sequence):
                _remove(path, self._archive)
                self._status = self._status._replace(removed=self._status.removed + 1)
                faultpoints.passing(faultpoints.UPLOAD_REMOVED)
        self._state = state._replace(removed_length=line.end, removed=entry.sequence)
        # Stored with the next step: until then, the state says of a missing file that it is uploaded.
        return True

    # ---- reports ----

    @property
    def _opened(self) -> Target:
        if self._target is None:
            raise RuntimeError("the target is not open")
        return self._target

    def _fail(self, why: str) -> None:
        self._status = self._status._replace(errors=self._status.errors + 1)
        with contextlib.suppress(OSError, DamagedManifest):
            self._count()
        self._tell(
            problem=f"can't upload {self._at} to {self._settings.target}: {why}. Segments stay in "
            f"{self._settings.archive} until they are uploaded; no event is lost"
        )

    def _tell(self, message: str = "", **changed: Any) -> None:
        oldest = None
        if self._status.pending_segments:
            with contextlib.suppress(OSError, DamagedManifest):
                oldest = self._closed_at()
        self._status = self._status._replace(oldest_pending=oldest, **changed)
        self._report(self._status._replace(message=message))

    def _closed_at(self) -> float | None:
        line = next(self._lines(self._state.length), None)
        if line is None:
            return None
        entry = line.entry()
        try:
            return (self._archive / entry.name).lstat().st_mtime
        except FileNotFoundError:
            return entry.last_ms / 1000


@contextlib.contextmanager
def _mapped(descriptor: int, entry: Entry) -> Iterator[memoryview]:
    """A segment's content, which takes no memory but the page cache."""
    size = os.fstat(descriptor).st_size
    if size != entry.file_bytes:
        raise TargetError(
            f"it is damaged: it has {size} bytes instead of {entry.file_bytes}. It is not uploaded, and "
            "those after it wait. Put an intact file in its place, or remove it to go on without it"
        )
    if size == 0:
        yield memoryview(b"")
        return
    content = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    try:
        with memoryview(content) as view:
            yield view
    finally:
        # A request that failed may still hold it.
        with contextlib.suppress(BufferError):
            content.close()


def _pieces(reader: Reader) -> Iterator[bytes]:
    while piece := reader.read(PIECE_BYTES):
        yield piece


def _remove(path: Path, archive: Path) -> None:
    """Remove a file, and the folders that become empty. A link on the way leads to somebody else's."""
    for folder in (path.parent, *path.parent.parents):
        if folder == archive:
            break
        if folder.is_symlink():
            return
    path.unlink()
    for folder in (path.parent, *path.parent.parents):
        if folder == archive:
            break
        try:
            folder.rmdir()
        except OSError:
            break


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        return f"{what}{error.strerror or error}"
    if isinstance(error, DamagedManifest):
        return f"the archive's manifest is damaged: {error}"
    return str(error)
