"""SSE frames → events, dead letters and what is dropped.

Law: whatever the bytes are, a frame becomes exactly one of: an event, a dead letter with a reason, a
canary, an `error` message of the upstream, or nothing (no data). No exception leaves this file.

There are two ways, which give the same result: tests/property/test_decoding.py holds them equal. Frames
of which all is as usual go the fast one, many at a time. If anything among them is not, all of them go
the general one, through sseclient-py, which gets one whole, well-formed frame at a time (what it does
with cut or odd bytes is in docs/adr/0003).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import orjson
from sseclient import SSEClient

from pleiades.core.framing import Usual, ids_in, split_frames
from pleiades.core.identity import (
    are_names,
    digest,
    identity_of,
    loosely_loaded,
    own_assignment,
    substitute_identity,
)
from pleiades.core.ids import read_ids
from pleiades.core.position import MAX_SOURCES
from pleiades.core.wire import (
    LINE_TYPES,
    NOT_AN_OBJECT,
    NOT_JSON,
    UNKNOWN_SOURCE,
    Assignment,
    Batch,
    Canary,
    DeadLetter,
    Event,
    Frames,
    MalformedId,
    TopicPartition,
    events_of,
    parse_id,
)

_NOT_ASKED_FOR = Assignment(UNKNOWN_SOURCE, None)

_LINES_PER_PIECE = 500
_MAX_TIME_CHARACTERS = 40


class SseEvent(NamedTuple):
    """One dispatched SSE event (WHATWG, "dispatch the event")."""

    type: str
    id: bytes
    data: bytes


@dataclass(slots=True)
class Decoded:
    """What became of one `Frames`."""

    batch: Batch
    malformed_ids: int = 0
    replaced_identities: int = 0
    """Events whose `meta.id` was absent or can't be trusted as a name."""
    upstream_errors: list[bytes] = field(default_factory=list)
    """Data of events of type `error`: messages of the service, not events of the stream."""
    lines: dict[str, int] = field(default_factory=dict)

    @property
    def canaries(self) -> int:
        """How many were set apart."""
        return len(self.batch.canaries)


def general_sse_events(blob: bytes, last_event_id: bytes) -> Iterator[SseEvent]:
    """All events in a blob of whole frames, by sseclient-py."""
    for frame in split_frames(blob):
        for sse_id in ids_in(frame + b"\n"):
            last_event_id = sse_id
        if not frame.startswith(b"data") and b"\ndata" not in frame:
            # Nothing to dispatch; comments and such cost no parser each.
            continue
        # WHATWG decodes with replacement; sseclient-py raises.
        lines = frame.decode(errors="replace").encode().split(b"\n")
        event_type = "message"
        data = []
        # sseclient-py copies all it has with every line: in pieces, a frame of a million lines costs
        # no more than its length. The `data` at the end makes it give out every piece and is, as the
        # last, what does not get a newline; `event` carries the type from piece to piece.
        for start in range(0, len(lines), _LINES_PER_PIECE):
            piece = b"\n".join(
                (
                    b"event: " + event_type.encode(),
                    *lines[start : start + _LINES_PER_PIECE],
                    b"data\n\n",
                )
            )
            event = next(SSEClient(iter((piece,))).events())
            event_type = event.event
            data.append(event.data)
        whole = "".join(data)
        if whole:
            yield SseEvent(event_type, last_event_id, whole[:-1].encode())


def count_lines(blob: bytes) -> dict[str, int]:
    """Lines of a blob of whole frames by `LINE_TYPES`."""
    counts: dict[str, int] = {}
    for frame in split_frames(blob):
        for line in frame.split(b"\n"):
            name, colon, _ = line.partition(b":")
            kind = "comment" if colon and not name else name.decode(errors="replace")
            if kind not in LINE_TYPES:
                kind = "unknown"
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def decode(frames: Frames, keep_canaries: bool, more_topics: bool = False) -> Decoded:
    """Everything in `frames`: events to publish, dead letters, and the position after them.

    Args:
        more_topics: the stream has more topic-partitions than its connection asked for. An event that
            does not say whose it is gets no source then, as on a connection for all of them.
    """
    return decode_usual(frames, keep_canaries) or decode_any(frames, keep_canaries, more_topics)


def decode_any(frames: Frames, keep_canaries: bool, more_topics: bool = False) -> Decoded:
    """The general way of `decode`: it takes whatever comes, and has the final say."""
    unnamed = (_NOT_ASKED_FOR,) if more_topics else ()
    decoded = Decoded(_batch(frames, [], {}), lines=count_lines(frames.blob))
    timestamps_ms = decoded.batch.timestamps_ms
    for sse_event in general_sse_events(frames.blob, frames.last_event_id):
        if sse_event.type == "error":
            decoded.upstream_errors.append(sse_event.data)
            continue
        try:
            assignments = parse_id(sse_event.id)
        except MalformedId:
            decoded.malformed_ids += 1
            assignments = ()
        for source, timestamp_ms in assignments:
            # As many as a position can hold, as in `read_ids`.
            if source in timestamps_ms or len(timestamps_ms) < MAX_SOURCES:
                timestamps_ms[source] = max(timestamps_ms.get(source, 0), timestamp_ms or 0)
        _sort_out(sse_event, assignments + unnamed, keep_canaries, decoded)
    return decoded


