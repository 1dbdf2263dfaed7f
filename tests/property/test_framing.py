"""Frames depend on the bytes alone: any split into chunks gives the frames of a plain parser."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.framing import Framer, ids_in, retry_in, split_frames
from pleiades.core.sse import sse_events

NO_LIMIT = 10**9

PIECES = [
    *(b"data", b"id", b"event", b"retry", b"dat", b"ids", b":", b": ", b" ", b":ok", b"x", b"17"),
    *(b"\n", b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b"\n\r"),
    *(b"\xef\xbb\xbf", b"\xef\xbb", b"\0", b"\xff", b"\xe2\x82", "\u2028\u0085\u20ac".encode()),
]
streams = st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join) | st.binary(max_size=60)
cuts = st.lists(st.integers(0, 200), max_size=20) | st.just([*range(1_000)])
"""The places where the network splits the bytes; or between any two bytes."""


@dataclass
class Reference:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation ,
    literally, over the whole stream at once."""

    stream: bytes
    frames: list[bytes] = field(default_factory=list)
    events: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    last_id: bytes = b""
    retry_ms: int | None = None
    rest: bytes = b""

    def __post_init__(self) -> None:
        stream = self.stream.removeprefix(b"\xef\xbb\xbf")
        *lines, self.rest = re.split(rb"\r\n|\r|\n", stream)
        frame: list[bytes] = []
        for line in lines:
            if line:
                frame.append(line)
            elif frame:
                self.frames.append(b"\n".join(frame))
                self.take(frame)
                frame = []
        if frame:
            self.rest = b"\n".join([*frame, self.rest])

    def take(self, frame: list[bytes]) -> None:
        event_type, data = "", b""
        for line in frame:
            if line.startswith(b":"):
                continue
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"event":
                event_type = value.decode(errors="replace")
            elif name == b"data":
                data += value.decode(errors="replace").encode() + b"\n"
            elif name == b"id" and b"\0" not in value:
                self.last_id = value
            elif name == b"retry" and re.fullmatch(rb"[0-9]+", value):
                self.retry_ms = int(value)
        if data:
            self.events.append((event_type or "message", self.last_id, data[:-1]))


def chunks_of(stream: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place for place in places if place < len(stream)} | {len(stream)})
    return [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def framed(framer: Framer, chunks: list[bytes]) -> list[bytes]:
    return [frame for chunk in chunks for frame in split_frames(framer.feed(chunk))]


@given(streams, cuts)
def test_any_cut_gives_the_frames_of_the_whole(stream: bytes, places: list[int]) -> None:
    assert framed(Framer(NO_LIMIT), chunks_of(stream, places)) == Reference(stream).frames


@given(streams, cuts)
def test_every_blob_holds_whole_frames_with_lf_only(stream: bytes, places: list[int]) -> None:
    framer = Framer(NO_LIMIT)
    for chunk in chunks_of(stream, places):
        blob = framer.feed(chunk)
        assert blob == b"" or blob.endswith(b"\n\n")
        assert b"\r" not in blob


# At least 3: the first two bytes of a byte order mark belong to no frame until the third arrives.
@given(streams, cuts, st.integers(3, 30))
def test_oversized_frames_are_skipped_wherever_the_cut(
    stream: bytes, places: list[int], limit: int
) -> None:
    reference = Reference(stream)
    kept = [frame for frame in reference.frames if len(frame) + 1 <= limit]
    oversized = len(reference.frames) - len(kept) + (len(reference.rest) > limit)
    framer = Framer(limit)
    assert framed(framer, chunks_of(stream, places)) == kept
    # The bytes after the last line's CR or LF are part of the rest, too.
    assert framer.oversized_total == oversized


@given(streams, cuts, st.integers(1, 30))
def test_memory_is_bounded(stream: bytes, places: list[int], limit: int) -> None:
    framer = Framer(limit)
    for chunk in chunks_of(stream, places):
        blob = framer.feed(chunk)
        assert len(framer._pending) <= limit
        assert all(len(frame) < limit for frame in split_frames(blob))


@given(streams, cuts)
def test_events_ids_and_retry_are_those_of_the_specification(
    stream: bytes, places: list[int]
) -> None:
    reference = Reference(stream)
    framer = Framer(NO_LIMIT)
    events: list[tuple[str, bytes, bytes]] = []
    last_id, retry_ms = b"", None
    for chunk in chunks_of(stream, places):
        blob = framer.feed(chunk)
        events += [event[:3] for event in sse_events(blob, last_id)]
        last_id = (ids_in(blob) or [last_id])[-1]
        found = retry_in(blob)
        retry_ms = retry_ms if found is None else found
    assert events == reference.events
    assert last_id == reference.last_id
    assert retry_ms == reference.retry_ms


def test_a_long_frame_in_small_chunks_costs_no_more_than_its_length() -> None:
    # Copying or searching the pending part for every chunk would move 500 GB.
    framer = Framer()
    for _ in range(4 * 1024 * 1024 // 16):
        assert framer.feed(b"0123456789abcde\n") == b""
    assert len(framer.feed(b"\n")) == 4 * 1024 * 1024 + 1
