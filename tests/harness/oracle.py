"""Compares a directory or a topic with the journal of the local upstream."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeAlias

import orjson

from pleiades.simulator.log import JournalEntry
from tests.harness.broker import Record, topic_records

_HOUR = re.compile(r"\d{4}-\d\d-\d\dT\d\d")

Part: TypeAlias = Callable[[JournalEntry], bool]
"""Selects the events that belong together."""


def dated(begin_ms: int, end_ms: int) -> Part:
    """Select events by Kafka timestamp: from `begin_ms`, before `end_ms`."""
    return lambda entry: begin_ms <= entry.timestamp < end_ms


def after_first(journal: list[JournalEntry], since_ms: int) -> Part:
    """Select all events of each topic from the first one dated at or after a time."""
    wanted = {entry.identity for entry in _begun(journal, since_ms, ())}
    return lambda entry: entry.identity in wanted


@dataclass(frozen=True)
class Verdict:
    """The violations found in a destination; there must be none."""

    lost: list[str]
    doubled: list[str]
    foreign: list[str]
    """Published, but never sent by the upstream, or not requested."""
    disordered: list[str]
    """Published before an earlier event of the same topic."""
    broken: list[str]
    """Files that are not whole JSON with a final newline; records that differ from the event."""
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
    """The number of published files."""
    try:
        hours = [name for name in os.listdir(folder) if _HOUR.fullmatch(name)]  # noqa: PTH208
    except FileNotFoundError:
        return 0
    return sum(len(os.listdir(folder / name)) for name in hours)  # noqa: PTH208  # 100,000 of them, time and again


def more_than(folder: Path, count: int) -> Callable[[], bool]:
    """Return a condition to wait for: more than `count` events are published."""
    return lambda: published_count(folder) > count


def judge(
    folder: Path,
    journal: list[JournalEntry],
    since_ms: int,
    finished: bool = True,
    appeared_ns: Callable[[Path], int] | None = None,
) -> Verdict:
    """Read a publish directory from scratch and judge it.

    The order is that in which the names appeared (`st_ctime_ns`, set by the rename; two names within
    one tick of the kernel's clock count as ordered).

    Args:
        folder: the publish directory.
        journal: everything upstream appended.
        since_ms: the relay's start time. A topic is expected from its first event dated at or after it,
            or from the first published event if that is earlier.
        finished: if true, everything must be there; otherwise everything up to the last published event
            of each topic.
        appeared_ns: returns when a name appeared, if the file no longer shows it.
    """
    seen, appeared, broken = _files(folder, appeared_ns or _changed_ns)
    expected = _expected(journal, since_ms, finished, seen)
    return _verdict(journal, [expected], seen, {0: appeared}, broken)


def judge_parts(folder: Path, journal: list[JournalEntry], *parts: Part) -> Verdict:
    """Judge a directory that must hold exactly the events of these parts.

    Args:
        parts: each must be in order by itself.
    """
    seen, appeared, broken = _files(folder, _changed_ns)
    return _parted(journal, parts, seen, {0: appeared}, broken)


def _changed_ns(path: Path) -> int:
    return path.stat().st_ctime_ns


def _files(
    folder: Path, appeared_ns: Callable[[Path], int]
) -> tuple[Counter[str], dict[str, int], list[str]]:
    """Return the count of each event, when each appeared, and the broken files."""
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


# ---- an archive ----


def judge_lines(
    lines: Iterable[bytes], journal: list[JournalEntry], since_ms: int, finished: bool
) -> Verdict:
    """Judge events that were published as lines, in this order; see `judge`."""
    seen: Counter[str] = Counter()
    places: dict[str, int] = {}
    broken = []
    for place, line in enumerate(lines):
        try:
            identity = orjson.loads(line)["meta"]["id"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            broken.append(f"line {place}")
            continue
        if not isinstance(identity, str):
            broken.append(f"line {place}")
            continue
        seen[identity] += 1
        places.setdefault(identity, place)
    expected = _expected(journal, since_ms, finished, seen)
    return _verdict(journal, [expected], seen, {0: places}, broken)


# ---- a topic ----


def judge_topic(
    bootstrap: str, topic: str, journal: list[JournalEntry], since_ms: int, finished: bool = True
) -> Verdict:
    """Read a topic from scratch, as a reader of committed records does, and judge it.

    The order is that of the offsets in each partition. All records of a key must be in one partition,
    because only then are they ordered. The SSE id, which is the key or else the header `id`, must give
    the event's own time to its own topic; the journal does not know the other entries.

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
    """Judge a topic that must hold exactly the events of these parts; see `judge_parts`."""
    seen, offsets, broken = _records(bootstrap, topic, journal)
    return _parted(journal, parts, seen, offsets, broken)


def _records(
    bootstrap: str, topic: str, journal: list[JournalEntry]
) -> tuple[Counter[str], dict[int, dict[str, int]], list[str]]:
    """Return the count of each event, its offset per partition, and the broken records."""
    records = topic_records(bootstrap, topic)
    entries = {entry.identity: entry for entry in journal}
    offsets: dict[int, dict[str, int]] = defaultdict(dict)
    seen: Counter[str] = Counter()
    broken = []
    partition_of: dict[bytes | None, int] = {}
    for record in records:
        identity, as_sent = _read(record, entries)
        seen[identity] += 1
        # Keep the first of duplicates; they are reported anyway.
        offsets[record.partition].setdefault(identity, record.offset)
        if partition_of.setdefault(record.key, record.partition) != record.partition or not as_sent:
            broken.append(identity)
    return seen, offsets, broken


def _read(record: Record, entries: Mapping[str, JournalEntry]) -> tuple[str, bool]:
    """Return a record's event identity, and whether its id and data are those of that event."""
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
    # The real service's id asks for the next event.
    own = (meta["topic"], meta["partition"]) == sent.source
    return identity, own and reached.get(sent.source) == sent.timestamp + 1


# ---- both ----


def _expected(
    journal: list[JournalEntry], since_ms: int, finished: bool, seen: Container[str]
) -> list[JournalEntry]:
    """The events that must be published."""
    expected = _begun(journal, since_ms, seen)
    if not finished:
        # The same backwards: up to the last published event of each topic.
        expected = _begun(expected[::-1], None, seen)[::-1]
    return expected


def _begun(
    journal: list[JournalEntry], since_ms: int | None, seen: Container[str]
) -> list[JournalEntry]:
    """All events of each topic from the first one that is published or late enough."""
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
    """Compare the published events with the expected ones.

    Args:
        known: the events that may be there.
        parts: the events that must be there, each part in this order.
        places: for each sequence of published events, the place of each event in it.
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
