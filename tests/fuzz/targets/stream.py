"""Bytes of the event stream: frames, ids, events."""

from __future__ import annotations

import os.path
import pickle
import random
import re

from pleiades.core.checkpoint import Checkpoint, decode_checkpoint
from pleiades.core.decoding import (
    Decoded,
    decode,
    decode_any,
    decode_usual,
)
from pleiades.core.event import CANARY, LINE_TYPES, REASONS, Event, Frames
from pleiades.core.framing import (
    Framer,
    ids_in,
    retry_in,
    split_frames,
)
from pleiades.core.identity import identify, is_fallback
from pleiades.core.ids import read_ids
from pleiades.core.position import join
from pleiades.core.resume_cursor import ResumeCursor
from pleiades.core.sse import sse_events
from pleiades.core.sse_id import (
    MAX_ASSIGNMENTS,
    MAX_TIMESTAMP_MS,
    UNKNOWN_SOURCE,
    MalformedId,
    compose_id,
    is_source,
    parse_id,
)
from pleiades.core.usual import usual_frames
from pleiades.sinks.files.names import (
    dead_letter_name,
    event_name,
    folder_of,
    identity_in,
    is_event_folder,
)
from tests.fuzz.reference import Interpretation, interpret
from tests.fuzz.target import cut, parts

MAX_FILE_NAME_BYTES = 255
"""The limit of Linux's file systems."""
MAX_RETRY_DIGITS = 12
"""`retry_in` truncates longer ones; these are years."""
MIN_FRAME_LIMIT = 3
"""With a lower limit, half a byte order mark is already too long."""
NO_LIMIT = 10**9
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


# ---- framing ----


def framing(raw: bytes) -> None:
    """The first byte determines the split and the frame limit; the rest is the stream."""
    seed, stream = raw[:1], raw[1:]
    rng = random.Random(seed)
    limit = rng.choice((MIN_FRAME_LIMIT, 8, 30, 200))
    whole = interpret(stream)
    _limited(whole, limit, [stream])
    _limited(whole, limit, cut(stream, rng))
    _limited(whole, limit, [stream[at : at + 1] for at in range(len(stream))])
    for chunks in ([stream], cut(stream, rng)):
        _unlimited(chunks, whole)


def _limited(whole: Interpretation, limit: int, chunks: list[bytes]) -> None:
    framer = Framer(limit)
    frames: list[bytes] = []
    for chunk in chunks:
        blob = framer.feed(chunk)
        assert blob == b"" or blob.endswith(b"\n\n"), "an unended frame was given out"
        assert b"\r" not in blob, "a CR was given out"
        assert len(framer._pending) <= limit, "more is held than the limit"
        frames += split_frames(blob)
    kept = [frame for frame in whole.frames if len(frame) + 1 <= limit]
    assert frames == kept, "other frames than the specification's"
    oversized = len(whole.frames) - len(kept) + (whole.unended > limit)
    assert framer.oversized_total == oversized, "oversized frames are miscounted"


def _unlimited(chunks: list[bytes], whole: Interpretation) -> None:
    framer = Framer(NO_LIMIT)
    events: list[tuple[str, bytes, bytes]] = []
    last_event_id, retry_ms = b"", None
    for chunk in chunks:
        blob = framer.feed(chunk)
        if (usual := usual_frames(blob)) is not None:
            ids = ids_in(blob)
            assert usual.ids == read_ids(ids), "other ids than came"
            assert {len(sse_id) for sse_id in ids} == {usual.id_bytes}
            assert retry_in(blob) is None
            received = _received(blob, last_event_id)
            decoded = decode_usual(received, keep_canaries=False)
            if decoded is not None:
                assert decoded == decode_any(received, keep_canaries=False), "the fast way differs"
        events += [event[:3] for event in sse_events(blob, last_event_id)]
        last_event_id = (ids_in(blob) or [last_event_id])[-1]
        found = retry_in(blob)
        retry_ms = retry_ms if found is None else found
    assert events == whole.events, "other events than the specification's"
    assert last_event_id == whole.last_event_id, "another last event ID"
    expected = whole.retry and whole.retry.lstrip(b"0")
    if expected is None:
        assert retry_ms is None
    elif len(expected) <= MAX_RETRY_DIGITS:
        assert retry_ms == int(expected or b"0"), "another retry"


# ---- ids ----


