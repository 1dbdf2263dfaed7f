"""Any bytes are classified without an exception, and alike by the fast and the general decoder."""

from __future__ import annotations

import pickle
import re
from typing import Any

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from pleiades.core.decoding import (
    Decoded,
    decode,
    decode_any,
    decode_usual,
)
from pleiades.core.event import CANARY, REASONS, Event, Frames, time_ms
from pleiades.core.framing import Framer, ids_in, retry_in, split_frames
from pleiades.core.sse import SseEvent, sse_events
from pleiades.core.sse_id import MAX_TIMESTAMP_MS, UNKNOWN_SOURCE
from pleiades.core.usual import usual_frames

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
topics = st.sampled_from(["eqiad.x", "codfw.x", "", "a/b"])
ids = st.lists(
    st.fixed_dictionaries(
        {"topic": topics | json_values, "partition": st.sampled_from([0, 0, 0, True, -1, None])},
        optional={
            "timestamp": st.integers(-1, MAX_TIMESTAMP_MS) | json_values,
            "offset": json_values,
        },
    ),
    max_size=3,
).map(orjson.dumps)
metas = json_values | st.fixed_dictionaries(
    {},
    optional={
        "id": st.uuids().map(str) | json_values,
        "topic": topics | json_values,
        "partition": st.just(0) | json_values,
        "offset": st.integers(0, 9) | json_values,
        "domain": st.just("canary") | json_values,
        "dt": st.datetimes().map(lambda when: when.isoformat() + "Z") | json_values,
    },
)
bodies = st.builds(lambda meta: orjson.dumps({"meta": meta}), metas) | json_values.map(orjson.dumps)
one_line = st.binary(max_size=12).map(lambda raw: re.sub(rb"[\r\n]", b"", raw))


def usual(sse_id: bytes, data: bytes) -> bytes:
    return b"event: message\nid: " + sse_id + b"\ndata: " + data + b"\n\n"


