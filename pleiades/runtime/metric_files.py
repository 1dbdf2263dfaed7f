"""One process's figures: in memory, with a copy in files that the parent reads at a scrape.

Law: nothing that happens to the files reaches the relay. Memory is the truth; what can't be written is
kept, said, and written later. So no mmap, as prometheus-client has it: with that, a file that is cut
short, or a full file system under a file with holes, kills the process by SIGBUS.

What stands in the files is in `metric_format`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client.mmap_dict import mmap_key

from pleiades.runtime.logs import Seldom, printable
from pleiades.runtime.metric_format import (
    FIGURE,
    HEADER,
    INCOMPLETE,
    LENGTH,
    WHOLE,
    DamagedFile,
    padding,
    parse,
    read_file,
)

log = logging.getLogger(__name__)

SUFFIX = ".db"
UNFINISHED_SUFFIX = ".db.new"
"""Of a file that is being written anew, until it is whole."""
LOOK_SECONDS = 5.0
"""How often a process that counts compares its files with memory, and tries again what failed."""
WARNING_SECONDS = 60.0
_NEW_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _File:
    """Figures of one kind. Not thread-safe, and raises OSError: `Ledger` sees to both."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._memory = bytearray(HEADER.pack(HEADER.size, WHOLE))
        self._places: dict[str, int] = {}
        self._stored = 0
        """So many bytes of memory have their place in the file; what lies there is kept up to date."""
        self._stale = False
        """Something of what has its place there could not be written."""
        self._descriptor = -1
        self._close: Any = lambda: None

    @property
    def whole(self) -> bool:
        """Whether the file should be equal to memory."""
        return self._stored == len(self._memory) and not self._stale

    def take_over(self) -> None:
        """Go on with what a predecessor left.

        Raises:
            DamagedFile: nothing can be made of it.
            OSError: it can't be read.
        """
        content = read_file(self.path)
        contents = parse(content)
        self._memory = bytearray(content[: contents.used])
        HEADER.pack_into(self._memory, 0, contents.used, WHOLE)
        self._places = {entry.key: entry.place for entry in contents.entries}
        # One that can be read and not written is written anew.
        with contextlib.suppress(OSError):
            self._hold(os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
            self._stored = contents.used
            self._stale = not contents.complete

    def place_of(self, key: str) -> int:
        """Where a series has its place in memory; it is made where it has none."""
        if key not in self._places:
            text = key.encode()
            place = len(self._memory) + LENGTH.size + len(text) + padding(len(text))
            self._memory += LENGTH.pack(len(text)) + text + b" " * padding(len(text))
            self._memory += FIGURE.pack(0.0, 0.0)
            HEADER.pack_into(self._memory, 0, len(self._memory), WHOLE)
            self._places[key] = place
        return self._places[key]

    def value_at(self, place: int) -> float:
        """The value at a place."""
        return float(FIGURE.unpack_from(self._memory, place)[0])

    def note(self, place: int, value: float, timestamp: float) -> None:
        """Keep a figure, in memory only."""
        FIGURE.pack_into(self._memory, place, value, timestamp)

    def store(self, place: int) -> None:
        """Bring one figure of memory into the file."""
        end = place + FIGURE.size
        if end <= self._stored:
            self._write(place, end)

    def store_new(self) -> None:
        """Bring new entries of memory into the file: first they, then how far it is used."""
        if 0 < self._stored < len(self._memory) and not self._stale:
            self._write(self._stored, len(self._memory))
            self._write(0, HEADER.size)
            self._stored = len(self._memory)

    def look(self) -> bool:
        """See to it that the file equals memory; False if somebody else had changed it."""
        was_whole = self.whole
        if was_whole and self._is_intact():
            # Shows whether it could be written, even if there is nothing to write.
            self._write(0, HEADER.size)
            return True
        self._write_anew()
        return not was_whole

    def _is_intact(self) -> bool:
        try:
            found = self.path.lstat()
            own = os.fstat(self._descriptor)
            if (found.st_ino, found.st_dev) != (own.st_ino, own.st_dev):
                return False
            return os.pread(self._descriptor, len(self._memory), 0) == self._memory
        except FileNotFoundError:
            return False

    def _write_anew(self) -> None:
        new = self.path.with_suffix(UNFINISHED_SUFFIX)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        descriptor = os.open(new, _NEW_FLAGS, 0o644)
        try:
            _write_all(descriptor, self._memory, 0)
            new.replace(self.path)
        except BaseException:
            os.close(descriptor)
            # What it holds may be the room that is missing.
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise
        self._hold(descriptor)
        self._stored = len(self._memory)
        self._stale = False

    def _write(self, start: int, end: int) -> None:
        try:
            _write_all(self._descriptor, self._memory[start:end], start)
        except OSError:
            self._stale = True
            # For the parent to see. It overwrites what has its place: a full disk has that much room.
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, HEADER.pack(self._stored, INCOMPLETE), 0)
            raise

    def _hold(self, descriptor: int) -> None:
        self._close()
        self._descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)


