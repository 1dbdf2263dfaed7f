"""The events of a range that a topic already has, for `replay --skipExisting`.

Law: memory does not grow with their number. SQLite keeps the identities in a file that it removes as
soon as it has opened it, so nothing remains, however the process ends.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from pleiades.core.range import Range

SLACK_MS = 2 * 3_600_000
"""Records are read from so long before the begin of a range. An event is published after it happened,
but another clock dates the record: one that is off by two hours would be noticed."""
CACHE_KIB = 16 * 1024


class Existing:
    """A set of identities on disk."""

    def __init__(self) -> None:
        # An empty name: a temporary database on disk, https://www.sqlite.org/inmemorydb.html.
        self._database = sqlite3.connect("")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._database.execute("CREATE TABLE known (identity TEXT PRIMARY KEY) WITHOUT ROWID")

    def add(self, identities: Iterable[str]) -> None:
        """Add identities."""
        rows = ((identity,) for identity in identities)
        self._database.executemany("INSERT OR IGNORE INTO known VALUES (?)", rows)
        self._database.commit()

    def __contains__(self, identity: str) -> bool:
        found = self._database.execute("SELECT 1 FROM known WHERE identity = ?", (identity,))
        return found.fetchone() is not None

    def __len__(self) -> int:
        return self._database.total_changes

    def close(self) -> None:
        """Remove all."""
        self._database.close()


def since_ms(span: Range) -> int:
    """The publish time from which on the topic may have events of a range, ms since 1970."""
    begin = span.begin
    return max(min([begin.default_ms, *begin.own_ms.values()]) - SLACK_MS, 0)
