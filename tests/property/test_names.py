"""Nothing from upstream reaches a path unchecked."""

from __future__ import annotations

import re

import orjson
from hypothesis import given
from hypothesis import strategies as st

from pleiades.core.decoding import decode
from pleiades.core.event import Event, Frames
from pleiades.core.sse_id import MAX_TIMESTAMP_MS
from pleiades.sinks.files.names import (
    dead_letter_name,
    event_name,
    folder_of,
    identity_in,
    is_event_folder,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
metas = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values | st.sampled_from(["../../x", "a\0b", "x" * 10_000, ".hidden", "a/b"]),
        "topic": json_values | st.just("eqiad.mediawiki.recentchange"),
        "partition": json_values,
        "offset": json_values,
        "dt": json_values | st.datetimes().map(lambda when: when.isoformat()),
    },
)


@given(metas, st.integers(0, MAX_TIMESTAMP_MS))
def test_every_decoded_event_has_a_safe_name(meta: dict[str, object], timestamp_ms: int) -> None:
    sse_id = orjson.dumps(
        [{"topic": "eqiad.mediawiki.recentchange", "partition": 0, "timestamp": timestamp_ms}]
    )
    data = orjson.dumps({"meta": meta})
    blob = b"event: message\nid: " + sse_id + b"\ndata: " + data + b"\n\n"
    decoded = decode(Frames(0, 1, blob, b"", 0, 0), keep_canaries=True)
    (event,) = decoded.batch.events
    folder, name = event_name(event)
    assert is_event_folder(folder)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
    assert len(name) < 200
    again = decode(Frames(0, 1, blob, b"", 0, 0), keep_canaries=True).batch.events[0]
    assert event_name(again) == (folder, name)


@given(st.binary(max_size=50))
def test_every_dead_letter_has_a_safe_name(garbage: bytes) -> None:
    blob = b"data: \xff" + re.sub(rb"[\r\n\0]", b"", garbage) + b"\n\n"
    for letter in decode(Frames(0, 1, blob, b"", 0, 0), keep_canaries=True).batch.events:
        assert re.fullmatch(r"sha256-[0-9a-f]{64}\.raw", dead_letter_name(letter))


@given(st.integers(0, MAX_TIMESTAMP_MS))
def test_folder_and_identity_can_be_read_back(timestamp_ms: int) -> None:
    event = Event("a-b.c", ("t", 0), timestamp_ms + 1, "", b"", b"")
    folder, name = event_name(event)
    assert folder_of(name) == folder
    assert identity_in(name) == "a-b.c"


@given(st.text())
def test_other_names_are_no_events(name: str) -> None:
    assert folder_of(name) is None or re.match(r"\d{8}T", name)
