"""Compares a directory with the truth: the journal of the local upstream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

import orjson

from pleiades.simulator.journal import JournalEntry


@dataclass(frozen=True)
class Verdict:
    """What is wrong; nothing of it is the law."""

    lost: list[str]
    doubled: list[str]
    foreign: list[str]
    """Published, but never sent by the upstream."""
    disordered: list[str]
    """Published before one that precedes it in its topic."""
    broken: list[str]
    """Files that are no whole JSON with a newline at the end."""
    published: int

    @property
    def flawless(self) -> bool:
        """Every event once, in order, whole."""
        return not (self.lost or self.doubled or self.foreign or self.disordered or self.broken)

    def __str__(self) -> str:
        return (
            f"published {self.published}, lost {len(self.lost)}, doubled {len(self.doubled)}, "
            f"foreign {len(self.foreign)}, out of order {len(self.disordered)}, "
            f"broken {len(self.broken)}"
        )


def published_count(folder: Path) -> int:
    """Names in the hourly folders."""
    return sum(1 for _ in folder.glob("[0-9]*/*.json"))


def more_than(folder: Path, count: int) -> Callable[[], bool]:
    """A condition to wait for: there are more published events than that."""
    return lambda: published_count(folder) > count


def judge(
    folder: Path, journal: list[JournalEntry], since_ms: int, finished: bool = True
) -> Verdict:
    """Read a publish directory afresh.

    The order is that in which the names appeared (`st_ctime_ns`, set by the rename; two names within
    one tick of the kernel's clock count as ordered).

    Args:
        folder: the publish directory.
        journal: everything upstream appended.
        since_ms: where the relay was told to start. A topic is expected from its first event on
            that is dated at or after it, or from the first published one if that is earlier.
    """
    appeared: dict[str, int] = {}
    seen: Counter[str] = Counter()
    broken = []
    for path in folder.glob("[0-9]*/*.json"):
        content = path.read_bytes()
        try:
            identity = orjson.loads(content)["meta"]["id"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            broken.append(path.name)
            continue
        if not content.endswith(b"\n"):
            broken.append(path.name)
        seen[identity] += 1
        appeared[identity] = path.stat().st_ctime_ns
    expected = _expected(journal, since_ms, seen)
    if not finished:
        # The same from behind: up to the last published one of each topic.
        expected = _expected(expected[::-1], None, seen)[::-1]
    disordered = []
    latest: dict[tuple[str, int], int] = {}
    for entry in expected:
        source = entry.source
        time_ns = appeared.get(entry.identity)
        if time_ns is None:
            continue
        if time_ns < latest.get(source, 0):
            disordered.append(entry.identity)
        latest[source] = max(time_ns, latest.get(source, 0))
    wanted = {entry.identity for entry in expected}
    return Verdict(
        lost=sorted(wanted - seen.keys()),
        doubled=[identity for identity, count in seen.items() if count > 1],
        foreign=sorted(seen.keys() - {entry.identity for entry in journal}),
        disordered=disordered,
        broken=broken,
        published=sum(seen.values()),
    )


def _expected(
    journal: list[JournalEntry], since_ms: int | None, seen: Container[str]
) -> list[JournalEntry]:
    """What must be published: of each topic, all from the first that is published or late enough."""
    begun = set()
    expected = []
    for entry in journal:
        if entry.identity in seen or (since_ms is not None and entry.timestamp >= since_ms):
            begun.add(entry.source)
        if entry.source in begun and not entry.canary:
            expected.append(entry)
    return expected
