"""However the network cuts a stream into pieces, and whoever reads the ids, its events are the same."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, pairwise
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from pleiades.core.decoding import decode, decode_any
from pleiades.core.event import Event, Frames
from pleiades.core.position import Position, join
from pleiades.runtime.channel import Channel
from pleiades.upstream.body import Connection
from pleiades.upstream.frames import Received, read
from tests.property.test_decoding import frames, received, running, usual

PATIENCE_SECONDS = 30
LARGE_BYTES = 300_000
large_frames = st.binary(max_size=3).map(
    lambda text: usual(b"[]", b'{"%b":"%b"}' % (text.hex().encode(), b"x" * LARGE_BYTES))
)


class Pieces:
    """Stands for a connection that brings these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def chunks(self) -> Iterator[bytes]:
        return iter(self._pieces)


@settings(max_examples=150)
@given(
    sent=st.one_of(running(), st.lists(frames, max_size=6), st.lists(large_frames, max_size=2)),
    cuts=st.lists(st.floats(0, 1), max_size=12),
    by_frame=st.booleans(),
    read_ids=st.lists(st.booleans(), min_size=1, max_size=4),
    keep_canaries=st.booleans(),
)
def test_events_and_position_are_those_of_the_whole_stream(
    sent: list[bytes],
    cuts: list[float],
    by_frame: bool,
    read_ids: list[bool],
    keep_canaries: bool,
) -> None:
    body = b"".join(sent)
    places = sorted({0, len(body), *(int(cut * len(body)) for cut in cuts)})
    pieces = sent if by_frame else [body[start:stop] for start, stop in pairwise(places)]
    reads_ids = cycle(read_ids)
    channel: Channel[Frames] = Channel("frames")
    events: list[Event] = []
    position: Position = {}
    connection = cast("Connection", Pieces(list(filter(None, pieces))))
    for item in read(connection, PATIENCE_SECONDS, needs_ids=lambda: next(reads_ids)):
        if not isinstance(item, Received) or not item.blob:
            continue
        channel.put(item.frames(0, (1, None), 0, 0), lambda: None)
        arrived = channel.get(PATIENCE_SECONDS)
        assert arrived is not None
        batch = decode(arrived, keep_canaries).batch
        events += batch.events
        position = join(position, batch.timestamps_ms)
    whole = decode_any(received(body), keep_canaries).batch
    assert events == whole.events
    assert position == whole.timestamps_ms