def decode_usual(frames: Frames, keep_canaries: bool) -> Decoded | None:
    """The fast way of `decode`; None as soon as there is anything in it that is not as usual.

    Usual is: frames of the one shape, JSON, a name that can be trusted, no canary, and an id that says
    of the event's own topic-partition where it is.
    """
    if isinstance(frames.content, bytes):
        return None
    try:
        return _decoded_as_usual(frames, frames.content, keep_canaries)
    # UnicodeDecodeError is a ValueError, KeyError a LookupError.
    except (ValueError, LookupError, RecursionError, msgspec.MsgspecError):
        return None


class _Meta(msgspec.Struct, gc=False):
    """What is read of an event's `meta`, and of which type it must be."""

    id: str
    topic: str
    partition: int
    dt: str = ""
    domain: str | None = None


class _Body(msgspec.Struct, gc=False):
    meta: _Meta


_load = msgspec.json.Decoder(_Body).decode
"""Checks all of a JSON text and makes objects of `_Meta` only, but for one thing: it takes a string that
it skips for UTF-8 unseen."""


def _decoded_as_usual(frames: Frames, usual: Usual, keep_canaries: bool) -> Decoded:
    keys, data = usual
    metas = [_load(text).meta for text in data]
    for text in data:
        if not text.isascii():
            text.decode()
    identities = [meta.id for meta in metas]
    told = read_ids(keys)
    known = {source: source for source in told.timestamps_ms}
    sources = [known[meta.topic, meta.partition] for meta in metas]
    own_ms = [told.timestamps_ms[source][number] for number, source in enumerate(sources)]
    times = [meta.dt for meta in metas]
    if (
        told.ambiguous
        or not told.aligned
        or not all(own_ms)
        or not are_names(identities)
        or (not keep_canaries and "canary" in [meta.domain for meta in metas])
        or max(map(len, times)) > _MAX_TIME_CHARACTERS
    ):
        raise ValueError("not as usual")
    events = events_of(zip(identities, sources, own_ms, times, keys, data, strict=True))
    lines = dict.fromkeys(("id", "event", "data"), len(events))
    return Decoded(_batch(frames, events, told.greatest()), lines=lines)


def _batch(frames: Frames, events: list[Event], timestamps_ms: dict[TopicPartition, int]) -> Batch:
    return Batch(
        frames.sequence,
        frames.connection,
        events,
        [],
        [],
        timestamps_ms,
        frames.started_ms,
        frames.clock_ms,
        frames.source,
        frames.finished,
        frames.gap,
    )


def _sort_out(
    sse_event: SseEvent,
    assignments: tuple[Assignment, ...],
    keep_canaries: bool,
    decoded: Decoded,
) -> None:
    try:
        body = orjson.loads(sse_event.data)
    except orjson.JSONDecodeError:
        # The fast way leaves invalid UTF-8 to be found here.
        sse_event = sse_event._replace(data=sse_event.data.decode(errors="replace").encode())
        try:
            body = loosely_loaded(sse_event.data)
        except (ValueError, RecursionError):
            _dead_letter(NOT_JSON, sse_event, assignments, decoded)
            return
    if type(body) is not dict:
        _dead_letter(NOT_AN_OBJECT, sse_event, assignments, decoded)
        return
    meta = body.get("meta")
    if type(meta) is not dict:
        meta = {}
    if not keep_canaries and meta.get("domain") == "canary":
        place = len(decoded.batch.events)
        decoded.batch.canaries.append(Canary(*own_assignment(meta, assignments), place))
        return
    identity = identity_of(meta)
    if identity is None:
        identity = substitute_identity(meta, sse_event.data)
        decoded.replaced_identities += 1
    source, timestamp_ms = own_assignment(meta, assignments)
    decoded.batch.events.append(
        Event(identity, source, timestamp_ms, _time(meta), sse_event.id, sse_event.data),
    )


def _time(meta: dict[str, Any]) -> str:
    text = meta.get("dt")
    return text if type(text) is str and len(text) <= _MAX_TIME_CHARACTERS else ""


def _dead_letter(
    reason: str, sse_event: SseEvent, assignments: tuple[Assignment, ...], decoded: Decoded
) -> None:
    source, timestamp_ms = own_assignment({}, assignments)
    decoded.batch.dead_letters.append(
        DeadLetter(
            digest(sse_event.data),
            source,
            timestamp_ms,
            reason,
            sse_event.id,
            sse_event.data,
            len(decoded.batch.events),
        )
    )