def sse_id(raw: bytes) -> None:
    """An id is the documented array, and can be requested again; anything else is `MalformedId`."""
    try:
        assignments = parse_id(raw)
    except MalformedId as error:
        assert str(error)
        return
    assert len(assignments) <= MAX_ASSIGNMENTS
    course = ResumeCursor(0, 1)
    told = read_ids([raw])
    assert told == read_ids([raw, raw])._replace(
        timestamps_ms={source: column[:1] for source, column in told.timestamps_ms.items()}
    )
    course.observe(told.greatest())
    position = course.position
    assert position == {
        source: max(time or 0 for named, time in assignments if named == source)
        for source, _ in assignments
    }
    for source, timestamp_ms in assignments:
        assert is_source(source)
        assert timestamp_ms is None or 0 <= timestamp_ms <= MAX_TIMESTAMP_MS
    composed = compose_id(position)
    # It is sent as a header.
    assert composed.isascii()
    assert composed.isprintable()
    assert dict(parse_id(composed.encode())) == position
    for clock_ms in (0, MAX_TIMESTAMP_MS):
        asked = course.last_event_id(clock_ms)
        assert asked is None or {source for source, _ in parse_id(asked.encode())} == set(position)


# ---- events ----


def _received(blob: bytes, last_event_id: bytes) -> Frames:
    return Frames(0, 1, blob, last_event_id, 0, 0)


def events(raw: bytes) -> None:
    """Last event ID, then a stream: each frame is classified, under a safe name."""
    last_event_id, stream = parts(raw, 2)
    blob = Framer().feed(stream + b"\n\n")
    for keep_canaries in (True, False):
        decoded = decode(_received(blob, last_event_id), keep_canaries)
        _each_frame_once(blob, decoded, keep_canaries)
        _position_can_be_stored(decoded)
        for event in decoded.batch.events:
            if not event.reason:
                _safe_event(event, decoded)
            elif event.reason != CANARY:
                _safe_dead_letter(event, decoded)
        assert pickle.loads(pickle.dumps(decoded.batch)) == decoded.batch  # noqa: S301  # our own
    _alone_as_together(blob, last_event_id)


def _each_frame_once(blob: bytes, decoded: Decoded, keep_canaries: bool) -> None:
    frames = split_frames(blob)
    dispatched = sum(
        any(line.partition(b":")[0] == b"data" for line in frame.split(b"\n")) for frame in frames
    )
    batch = decoded.batch
    became = len(batch.events) + len(decoded.upstream_errors)
    assert dispatched == became, "a frame was lost or doubled"
    assert decoded.canaries == [event.reason for event in batch.events].count(CANARY)
    assert not (keep_canaries and decoded.canaries)
    assert set(decoded.lines) <= set(LINE_TYPES)
    assert sum(decoded.lines.values()) == sum(frame.count(b"\n") + 1 for frame in frames)


def _position_can_be_stored(decoded: Decoded) -> None:
    timestamps_ms = decoded.batch.timestamps_ms
    assert dict(parse_id(compose_id(timestamps_ms).encode())) == timestamps_ms
    checkpoint = Checkpoint({}, 5, 5).advanced(timestamps_ms, 4, 6)
    assert decode_checkpoint(checkpoint.encoded()) == checkpoint
    assert join(checkpoint.position, timestamps_ms) == checkpoint.position


def _safe(event: Event, decoded: Decoded) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", event.identity), "unsafe identity"
    known = event.source != UNKNOWN_SOURCE
    assert not known or is_source(event.source)
    assert (1 if known else 0) <= event.timestamp_ms <= MAX_TIMESTAMP_MS
    assert not known or decoded.batch.timestamps_ms[event.source] >= event.timestamp_ms
    event.data.decode()


def _safe_event(event: Event, decoded: Decoded) -> None:
    _safe(event, decoded)
    assert 0 <= event.dt_ms <= MAX_TIMESTAMP_MS
    folder, name = event_name(event)
    assert is_event_folder(folder)
    assert SAFE_NAME.fullmatch(folder)
    assert SAFE_NAME.fullmatch(name), "unsafe name"
    assert len(name.encode()) <= MAX_FILE_NAME_BYTES
    assert os.path.normpath(f"/events/{folder}/{name}") == f"/events/{folder}/{name}"
    assert folder_of(name) == folder
    assert identity_in(name) == event.identity
    # A restart must read back the identity that was remembered when the event was published.
    identified = identify(event.key, event.data)
    assert identified is not None
    # A fallback identity may depend on the previous id; so it is stored with the event.
    if not is_fallback(event.identity) or identified.source != UNKNOWN_SOURCE:
        assert (identified.identity, identified.source) == (event.identity, event.source)


def _safe_dead_letter(letter: Event, decoded: Decoded) -> None:
    _safe(letter, decoded)
    assert letter.reason in REASONS
    assert re.fullmatch(r"sha256-[0-9a-f]{64}\.raw", dead_letter_name(letter))
    assert identify(letter.key, letter.data) is None


def _alone_as_together(blob: bytes, last_event_id: bytes) -> None:
    together = decode(_received(blob, last_event_id), True).batch
    events: list[Event] = []
    for frame in split_frames(blob):
        one = frame + b"\n\n"
        batch = decode(_received(one, last_event_id), True).batch
        events += batch.events
        last_event_id = (ids_in(one) or [last_event_id])[-1]
    assert events == together.events, "events depend on how frames were batched"
