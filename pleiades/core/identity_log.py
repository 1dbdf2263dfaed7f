"""The format of an identity log, by which a destination remembers what it has published.

A log is a sequence of groups, one per commit: a header in JSON, then the fingerprints of the events. The
header also holds the number of the commit and its checkpoint, which can replace a damaged one.

Laws:
- A group is read as it was encoded, or `DamagedLog` is raised: each group carries a CRC.
- `merged` forgets only what `Checkpoint.known_from` allows, and what exceeds the given bound.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from pleiades.core.checkpoint import Checkpoint, UnreadableCheckpoint, decode_checkpoint
from pleiades.core.fingerprint import FINGERPRINT_BYTES
from pleiades.core.sse_id import UNKNOWN_SOURCE, TopicPartition, is_source

MAX_RUNS = 10_000
"""`merged` joins more runs than that: each takes 50 bytes in the header."""
MAX_HEADER_BYTES = 4 * 1024 * 1024
MAX_FINGERPRINTS_BYTES = 1024 * 1024 * 1024
"""The longest group is a merged one: it holds up to `--dedup.maxEntries` fingerprints."""

_PREFIX = struct.Struct(">4sIIQ")
"""Mark, CRC-32 of the rest, length of the header, length of the fingerprints."""
_MARK = b"PlG1"


class DamagedLog(Exception):
    """The log does not hold what was appended to it."""


class Run(NamedTuple):
    """Events of one topic-partition, in the order of delivery."""

    source: TopicPartition
    reached_ms: int
    """The greatest timestamp that `source` had delivered when they were published, or a later one."""
    fingerprints: bytes
    """Concatenated."""


class Group(NamedTuple):
    """The events of one commit, or of several that were merged."""

    commit: int
    """The number of the (last) commit; the numbers in a log ascend."""
    checkpoint: Checkpoint
    runs: list[Run]
    own: Any = None
    """The destination's own fields of this commit, as JSON has them."""

    def encoded(self) -> bytes:
        """The bytes to append to the log."""
        rows = [
            (*run.source, run.reached_ms, len(run.fingerprints) // FINGERPRINT_BYTES)
            for run in self.runs
        ]
        checkpoint = orjson.Fragment(self.checkpoint.encoded())
        fields = {"commit": self.commit, "checkpoint": checkpoint, "runs": rows}
        if self.own is not None:
            fields["own"] = self.own
        header = orjson.dumps(fields)
        fingerprints = b"".join([run.fingerprints for run in self.runs])
        crc = zlib.crc32(fingerprints, zlib.crc32(header))
        return _PREFIX.pack(_MARK, crc, len(header), len(fingerprints)) + header + fingerprints


def read_groups(read: Callable[[int], bytes]) -> Iterator[Group]:
    """Read a log to its end.

    Args:
        read: returns the next so many bytes of the log; fewer at its end.

    Raises:
        DamagedLog: the next bytes are no group, or it is cut short.
    """
    while prefix := read(_PREFIX.size):
        if len(prefix) != _PREFIX.size:
            raise DamagedLog("it is cut short")
        mark, crc, header_bytes, fingerprints_bytes = _PREFIX.unpack(prefix)
        if (
            mark != _MARK
            or header_bytes > MAX_HEADER_BYTES
            or fingerprints_bytes > MAX_FINGERPRINTS_BYTES
        ):
            raise DamagedLog("it holds something else")
        header, fingerprints = read(header_bytes), read(fingerprints_bytes)
        if len(header) + len(fingerprints) != header_bytes + fingerprints_bytes:
            raise DamagedLog("it is cut short")
        if zlib.crc32(fingerprints, zlib.crc32(header)) != crc:
            raise DamagedLog("a checksum does not match")
        yield _group(header, fingerprints)


def _group(header: bytes, fingerprints: bytes) -> Group:
    try:
        fields: dict[str, Any] = orjson.loads(header)
        checkpoint = decode_checkpoint(orjson.dumps(fields["checkpoint"]))
        commit = fields["commit"]
        runs, at = [], 0
        for topic, partition, reached_ms, count in fields["runs"]:
            source = (topic, partition)
            end = at + count * FINGERPRINT_BYTES
            if not (is_source(source) or source == UNKNOWN_SOURCE) or not at <= end:
                raise DamagedLog("it holds something else")
            runs.append(Run(source, reached_ms, fingerprints[at:end]))
            at = end
    except (ValueError, KeyError, TypeError, UnreadableCheckpoint) as error:
        raise DamagedLog(f"a header can't be read ({type(error).__name__})") from None
    if at != len(fingerprints) or type(commit) is not int:
        raise DamagedLog("it holds something else")
    return Group(commit, checkpoint, runs, fields.get("own"))


def merged(groups: Sequence[Group], max_entries: int) -> Group:
    """One group in place of all groups of a log, without the events that may be forgotten.

    Args:
        max_entries: the newest so many events are kept.
    """
    last = groups[-1]
    known_from = last.checkpoint.known_from
    runs = [run for group in groups for run in group.runs]
    kept: list[Run] = []
    room_bytes = max_entries * FINGERPRINT_BYTES
    for run in reversed(runs):
        if room_bytes and run.reached_ms >= known_from.get(run.source, 0):
            newest = run._replace(fingerprints=run.fingerprints[-room_bytes:])
            room_bytes -= len(newest.fingerprints)
            kept.append(newest)
    return last._replace(runs=joined(kept[::-1]))


def joined(runs: Sequence[Run]) -> list[Run]:
    """About `MAX_RUNS` runs at most, with the same events; some events are kept longer by that."""
    most = -(-len(runs) // MAX_RUNS)
    by_source: dict[TopicPartition, list[list[Run]]] = {}
    for run in runs:
        parts = by_source.setdefault(run.source, [[]])
        # The timestamp falls where another start began, whose events can be forgotten earlier.
        if len(parts[-1]) == most or (parts[-1] and run.reached_ms < parts[-1][-1].reached_ms):
            parts.append([])
        parts[-1].append(run)
    return [
        Run(source, part[-1].reached_ms, b"".join([run.fingerprints for run in part]))
        for source, parts in by_source.items()
        for part in parts
    ]
