"""SSE frames → events.

Laws:
- Whatever the bytes are, a frame becomes exactly one of: an event, with a reason if it is a dead letter
  or a canary; an `error` message of the upstream; or nothing, if it has no data. No exception leaves
  this module.
- A frame costs time in proportion to its length, and memory of at most about twenty times its length.

There are two paths with the same result (tests/property/test_decoding.py). The fast path decodes many
frames of the usual shape at a time. If anything in them is unusual, all of them take the general path,
through sseclient-py (`core.sse`).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from pleiades.core.body import NotJson, read_body
from pleiades.core.columns import Columns
from pleiades.core.event import CANARY, NOT_AN_OBJECT, NOT_JSON, Batch, Event, Frames, unpublished
from pleiades.core.framing import retry_in
from pleiades.core.identity import (
    are_names,
    delivered_assignment,
    fallback_identity,
    identity_of,
    is_fallback,
    own_assignment,
)
from pleiades.core.position import MAX_SOURCES
from pleiades.core.sse import SseEvent, count_lines, sse_events
from pleiades.core.sse_id import UNKNOWN_SOURCE, Assignment, MalformedId, TopicPartition, parse_id
from pleiades.core.usual import UsualFrames, usual_frames

_NOT_ASKED_FOR = Assignment(UNKNOWN_SOURCE, None)

_MAX_TIME_CHARACTERS = 40


@dataclass(slots=True)
class Decoded:
    """The result for one `Frames`."""

    batch: Batch
    malformed_ids: int = 0
    replaced_identities: int = 0
    """Events whose `meta.id` is absent or not safe as a name."""
    upstream_errors: list[bytes] = field(default_factory=list)
    """Data of events of type `error`: messages of the service, not events of the stream."""
    lines: dict[str, int] = field(default_factory=dict)
    canaries: int = 0
    """Canary events that are not published."""
    retry_ms: int | None = None
    """The last `retry` field."""


def decode(frames: Frames, keep_canaries: bool, more_topics: bool = False) -> Decoded:
    """Decode frames into a batch: events, and the position after them.

    Args:
        more_topics: the stream has more topic-partitions than the connection asked for. An event that
            does not name its source then gets none, as on a connection for all of them.
    """
    return decode_usual(frames, keep_canaries) or decode_any(frames, keep_canaries, more_topics)


def decode_any(frames: Frames, keep_canaries: bool, more_topics: bool = False) -> Decoded:
    """The general path of `decode`, which accepts any bytes and defines the result."""
    unnamed = (_NOT_ASKED_FOR,) if more_topics else ()
    events: list[Event] = []
    timestamps_ms: dict[TopicPartition, int] = {}
    decoded = Decoded(
        _batch(frames, events, timestamps_ms),
        lines=count_lines(frames.blob),
        retry_ms=retry_in(frames.blob),
    )
    for sse_event in sse_events(frames.blob, frames.last_event_id):
        if sse_event.type == "error":
            decoded.upstream_errors.append(sse_event.data)
            continue
        assignments = _assignments(sse_event.id)
        if assignments is None:
            decoded.malformed_ids += 1
            assignments = ()
        for source, timestamp_ms in assignments:
            # Bounded like a position, as in `read_ids`.
            if source in timestamps_ms or len(timestamps_ms) < MAX_SOURCES:
                timestamps_ms[source] = max(timestamps_ms.get(source, 0), timestamp_ms or 0)
        event = _sorted_out(_Delivery(sse_event, assignments, unnamed), keep_canaries, decoded)
        events.append(event)
    fallbacks = sum(is_fallback(event.identity) for event in events)
    decoded.batch = decoded.batch._replace(fallbacks=fallbacks)
    return decoded


class _Delivery(NamedTuple):
    """An event as delivered."""

    event: SseEvent
    assignments: tuple[Assignment, ...]
    unnamed: tuple[Assignment, ...]
    """Entries that its id would have, too, on a connection for all topics."""

    def own(self, meta: dict[str, Any]) -> tuple[TopicPartition, int]:
        """The source by the event alone, so the same on every connection."""
        return own_assignment(meta, self.assignments + self.unnamed)

    def delivered(self, meta: dict[str, Any]) -> tuple[TopicPartition, int]:
        """The source by everything that is known."""
        own = delivered_assignment(meta, self.assignments, ())
        before = self.event.id_before
        if own[0] != UNKNOWN_SOURCE or not before:
            return own
        return delivered_assignment(meta, self.assignments, _assignments(before) or ())


def _assignments(sse_id: bytes) -> tuple[Assignment, ...] | None:
    """The entries of an id; None if it is malformed."""
    try:
        return parse_id(sse_id)
    except MalformedId:
        return None


def decode_usual(frames: Frames, keep_canaries: bool) -> Decoded | None:
    """The fast path of `decode`; None if anything in the frames is unusual.

    Usual means: frames of the usual shape, JSON, an identity that is safe as a name, no canary, and an
    id with a timestamp for the event's own topic-partition.
    """
    usual = usual_frames(frames.blob)
    if usual is None:
        return None
    try:
        return _decoded_as_usual(frames, usual, keep_canaries)
    # UnicodeDecodeError is a ValueError, KeyError a LookupError.
    except (ValueError, LookupError, RecursionError, msgspec.MsgspecError):
        return None


class _Meta(msgspec.Struct, gc=False):
    """The fields of `meta` that the fast path reads, with their types."""

    id: str
    topic: str
    partition: int
    dt: str = ""
    domain: str | None = None


class _Body(msgspec.Struct, gc=False):
    meta: _Meta


_load = msgspec.json.Decoder(_Body).decode
"""Checks a JSON text and builds `_Meta` only. It does not check the UTF-8 of strings that it skips."""


def _decoded_as_usual(frames: Frames, usual: UsualFrames, keep_canaries: bool) -> Decoded:
    metas = [_load(text).meta for text in usual.data]
    for text in usual.data:
        if not text.isascii():
            text.decode()
    identities = [meta.id for meta in metas]
    timestamps_ms = usual.ids.timestamps_ms
    number_of = {source: number for number, source in enumerate(timestamps_ms)}
    numbers = bytes([number_of[meta.topic, meta.partition] for meta in metas])
    of = list(timestamps_ms.values())
    own_ms = [of[number][place] or 0 for place, number in enumerate(numbers)]
    times = [meta.dt for meta in metas]
    joined_times = "\n".join(times)
    if (
        not all(own_ms)
        or not are_names(identities)
        or (not keep_canaries and "canary" in [meta.domain for meta in metas])
        or max(map(len, times)) > _MAX_TIME_CHARACTERS
        or joined_times.count("\n") >= len(times)
    ):
        raise ValueError("not as usual")
    events = Columns(
        frames.blob,
        identities,
        list(number_of),
        numbers,
        array("q", own_ms),
        joined_times,
        usual.id_bytes,
        array("I", map(len, usual.data)),
    )
    lines = dict.fromkeys(("id", "event", "data"), len(metas))
    return Decoded(_batch(frames, events, usual.ids.greatest()), lines=lines)


def _batch(
    frames: Frames, events: Sequence[Event], timestamps_ms: dict[TopicPartition, int]
) -> Batch:
    return Batch(
        frames.sequence,
        frames.connection,
        events,
        timestamps_ms,
        frames.started_ms,
        frames.clock_ms,
        frames.source,
        frames.finished,
        frames.gap,
        asked=frames.asked,
    )


def _sorted_out(delivery: _Delivery, keep_canaries: bool, decoded: Decoded) -> Event:
    sse_event = delivery.event
    try:
        body = read_body(sse_event.data)
    except NotJson:
        return _dead_letter(NOT_JSON, delivery)
    if body is None:
        return _dead_letter(NOT_AN_OBJECT, delivery)
    meta = body.meta
    source, timestamp_ms = delivery.own(meta)
    if not keep_canaries and meta.get("domain") == "canary":
        decoded.canaries += 1
        return unpublished(source, timestamp_ms, CANARY)
    identity = identity_of(meta)
    if identity is None:
        source, timestamp_ms = delivery.delivered(meta)
        identity = fallback_identity(source, timestamp_ms, body.content)
        decoded.replaced_identities += 1
    return Event(identity, source, timestamp_ms, _time(meta), sse_event.id, sse_event.data)


def _time(meta: dict[str, Any]) -> str:
    text = meta.get("dt")
    return text if type(text) is str and len(text) <= _MAX_TIME_CHARACTERS else ""


def _dead_letter(reason: str, delivery: _Delivery) -> Event:
    data = delivery.event.data
    source, timestamp_ms = delivery.delivered({})
    identity = fallback_identity(source, timestamp_ms, data)
    return Event(identity, source, timestamp_ms, "", delivery.event.id, data, reason)
