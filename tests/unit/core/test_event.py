from __future__ import annotations

import pickle
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.event import Batch, End, Event, Frames
from pleiades.core.sse_id import (
    MAX_ASSIGNMENTS,
    MAX_SSE_ID_BYTES,
    MAX_TIMESTAMP_MS,
    Assignment,
    MalformedId,
    compose_id,
    parse_id,
)

sources = st.tuples(
    st.from_regex(r"[a-zA-Z0-9._-]{1,20}", fullmatch=True), st.integers(0, 2**31 - 1)
)
timestamps = st.integers(0, MAX_TIMESTAMP_MS)


CHANGES: list[dict[str, Any]] = [
    {"topic": None},
    {"topic": 1},
    {"topic": ""},
    {"topic": "a" * 250},
    {"topic": "a/b"},
    {"topic": "a\n"},
    {"topic": "\u00e9"},
    {"partition": None},
    {"partition": True},
    {"partition": 1.0},
    {"partition": "0"},
    {"partition": -1},
    {"partition": 2**31},
    {"timestamp": True},
    {"timestamp": 7.0},
    {"timestamp": "7"},
    {"timestamp": -1},
    {"timestamp": MAX_TIMESTAMP_MS + 1},
    {"timestamp": []},
]
"""Changes that make an entry of an id malformed."""


def entry(**changes: Any) -> dict[str, Any]:
    return {"topic": "eqiad.x", "partition": 0, "timestamp": 7} | changes


@pytest.mark.parametrize(
    ("sse_id", "assignments"),
    [
        (b"[]", ()),
        (
            (
                b'[{"topic":"eqiad.x","partition":0,"timestamp":7},'
                b'{"offset":-1,"partition":3,"topic":"codfw.x"}]'
            ),
            (Assignment(("eqiad.x", 0), 7), Assignment(("codfw.x", 3), None)),
        ),
        (
            b'[{"topic":"a","partition":1,"timestamp":5,"offset":9}]',
            (Assignment(("a", 1), 5),),
        ),
        (b'[{"topic":"a","partition":1,"timestamp":null}]', (Assignment(("a", 1), None),)),
        (b'[{"topic":"a","partition":1,"new":{}}]', (Assignment(("a", 1), None),)),
        (
            orjson.dumps([entry(timestamp=MAX_TIMESTAMP_MS)]),
            (Assignment(("eqiad.x", 0), MAX_TIMESTAMP_MS),),
        ),
        (
            orjson.dumps([entry()] * MAX_ASSIGNMENTS),
            (Assignment(("eqiad.x", 0), 7),) * MAX_ASSIGNMENTS,
        ),
    ],
)
def test_parse_id(sse_id: bytes, assignments: tuple[Assignment, ...]) -> None:
    assert parse_id(sse_id) == assignments


@pytest.mark.parametrize(
    "sse_id",
    [
        b"",
        b"null",
        b"{}",
        b"42",
        b"[1]",
        b"[null]",
        b"[[]]",
        b'[{"topic":"a","partition":1,"timestamp":5}',
        b"\xff",
        b"\xef\xbb\xbf[]",
        b"[" * 100_000,
        orjson.dumps([entry()] * (MAX_ASSIGNMENTS + 1)),
        orjson.dumps([entry()]) + b" " * MAX_SSE_ID_BYTES,
        *(orjson.dumps([entry() | change]) for change in CHANGES),
    ],
)
def test_malformed_ids(sse_id: bytes) -> None:
    with pytest.raises(MalformedId):
        parse_id(sse_id)


@given(st.dictionaries(sources, timestamps, max_size=MAX_ASSIGNMENTS))
def test_composed_ids_are_read_back(timestamps_ms: dict[tuple[str, int], int]) -> None:
    composed = compose_id(timestamps_ms)
    assert composed.isascii()
    assert dict(parse_id(composed.encode())) == timestamps_ms


events = st.builds(
    Event, st.text(), sources, timestamps, st.text(), st.binary(), st.binary(), st.text()
)
batches = st.builds(
    Batch,
    st.integers(0),
    st.integers(1),
    st.lists(events, max_size=5),
    st.dictionaries(sources, timestamps, max_size=3),
    timestamps,
    timestamps,
)


@given(batches)
def test_batches_survive_pickling(batch: Batch) -> None:
    back = pickle.loads(pickle.dumps(batch, protocol=5))  # noqa: S301  # its own
    assert back == batch
    assert type(back) is Batch
    assert all(type(event) is Event for event in back.events)


def test_frames_and_end_survive_pickling() -> None:
    frames = Frames(1, 2, b"data: x\n\n", b"id", 3, 4)
    pickled = pickle.dumps((frames, End()), pickle.HIGHEST_PROTOCOL)
    assert pickle.loads(pickled) == (frames, End())  # noqa: S301  # its own