def _write_all(descriptor: int, content: bytes | bytearray, place: int) -> None:
    # A disk that becomes full takes a part and reports no error before the next write.
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, content[written:], place + written)


class Ledger:
    """All figures of this process, one file for each kind.

    Args:
        folder: where the files lie.
        role: of the process; a part of the files' names.
    """

    def __init__(self, folder: Path, role: str) -> None:
        self._folder = folder
        self.role = role
        self.lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self._next_look = time.monotonic() + LOOK_SECONDS
        self._trouble = Seldom(WARNING_SECONDS)
        self._repair = Seldom(WARNING_SECONDS)
        self._in_trouble = False

    def place(self, kind: str, key: str) -> tuple[_File, int, float]:
        """Where a series is kept, and its value so far."""
        with self.lock:
            file = self._files.get(kind)
            if file is None:
                file = self._files[kind] = _File(self._folder / f"{kind}_{self.role}{SUFFIX}")
                self._open(file)
            place = file.place_of(key)
            try:
                file.store_new()
            except OSError as error:
                self._report(error)
            return file, place, file.value_at(place)

    def keep(self, file: _File, place: int, value: float, timestamp: float) -> None:
        """Keep one figure, and bring it into its file if that can be. The caller holds `lock`."""
        file.note(place, value, timestamp)
        try:
            file.store(place)
        except OSError as error:
            self._report(error)
        if time.monotonic() >= self._next_look:
            self._look()

    def look(self) -> None:
        """Compare the files with memory, and write anew what differs."""
        with self.lock:
            self._look()

    @property
    def all_written(self) -> bool:
        """Whether nothing went wrong with the files, or all was made good since."""
        return not self._in_trouble

    def _open(self, file: _File) -> None:
        try:
            file.take_over()
        except FileNotFoundError:
            pass
        except (DamagedFile, OSError) as error:
            log.warning(
                "can't go on with the metrics file %s (%s): its counters begin again at 0, which "
                "Prometheus takes for a restart. No event is lost. Find out who else writes to "
                "this folder, or what is wrong with the disk",
                file.path,
                printable(str(error)),
            )
        if not file.whole:
            try:
                file.look()
            except OSError as error:
                self._report(error)

    def _look(self) -> None:
        self._next_look = time.monotonic() + LOOK_SECONDS
        failed = False
        for file in self._files.values():
            try:
                untouched = file.look()
            except OSError as error:
                failed = True
                self._report(error)
                continue
            if not untouched and self._repair.due():
                log.warning(
                    "somebody overwrote, cut or removed the metrics file %s: written anew from "
                    "memory. No event and no count is lost. Find out who else writes to this "
                    "folder",
                    file.path,
                )
        if self._in_trouble and not failed:
            self._in_trouble = False
            log.info("the metrics of this process are written again, and whole")

    def _report(self, error: OSError) -> None:
        self._in_trouble = True
        if self._trouble.due():
            log.warning(
                "can't write the metrics of this process to %s: %s. Events are relayed all the "
                "same and nothing is lost; /metrics shows old figures until it works again, which "
                "is tried every %.0f s. Make room there, or give the permission back",
                self._folder,
                printable(str(error)),
                LOOK_SECONDS,
            )


class Value:
    """A figure as prometheus-client's metrics want it (`prometheus_client.values`)."""

    _multiprocess = True

    def __init__(  # noqa: PLR0913, PLR0917  # as prometheus-client calls it
        self,
        ledger: Ledger,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: object,
    ) -> None:
        kind = f"{typ}_{multiprocess_mode}" if typ == "gauge" else typ
        key = mmap_key(metric_name, name, list(labelnames), list(labelvalues), help_text)
        self._ledger = ledger
        self._lock = ledger.lock
        self._file, self._place, self._value = ledger.place(kind, key)

    def inc(self, amount: float) -> None:
        """Add to it."""
        with self._lock:
            self._value += amount
            self._ledger.keep(self._file, self._place, self._value, 0.0)

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Replace it; `timestamp`: seconds since 1970, by which the latest of several is found."""
        with self._lock:
            self._value = value
            self._ledger.keep(self._file, self._place, value, timestamp or 0.0)

    def get(self) -> float:
        """What it is."""
        with self._lock:
            return self._value

    def set_exemplar(self, _: object) -> None:
        """There are none between processes."""

    def get_exemplar(self) -> None:
        """There are none between processes."""


def values_in(ledger: Ledger) -> Any:
    """What `prometheus_client.values.ValueClass` must be for metrics to be kept in a ledger."""
    return functools.partial(Value, ledger)