as_usual = st.builds(
    usual,
    ids | one_line.map(lambda line: line.replace(b"\0", b"") or b"x"),
    bodies | one_line.map(lambda line: line or b"x"),
)
odd_lines = st.sampled_from(
    [
        *(b"data: {", b"data: }", b"data:", b"data", b"data: {}", b"event: error", b"event:"),
        *(b"event: message", b":ok", b"id", b"id: []", b"id: \0", b"retry: 5", b"x: y", b"\xff"),
    ]
)
odd_frames = st.lists(odd_lines | one_line, min_size=1, max_size=5).map(
    lambda lines: b"\n".join(line or b":" for line in lines) + b"\n\n"
)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A usual frame with one changed line."""
    frame = draw(as_usual)
    lines = frame.split(b"\n")
    number = draw(st.integers(0, 2))
    place = draw(st.integers(0, min(len(lines[number]), 16)))
    length = draw(st.integers(0, 2))
    other = draw(st.sampled_from([b"", b"\0", b":", b" ", b"x", b"\nx", b"\xff"]))
    lines[number] = lines[number][:place] + other + lines[number][place + length :]
    return b"\n".join(lines)


frames = as_usual | odd_frames | spoilt()


def received(blob: bytes, last_event_id: bytes = b"") -> Frames:
    return Frames(0, 1, blob, last_event_id, 0, 0)


def decoded(blob: bytes, last_event_id: bytes = b"", keep_canaries: bool = False) -> Decoded:
    return decode(received(blob, last_event_id), keep_canaries)


def check_both_ways(blob: bytes, keep_canaries: bool) -> None:
    fast = decode_usual(received(blob), keep_canaries)
    assert fast is None or fast == decode_any(received(blob), keep_canaries)
    if fast is not None:
        pickled = pickle.dumps(fast.batch, pickle.HIGHEST_PROTOCOL)
        assert pickle.loads(pickled) == fast.batch  # noqa: S301  # our own


def outcome(result: Decoded) -> tuple[Any, ...]:
    batch = result.batch
    return (
        batch.events,
        result.canaries,
        batch.timestamps_ms,
        result.malformed_ids,
        result.replaced_identities,
        result.upstream_errors,
    )


@st.composite
def running(draw: st.DrawFn) -> list[bytes]:
    """Consecutive frames as upstream sends them, with an odd one now and then."""
    dates = st.integers(10**12, 10**12 + 50)
    times = {"eqiad.x": draw(dates), "codfw.x": draw(dates)}
    sent = []
    for _ in range(draw(st.integers(1, 12))):
        topic = draw(st.sampled_from(sorted(times)))
        times[topic] = draw(dates if draw(st.integers(0, 15)) else st.integers(0, 10**13))
        sse_id = [{"topic": at, "partition": 0, "timestamp": time} for at, time in times.items()]
        meta = {
            "topic": topic,
            "partition": 0,
            "id": str(draw(st.uuids())),
            "dt": draw(st.sampled_from(["2026-01-31T12:00Z", ""])),
        }
        if not draw(st.integers(0, 15)):
            meta |= draw(
                st.sampled_from(
                    [{"domain": "canary"}, {"id": "a b"}, {"dt": None}, {"dt": "2026\n01"}]
                )
            )
        sent.append(usual(orjson.dumps(sse_id), orjson.dumps({"meta": meta})))
        if not draw(st.integers(0, 15)):
            sent.append(draw(frames))
    return sent


@given(running(), st.booleans())
def test_both_ways_decode_alike_what_upstream_sends(sent: list[bytes], keep_canaries: bool) -> None:
    check_both_ways(b"".join(sent), keep_canaries)


@given(st.integers(1, 50))
def test_what_upstream_sends_goes_the_fast_way(count: int) -> None:
    sent = [
        usual(
            b'[{"topic":"eqiad.x","partition":0,"timestamp":%d}]' % (10**12 + number),
            b'{"meta":{"topic":"eqiad.x","partition":0,"id":"i-%d"}}' % number,
        )
        for number in range(count)
    ]
    decoded = decode_usual(received(b"".join(sent)), keep_canaries=False)
    assert decoded is not None
    assert len(decoded.batch.events) == count


@given(st.lists(frames, max_size=5), st.booleans())
def test_both_ways_decode_alike(blobs: list[bytes], keep_canaries: bool) -> None:
    check_both_ways(b"".join(blobs), keep_canaries)


@given(st.lists(frames, max_size=5))
@example([b"event: message\nid: []\ndata: 1\nx\nevent: message\nid: []\ndata: 2\n\n"])
@example([b"event: message\nid: \0\ndata: 1\n\n"])
@example([b"event: error\nid: []\ndata: 1\n\n"])
@example([b":\n\n:\n\n"])
def test_usual_frames_are_what_came(blobs: list[bytes]) -> None:
    blob = b"".join(blobs)
    found = usual_frames(blob)
    if found is not None:
        assert retry_in(blob) is None
        sent = [SseEvent("message", *frame) for frame in zip(ids_in(blob), found.data, strict=True)]
        # The data's UTF-8 is for `decode_usual` to look at.
        told = [event._replace(data=event.data.decode(errors="replace").encode()) for event in sent]
        assert [event._replace(id_before=b"") for event in sse_events(blob, b"")] == told


@given(st.lists(frames, max_size=5))
def test_frames_decode_alike_alone_and_together(blobs: list[bytes]) -> None:
    # Wherever the network splits them: the same events with the same identities.
    together = decoded(b"".join(blobs)).batch
    last_event_id = b""
    events: list[Event] = []
    for blob in blobs:
        batch = decoded(blob, last_event_id).batch
        events += batch.events
        last_event_id = (ids_in(blob) or [last_event_id])[-1]
    assert events == together.events


def dispatched(blob: bytes) -> int:
    """The number of frames with at least one data line."""
    return sum(
        any(line.split(b":")[0] == b"data" for line in frame.split(b"\n"))
        for frame in split_frames(blob)
    )


@given(st.lists(frames, max_size=6), st.booleans())
def test_every_frame_becomes_exactly_one_thing(blobs: list[bytes], keep_canaries: bool) -> None:
    blob = b"".join(blobs)
    result = decoded(blob, b"", keep_canaries)
    batch = result.batch
    assert dispatched(blob) == len(batch.events) + len(result.upstream_errors)
    assert result.canaries == [event.reason for event in batch.events].count(CANARY)
    assert not (keep_canaries and result.canaries)


def check(result: Decoded) -> None:
    batch = result.batch
    for event in batch.events:
        assert event.reason in ("", CANARY, *REASONS)
        name = r"" if event.reason == CANARY else r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
        assert re.fullmatch(name, event.identity)
        known = event.source != UNKNOWN_SOURCE
        assert 1 <= event.timestamp_ms <= MAX_TIMESTAMP_MS if known else event.timestamp_ms >= 0
        assert not known or event.source in batch.timestamps_ms
        event.data.decode()
    assert all(0 <= event.dt_ms <= MAX_TIMESTAMP_MS for event in batch.events)


@given(st.binary())
@example(b"data\r\r\r")
@example(b"data: [\n\n")
def test_no_bytes_raise(stream: bytes) -> None:
    decoded(stream)
    decoded(Framer().feed(stream + b"\n\n"), stream)


@given(ids | st.binary(max_size=9), bodies | st.binary(max_size=30))
def test_no_id_and_no_data_raise(sse_id: bytes, data: bytes) -> None:
    decoded(usual(sse_id, data))


@given(ids, metas, st.booleans())
def test_no_meta_raises_and_what_comes_out_is_safe(
    sse_id: bytes, meta: object, keep_canaries: bool
) -> None:
    check(decoded(usual(sse_id, orjson.dumps({"meta": meta})), b"", keep_canaries))


@given(st.text() | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]?[0-9:.+\-Z]*", fullmatch=True))
def test_no_time_raises(text: str) -> None:
    assert 0 <= time_ms(text) <= MAX_TIMESTAMP_MS
