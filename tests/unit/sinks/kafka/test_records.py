"""What becomes of an event as a record."""

from __future__ import annotations

import pytest

from pleiades.core.wire import UNKNOWN_SOURCE, DeadLetter, Event
from pleiades.sinks.kafka.records import MAX_ID_BYTES, dead_letter_headers, key_by_field


def event(data: bytes) -> Event:
    return Event("id", ("t", 0), 1, "", b"[sse id]", data)


@pytest.mark.parametrize(
    ("path", "data", "key"),
    [
        ("wiki", b'{"wiki":"enwiki"}', b"enwiki"),
        ("meta.domain", b'{"meta":{"domain":"en.wikipedia.org"}}', b"en.wikipedia.org"),
        ("wiki", '{"wiki":"ß"}'.encode(), "ß".encode()),
        ("namespace", b'{"namespace":0}', b"0"),
        ("bot", b'{"bot":false}', b"false"),
        ("length", b'{"length":{"new":2,"old":1}}', b'{"new":2,"old":1}'),
        ("wiki", b'{"wiki":""}', b""),
        # Nothing to go by: the id, for a record without a key is refused by a compacted topic.
        ("wiki", b'{"wiki":null}', b"[sse id]"),
        ("wiki", b"{}", b"[sse id]"),
        ("meta.domain", b'{"meta":[]}', b"[sse id]"),
        ("meta.domain", b'{"meta":"text"}', b"[sse id]"),
        ("wiki", rb'{"wiki":"\ud800"}', b"[sse id]"),
        ("wiki", b'{"wiki":NaN}', b"[sse id]"),
    ],
)
def test_a_field_as_key(path: str, data: bytes, key: bytes) -> None:
    assert key_by_field(tuple(path.split(".")))(event(data)) == key


def test_a_dead_letter_says_what_it_is() -> None:
    letter = DeadLetter("sha256-0", ("eqiad.x", 3), 5, "not_json", b"[id]", b"?" * 10)
    assert dead_letter_headers(letter, 10) == {
        "reason": b"not_json",
        "id": b"[id]",
        "identity": b"sha256-0",
        "source": b"eqiad.x:3",
    }
    assert dead_letter_headers(letter, 9)["size"] == b"10"


def test_a_dead_letter_of_unknown_source_and_a_giant_id() -> None:
    letter = DeadLetter("sha256-0", UNKNOWN_SOURCE, 0, "not_json", b"x" * 10**6, b"?")
    headers = dead_letter_headers(letter, 10)
    assert headers["source"] == b""
    assert headers["id"] == b"x" * MAX_ID_BYTES
