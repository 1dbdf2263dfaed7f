"""Compares a directory or a topic with the truth: the journal of the local upstream."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeAlias

import orjson

from pleiades.simulator.log import JournalEntry
from tests.harness.broker import Record, topic_records

Part: TypeAlias = Callable[[JournalEntry], bool]
"""Which events belong together."""


def dated(begin_ms: int, end_ms: int) -> Part:
    """Those of a range by their Kafka timestamps: the begin is in it, the end is not."""
    return lambda entry: begin_ms <= entry.timestamp < end_ms


def after_first(journal: list[JournalEntry], since_ms: int) -> Part:
    """Of each topic all from the first one on that is dated at or after a time, as upstream sends it."""
    wanted = {entry.identity for entry in _begun(journal, since_ms, ())}
    return lambda entry: entry.identity in wanted


@dataclass(frozen=True)
class Verdict:
    """What is wrong; nothing of it is the law."""

    lost: list[str]
    doubled: list[str]
    foreign: list[str]
    """Published, but never sent by the upstream, or not asked for."""
    disordered: list[str]
    """Published before one that precedes it in its topic."""
    broken: list[str]
    """Files that are no whole JSON with a newline at the end; records that are not the event."""
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


# ---- a directory ----


def published_count(folder: Path) -> int:
    """Names in the hourly folders."""
    return sum(1 for _ in folder.glob("[0-9]*/*.json"))


def more_than(folder: Path, count: int) -> Callable[[], bool]:
    """A condition to wait for: there are more published events than that."""
    return lambda: published_count(folder) > count


def judge(
    folder: Path,
    journal: list[JournalEntry],
    since_ms: int,
    finished: bool = True,
    appeared_ns: Callable[[Path], int] | None = None,
) -> Verdict:
    """Read a publish directory afresh.

    The order is that in which the names appeared (`st_ctime_ns`, set by the rename; two names within
    one tick of the kernel's clock count as ordered).

    Args:
        folder: the publish directory.
        journal: everything upstream appended.
        since_ms: where the relay was told to start. A topic is expected from its first event on
            that is dated at or after it, or from the first published one if that is earlier.
        finished: everything must be there; otherwise up to the last published one of each topic.
        appeared_ns: when a name appeared, if that is not to be seen by the file any more.
    """
    seen, appeared, broken = _files(folder, appeared_ns or _changed_ns)
    expected = _expected(journal, since_ms, finished, seen)
    return _verdict(journal, [expected], seen, {0: appeared}, broken)


def judge_parts(folder: Path, journal: list[JournalEntry], *parts: Part) -> Verdict:
    """The same where it is known which events there must be, and nothing else.

    Args:
        parts: the order is expected in each for itself.
    """
    seen, appeared, broken = _files(folder, _changed_ns)
    return _parted(journal, parts, seen, {0: appeared}, broken)


def _changed_ns(path: Path) -> int:
    return path.stat().st_ctime_ns


def _files(
    folder: Path, appeared_ns: Callable[[Path], int]
) -> tuple[Counter[str], dict[str, int], list[str]]:
    """How often each event is there, when it appeared, and what is broken."""
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
        if not isinstance(identity, str):
            broken.append(path.name)
            continue
        if not content.endswith(b"\n"):
            broken.append(path.name)
        seen[identity] += 1
        appeared[identity] = appeared_ns(path)
    return seen, appeared, broken


# ---- a topic ----


def judge_topic(
    bootstrap: str, topic: str, journal: list[JournalEntry], since_ms: int, finished: bool = True
) -> Verdict:
    """Read a topic afresh, as a reader of committed records sees it.

    The order is that of the offsets, in each partition for itself. A key must keep to one partition:
    only so the records of a key have an order at all. The SSE id, which is the key or else the header
    `id`, must give the event's own time to its own topic; the journal tells no more of it.

    Args:
        bootstrap: host:port of the broker.
        topic: the topic of the relay.
        journal, since_ms, finished: see `judge`.
    """
    seen, offsets, broken = _records(bootstrap, topic, journal)
    expected = _expected(journal, since_ms, finished, seen)
    return _verdict(journal, [expected], seen, offsets, broken)


def judge_topic_parts(
    bootstrap: str, topic: str, journal: list[JournalEntry], *parts: Part
) -> Verdict:
    """The same where it is known which events there must be, and nothing else; see `judge_parts`."""
    seen, offsets, broken = _records(bootstrap, topic, journal)
    return _parted(journal, parts, seen, offsets, broken)


def _records(
    bootstrap: str, topic: str, journal: list[JournalEntry]
) -> tuple[Counter[str], dict[int, dict[str, int]], list[str]]:
    """How often each event is there, where in its partition, and what is broken."""
    records = topic_records(bootstrap, topic)
    entries = {entry.identity: entry for entry in journal}
    offsets: dict[int, dict[str, int]] = defaultdict(dict)
    seen: Counter[str] = Counter()
    broken = []
    partition_of: dict[bytes | None, int] = {}
    for record in records:
        identity, as_sent = _read(record, entries)
        seen[identity] += 1
        # The first of a doubled one: that it is doubled is told anyway.
        offsets[record.partition].setdefault(identity, record.offset)
        if partition_of.setdefault(record.key, record.partition) != record.partition or not as_sent:
            broken.append(identity)
    return seen, offsets, broken


def _read(record: Record, entries: Mapping[str, JournalEntry]) -> tuple[str, bool]:
    """Which event a record holds, and whether its id and data are those of that event."""
    try:
        meta = orjson.loads(record.value or b"")["meta"]
        identity = meta["id"]
        reached = {
            (entry["topic"], entry["partition"]): entry.get("timestamp")
            for entry in orjson.loads(dict(record.headers).get("id", record.key) or b"")
        }
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return f"{record.partition}:{record.offset}", False
    if not isinstance(identity, str):
        return f"{record.partition}:{record.offset}", False
    sent = entries.get(identity)
    if sent is None:
        return identity, False
    # The real service asks for the event behind this one.
    own = (meta["topic"], meta["partition"]) == sent.source
    return identity, own and reached.get(sent.source) == sent.timestamp + 1


# ---- both ----


def _expected(
    journal: list[JournalEntry], since_ms: int, finished: bool, seen: Container[str]
) -> list[JournalEntry]:
    """What must be published."""
    expected = _begun(journal, since_ms, seen)
    if not finished:
        # The same from behind: up to the last published one of each topic.
        expected = _begun(expected[::-1], None, seen)[::-1]
    return expected


def _begun(
    journal: list[JournalEntry], since_ms: int | None, seen: Container[str]
) -> list[JournalEntry]:
    """Of each topic, all from the first that is published or late enough."""
    begun = set()
    expected = []
    for entry in journal:
        if entry.identity in seen or (since_ms is not None and entry.timestamp >= since_ms):
            begun.add(entry.source)
        if entry.source in begun and not entry.canary:
            expected.append(entry)
    return expected


def _parted(
    journal: list[JournalEntry],
    parts: Iterable[Part],
    seen: Counter[str],
    places: Mapping[int, Mapping[str, int]],
    broken: list[str],
) -> Verdict:
    events = [entry for entry in journal if not entry.canary]
    expected = [[entry for entry in events if is_in(entry)] for is_in in parts]
    return _verdict([entry for part in expected for entry in part], expected, seen, places, broken)


def _verdict(
    known: list[JournalEntry],
    parts: list[list[JournalEntry]],
    seen: Counter[str],
    places: Mapping[int, Mapping[str, int]],
    broken: list[str],
) -> Verdict:
    """Compare.

    Args:
        known: what may be there.
        parts: what must be there; in each, this order.
        places: for each sequence of published events, where in it each one stands.
    """
    disordered = []
    for place, expected in product(places.values(), parts):
        latest: dict[tuple[str, int], int] = {}
        for entry in expected:
            here = place.get(entry.identity)
            if here is None:
                continue
            if here < latest.get(entry.source, here):
                disordered.append(entry.identity)
            latest[entry.source] = max(here, latest.get(entry.source, here))
    wanted = {entry.identity for expected in parts for entry in expected}
    return Verdict(
        lost=sorted(wanted - seen.keys()),
        doubled=[identity for identity, count in seen.items() if count > 1],
        foreign=sorted(seen.keys() - {entry.identity for entry in known}),
        disordered=disordered,
        broken=broken,
        published=sum(seen.values()),
    )
