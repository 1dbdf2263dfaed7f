"""Recorded events instead of generated ones: one JSON per line, or an SSE capture.

Law: the data leave byte for byte as they are in the file. Lines end with LF or CR LF; U+2028 and U+0085
are text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from pleiades.core.sse_id import Assignment, MalformedId, TopicPartition, is_source, parse_id
from pleiades.core.units import parse_iso_time_ms
from pleiades.runtime.errors import UsageError
from pleiades.simulator.log import Fresh
from pleiades.simulator.settings import SimulatorSettings


def read_recorded(path: Path, default_topic: str) -> list[Fresh]:
    """All events of a `.sse` or `.ndjson` file; `default_topic` is for those that do not name theirs.

    The timestamp is that of the id, minus 1 ms, else `meta.dt`, else that of the event before.

    Raises:
        UsageError: the file can't be read or holds no events.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read the recorded events: {error}; check --file") from None
    events: list[Fresh] = []
    for data, sse_id in recorded_pairs(text, sse=path.suffix == ".sse"):
        last_ms = events[-1].timestamp_ms if events else 0
        events.append(recorded_event(data, sse_id, default_topic, last_ms))
    if not events:
        raise UsageError(f"{path} holds no events; --file takes .ndjson or .sse")
    return events


def recorded_pairs(text: bytes, sse: bool) -> Iterator[tuple[bytes, bytes]]:
    """The data and id of each event of a file; the id is empty in .ndjson."""
    lines = (line.removesuffix(b"\r") for line in text.split(b"\n"))
    if not sse:
        yield from ((line, b"") for line in lines if line)
        return
    data: list[bytes] = []
    sse_id, kind = b"", b"message"
    for line in lines:
        name, _, field = line.partition(b":")
        field = field.removeprefix(b" ")
        if not line:
            if data and kind == b"message":
                # They leave as several `data` lines again.
                yield b"\ndata: ".join(data), sse_id
            data, kind = [], b"message"
        elif name == b"data":
            data.append(field)
        elif name == b"id":
            sse_id = field
        elif name == b"event":
            kind = field


def recorded_event(data: bytes, sse_id: bytes, default_topic: str, last_ms: int) -> Fresh:
    """One event; `last_ms` is the timestamp of the event before, for one without a date."""
    try:
        meta: Any = orjson.loads(data).get("meta")
    except (orjson.JSONDecodeError, AttributeError):
        meta = None
    if not isinstance(meta, dict):
        meta = {}
    topic, partition = meta.get("topic"), meta.get("partition")
    source = (
        topic if is_source((topic, 0)) else default_topic,
        partition if is_source((default_topic, partition)) else 0,
    )
    identity = meta.get("id")
    timestamp_ms = _id_ms(sse_id, source)
    if timestamp_ms is None:
        timestamp_ms = _dt_ms(meta.get("dt"))
    # An identity of another type may be nested too deeply to be shown.
    shown = str(identity) if isinstance(identity, str | int | float) else ""
    canary = meta.get("domain") == "canary"
    return Fresh(
        0.0, source, last_ms if timestamp_ms is None else timestamp_ms, data, 0, shown, canary
    )


def _id_ms(sse_id: bytes, source: TopicPartition) -> int | None:
    try:
        assignments: tuple[Assignment, ...] = parse_id(sse_id) if sse_id else ()
    except MalformedId:
        return None
    for assigned, timestamp_ms in assignments:
        if assigned == source and timestamp_ms is not None:
            return timestamp_ms - 1
    return None


def _dt_ms(dt: object) -> int | None:
    try:
        return parse_iso_time_ms(dt) if isinstance(dt, str) else None
    except (ValueError, OverflowError):
        return None


def replayed(events: list[Fresh], settings: SimulatorSettings, started_ms: int) -> Iterator[Fresh]:
    """Recorded events at the pace of the settings; `started_ms` is the simulator's start."""
    period_ms = settings.period_ms()
    reached: dict[TopicPartition, int] = {}
    for number, event in enumerate(events, start=-settings.history_events):
        timestamp_ms = event.timestamp_ms
        if settings.shift_timestamps:
            reached[event.source] = max(reached.get(event.source, 0), timestamp_ms)
            behind_ms = reached[event.source] - timestamp_ms
            timestamp_ms = max(started_ms + int(number * period_ms) - behind_ms, 0)
        yield event._replace(due_ms=number * period_ms, timestamp_ms=timestamp_ms)
