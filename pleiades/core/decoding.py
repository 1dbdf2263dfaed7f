"""SSE frames → events, dead letters and what is dropped.

Law: whatever the bytes are, a frame becomes exactly one of: an event, a dead letter with a reason, a
canary, an `error` message of the upstream, or nothing (no data). No exception leaves this file.

Usual frames go through one regular expression. Everything else goes through sseclient-py, which gets
one whole, well-formed frame at a time (what it does with cut or odd bytes is in docs/adr/0003). Both
ways give the same result: tests/property/test_decoding.py holds them equal.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
from sseclient import SSEClient

from pleiades.core.framing import ids_in, split_frames
from pleiades.core.wire import (
    MAX_TIMESTAMP_MS,
    UNKNOWN_SOURCE,
    Assignment,
    Batch,
    DeadLetter,
    Event,
    Frames,
    MalformedId,
    TopicPartition,
    parse_id,
)

NOT_JSON = "not_json"
NOT_AN_OBJECT = "not_an_object"
REASONS = (NOT_JSON, NOT_AN_OBJECT)
"""Why an event becomes a dead letter."""

LINE_TYPES = ("id", "event", "data", "comment", "unknown")
"""The kinds of lines that are counted; `retry` counts as unknown, as in the original Pleiades."""

# The one shape EventStreams sends. `[^\n\0]`: an id with a NUL is no id (WHATWG).
_USUAL = re.compile(rb"event: message\nid: ([^\n\0]+)\ndata: ([^\n]+)\n\n")
_USUAL_OVERHEAD_BYTES = len(b"event: message\nid: \ndata: \n\n")

_IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class SseEvent(NamedTuple):
    """One dispatched SSE event (WHATWG, "dispatch the event")."""

    type: str
    id: bytes
    data: bytes


@dataclass(slots=True)
class Decoded:
    """What became of one `Frames`."""

    batch: Batch
    canaries: int = 0
    malformed_ids: int = 0
    replaced_identities: int = 0
    """Events whose `meta.id` was absent or can't be trusted as a name."""
    upstream_errors: list[bytes] = field(default_factory=list)
    """Data of events of type `error`: messages of the service, not events of the stream."""
    lines: dict[str, int] = field(default_factory=dict)


def sse_events(blob: bytes, last_event_id: bytes) -> list[SseEvent]:
    """All events in a blob of whole frames; the usual shape fast, everything else in general."""
    usual = _USUAL.findall(blob)
    if sum(map(_usual_length, usual)) == len(blob):
        return [SseEvent("message", sse_id, data) for sse_id, data in usual]
    return list(general_sse_events(blob, last_event_id))


def _usual_length(groups: tuple[bytes, bytes]) -> int:
    return len(groups[0]) + len(groups[1]) + _USUAL_OVERHEAD_BYTES


def general_sse_events(blob: bytes, last_event_id: bytes) -> Iterator[SseEvent]:
    """All events in a blob of whole frames, by sseclient-py."""
    for frame in split_frames(blob):
        for sse_id in ids_in(frame + b"\n"):
            last_event_id = sse_id
        try:
            whole = frame.decode().encode()
        except UnicodeDecodeError:
            # WHATWG decodes with replacement; sseclient-py raises.
            whole = frame.decode(errors="replace").encode()
        for event in SSEClient(iter((whole + b"\n\n",))).events():
            yield SseEvent(event.event, last_event_id, event.data.encode())


def count_lines(blob: bytes, events: int) -> dict[str, int]:
    """Lines of a blob by `LINE_TYPES`; `events` is the number of events found in it."""
    lines = blob.count(b"\n") - blob.count(b"\n\n")
    if lines == 3 * events and blob.count(b"\ndata: ") == events:
        return {"id": events, "event": events, "data": events}
    counts: dict[str, int] = {}
    for frame in split_frames(blob):
        for line in frame.split(b"\n"):
            name, colon, _ = line.partition(b":")
            kind = "comment" if colon and not name else name.decode(errors="replace")
            if kind not in LINE_TYPES:
                kind = "unknown"
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def decode(frames: Frames, keep_canaries: bool) -> Decoded:
    """Everything in `frames`: events to publish, dead letters, and the position after them."""
    decoded = Decoded(
        Batch(frames.sequence, [], [], {}, frames.started_ms, frames.clock_ms),
    )
    found = sse_events(frames.blob, frames.last_event_id)
    decoded.lines = count_lines(frames.blob, len(found))
    timestamps_ms = decoded.batch.timestamps_ms
    for sse_event in found:
        if sse_event.type == "error":
            decoded.upstream_errors.append(sse_event.data)
            continue
        try:
            assignments = parse_id(sse_event.id)
        except MalformedId:
            decoded.malformed_ids += 1
            assignments = ()
        for source, timestamp_ms in assignments:
            if (timestamp_ms or 0) > timestamps_ms.get(source, -1):
                timestamps_ms[source] = timestamp_ms or 0
        _sort_out(sse_event, assignments, keep_canaries, decoded)
    return decoded


