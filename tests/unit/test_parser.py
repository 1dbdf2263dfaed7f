from __future__ import annotations

from typing import cast

import orjson

from pleiades import parser
from pleiades.core.event import Batch, Delivered, End, Frames, PositionRequest
from pleiades.runtime.channel import Channel
from pleiades.runtime.metrics import Metrics
from tests.unit.conftest import FakeChannel, FakeChildContext

SOURCE = ("eqiad.x", 0)
START_MS = 1_760_000_000_000


def frames(sequence: int, *timestamps_ms: int, after: bytes = b"") -> Frames:
    blob = b""
    for timestamp_ms in timestamps_ms:
        sse_id = orjson.dumps([{"topic": SOURCE[0], "partition": 0, "timestamp": timestamp_ms}])
        blob += b"event: message\nid: " + sse_id + b'\ndata: {"meta":{"domain":"canary"}}\n\n'
    return Frames(sequence, 1, blob + after, b"", START_MS, START_MS)


def test_it_answers_with_the_greatest_timestamps_since_the_last_request(metrics: Metrics) -> None:
    requests = FakeChannel[Frames | PositionRequest | End](
        PositionRequest(),
        frames(0, START_MS + 5, START_MS + 2),
        frames(1, START_MS + 3, after=b"retry: 70\ndata: {}\n\n"),
        PositionRequest(),
        frames(2, START_MS + 1),
        PositionRequest(),
        End(),
    )
    batches, delivered = FakeChannel[Batch | End](), FakeChannel[Delivered]()
    parser.run(
        FakeChildContext(1),
        metrics,
        False,
        cast("Channel[Frames | PositionRequest | End]", requests),
        cast("Channel[Batch | End]", batches),
        cast("Channel[Delivered]", delivered),
    )
    assert list(delivered.items) == [
        Delivered({}),
        Delivered({SOURCE: START_MS + 5}, (1, 70)),
        Delivered({SOURCE: START_MS + 1}),
    ]
    assert [item.sequence for item in batches.items if isinstance(item, Batch)] == [0, 1, 2]
    assert isinstance(batches.items[-1], End)
