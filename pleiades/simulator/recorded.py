"""Recorded events instead of generated ones: one JSON per line, or an SSE capture.

Law: the data leave byte for byte as they are in the file. Lines end with LF or CR LF; U+2028 and U+0085
are text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from pleiades.core.event import time_ms
from pleiades.core.sse_id import MalformedId, TopicPartition, is_source, parse_id
from pleiades.runtime.errors import UsageError
from pleiades.simulator.log import Fresh
from pleiades.simulator.settings import SimulatorSettings

_FIELD = re.compile(rb"^(data|event|id)(?::\x20?(.*))?$", re.MULTILINE)


def read_recorded(path: Path, default_topic: str) -> list[Fresh]:
    """All events of a `.sse` or `.ndjson` file; `default_topic` is for those that do not name theirs.

    The timestamp is that of the id, minus 1 ms, else `meta.dt`, else that of the event before.

    Raises:
        UsageError: the file can't be read or holds no events.
    """
    events: list[Fresh] = []
    last_ms = 0
    try:
        for data, sse_id in recorded_pairs(path.read_bytes(), sse=path.suffix == ".sse"):
            events.append(recorded_event(data, sse_id, default_topic, last_ms))
            last_ms = events[-1].timestamp_ms
    except OSError as error:
        raise UsageError(f"can't read the recorded events: {error}; check --file") from None
    if not events:
        raise UsageError(f"{path} holds no events; --file takes .ndjson or .sse")
    return events


def recorded_pairs(text: bytes, sse: bool) -> Iterator[tuple[bytes, bytes]]:
    """The data and id of each event of a file; the id is empty in .ndjson."""
    text = text.replace(b"\r\n", b"\n")
    if not sse:
        yield from ((line, b"") for line in text.split(b"\n") if line)
        return
    sse_id = b""
    for frame in text.split(b"\n\n")[:-1]:
        fields = _FIELD.findall(frame)
        last = dict(fields)
        sse_id = last.get(b"id", sse_id)
        data = [value for name, value in fields if name == b"data"]
        if data and last.get(b"event", b"message") == b"message":
            # They leave as several `data` lines again.
            yield b"\ndata: ".join(data), sse_id


def recorded_event(data: bytes, sse_id: bytes, default_topic: str, last_ms: int) -> Fresh:
    """One event; `last_ms` is the timestamp of the event before, for one without a date."""
    try:
        meta: Any = orjson.loads(data)["meta"]
        topic, partition, identity, dt = map(meta.get, ("topic", "partition", "id", "dt"))
        canary = meta.get("domain") == "canary"
    except (ValueError, LookupError, TypeError, AttributeError):
        topic, partition, identity, dt, canary = None, None, None, None, False
    source = (
        topic if is_source((topic, 0)) else default_topic,
        partition if is_source((default_topic, partition)) else 0,
    )
    try:
        id_ms = (dict(parse_id(sse_id)).get(source) or 1) - 1
    except MalformedId:
        id_ms = 0
    timestamp_ms = id_ms or time_ms(dt if isinstance(dt, str) else "") or last_ms
    # An identity of another type may be nested too deeply to be shown.
    shown = str(identity) if isinstance(identity, str | int | float) else ""
    return Fresh(0.0, source, timestamp_ms, data, 0, shown, canary)


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