def _sort_out(
    sse_event: SseEvent,
    assignments: tuple[Assignment, ...],
    keep_canaries: bool,
    decoded: Decoded,
) -> None:
    data = sse_event.data
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            # The fast way leaves invalid UTF-8 to be found here.
            repaired = data.decode(errors="replace").encode()
            body = orjson.loads(repaired)
            data = repaired
        except orjson.JSONDecodeError:
            _dead_letter(NOT_JSON, sse_event, assignments, decoded)
            return
    if type(body) is not dict:
        _dead_letter(NOT_AN_OBJECT, sse_event, assignments, decoded)
        return
    meta = body.get("meta")
    if type(meta) is not dict:
        meta = {}
    if not keep_canaries and meta.get("domain") == "canary":
        decoded.canaries += 1
        return
    identity = meta.get("id")
    if type(identity) is not str or _IDENTITY.fullmatch(identity) is None:
        identity = substitute_identity(meta, data)
        decoded.replaced_identities += 1
    source, timestamp_ms = own_assignment(meta, assignments)
    dt_ms = time_ms(meta.get("dt"))
    decoded.batch.events.append(
        Event(identity, source, timestamp_ms, dt_ms, sse_event.id, data),
    )


def _dead_letter(
    reason: str, sse_event: SseEvent, assignments: tuple[Assignment, ...], decoded: Decoded
) -> None:
    source, timestamp_ms = own_assignment({}, assignments)
    decoded.batch.dead_letters.append(
        DeadLetter(
            digest(sse_event.data), source, timestamp_ms, reason, sse_event.id, sse_event.data
        )
    )


def own_assignment(
    meta: dict[str, Any], assignments: tuple[Assignment, ...]
) -> tuple[TopicPartition, int]:
    """Which entry of its id is the event's own: the one `meta` names, else the only one.

    Returns the unknown source with the greatest timestamp in the id where that stays open.
    """
    topic = meta.get("topic")
    if type(topic) is str:
        partition = meta.get("partition", 0)
        for source, timestamp_ms in assignments:
            if timestamp_ms is not None and source[0] == topic and source[1] == partition:
                return source, timestamp_ms
    timed = [(source, time) for source, time in assignments if time is not None]
    if len(timed) == 1 and len(assignments) == 1:
        return timed[0]
    return UNKNOWN_SOURCE, max((time for _, time in timed), default=0)


def substitute_identity(meta: dict[str, Any], data: bytes) -> str:
    """A name for an event without a usable `meta.id`: its place in Kafka, else its digest."""
    topic, partition, offset = meta.get("topic"), meta.get("partition"), meta.get("offset")
    if type(topic) is str and type(partition) is int and type(offset) is int:
        place = f"{topic}-{partition}-{offset}"
        if _IDENTITY.fullmatch(place) is not None:
            return place
    return digest(data)


def digest(data: bytes) -> str:
    """Names bytes by their content."""
    return "sha256-" + hashlib.sha256(data).hexdigest()


def time_ms(text: object) -> int:
    """An ISO 8601 time in ms since 1970, UTC where it names no zone; 0 if it is none."""
    if type(text) is not str or not 10 <= len(text) <= 40:
        return 0
    try:
        when = datetime.fromisoformat(text)
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        milliseconds = int(when.timestamp() * 1000)
    except (ValueError, OverflowError):
        return 0
    return milliseconds if 0 <= milliseconds <= MAX_TIMESTAMP_MS else 0
