"""A user of a publish directory who moves every file away as soon as it has its name."""

from __future__ import annotations

import contextlib
import os
import threading
from itertools import count
from pathlib import Path

from pleiades.simulator.log import JournalEntry
from tests.harness.destinations import Directory
from tests.harness.oracle import Verdict, judge

LOOK_SECONDS = 0.02
FILES_IN_A_FOLDER = 1_000
THREAD_END_SECONDS = 10.0


class Consumed(Directory):
    """A directory whose files are moved away as they appear, and whose empty folders are removed.

    The moved files are in `folder`, in order of appearance. An event published again is there twice; in
    the publish directory itself its name would already exist.
    """

    def __init__(self, published: Path) -> None:
        super().__init__(published)
        self._published = published
        self.folder = published.with_name(published.name + "-taken")
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending.wait(LOOK_SECONDS):
            self.take()

    def take(self) -> None:
        """Move all named files, in the order in which they got their names."""
        with self._lock:
            files = self._published.glob("[0-9]*/*.json")
            for appeared_ns, path in sorted((path.stat().st_ctime_ns, path) for path in files):
                number = next(self._numbers)
                hundreds, thousands = divmod(number // FILES_IN_A_FOLDER, 100)
                # `judge` expects folders named like hours.
                folder = self.folder / f"{hundreds:04}-01-01T{thousands:02}"
                folder.mkdir(parents=True, exist_ok=True)
                # The move changes `st_ctime`, so the time of appearance is kept in `st_mtime`.
                os.utime(path, ns=(appeared_ns, appeared_ns))
                path.rename(folder / f"{number:09}-{path.name}")
            for folder in self._published.glob("[0-9]*"):
                # Fails if the relay has written into it meanwhile.
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def count(self) -> int:
        """The number of moved files."""
        self.take()
        return super().count()

    def judge(self, journal: list[JournalEntry], since_ms: int, finished: bool) -> Verdict:
        """See `oracle.judge`."""
        self.take()
        return judge(self.folder, journal, since_ms, finished, lambda path: path.stat().st_mtime_ns)

    def values(self) -> list[bytes]:
        """The contents without the final newline of each file."""
        self.take()
        return super().values()

    def dead_letters(self) -> int:
        """The number of dead-letter files."""
        letters = self._published / ".pleiades" / "dead-letters"
        return len(list(letters.iterdir())) if letters.is_dir() else 0

    def close(self) -> None:
        """Stop moving files."""
        self._ending.set()
        self._thread.join(THREAD_END_SECONDS)
