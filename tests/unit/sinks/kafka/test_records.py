"""The record of an event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from confluent_kafka import Message

from pleiades.core.event import Event
from pleiades.core.identity import fallback_identity
from pleiades.core.sse_id import UNKNOWN_SOURCE
from pleiades.sinks.kafka import records
from pleiades.sinks.kafka.records import (
    MAX_ID_BYTES,
    MAX_KEY_BYTES,
    Record,
    RecordForm,
    key_by_field,
    read_event,
)
from tests.unit.sinks.kafka.conftest import kafka_destination


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
        # Without a field the id is the key, because a compacted topic refuses records without one.
        ("wiki", b'{"wiki":null}', b"[sse id]"),
        ("wiki", b"{}", b"[sse id]"),
        ("meta.domain", b'{"meta":[]}', b"[sse id]"),
        ("meta.domain", b'{"meta":"text"}', b"[sse id]"),
        ("wiki", rb'{"wiki":"\ud800"}', b"[sse id]"),
        ("wiki", b'{"wiki":NaN}', b"[sse id]"),
        ("wiki", b'{"wiki":"%b"}' % (b"x" * MAX_KEY_BYTES), b"[sse id]"),
        ("not_a_name-in.python", b'{"not_a_name-in":{"python":1}}', b"1"),
        ('a"b.c', b'{"a\\"b":{"c":1}}', b"1"),
        ('a"b', b"{}", b"[sse id]"),
        ("class.self", b'{"class":{"self":1}}', b"1"),
        ("a", b'{"a":' + b"[" * 5000, b"[sse id]"),
    ],
)
def test_a_field_as_key(path: str, data: bytes, key: bytes) -> None:
    assert key_by_field(tuple(path.split(".")))(event(data)) == key


def form(path: tuple[str, ...] = (), replay: bytes = b"", cut: int = 10) -> RecordForm:
    return RecordForm(replace(kafka_destination(), topic="topic", key_field=path), replay, cut)


def record(written: Event, key_field: str = "", replay: bytes = b"", cut: int = 10) -> Record:
    path = (key_field,) if key_field else ()
    return form(path, replay, cut).record(written)


def headers_of(written: Event, key_field: str = "", cut: int = 10) -> dict[str, Any]:
    return dict(record(written, key_field, cut=cut)[3])


def test_an_event_is_key_and_value() -> None:
    named = event(b'{"meta":{"id":"id"},"wiki":"x"}')
    assert record(named) == ("topic", named.data, named.key, [])
    assert record(named, "wiki") == ("topic", named.data, b"x", [("id", named.key)])
    assert record(named, replay=b"r")[3] == [("replay", b"r")]
    assert record(named, "wiki", b"r")[3] == [("id", named.key), ("replay", b"r")]


def test_events_with_headers_are_told_from_those_without() -> None:
    assert not form().has_headers
    assert form(("wiki",)).has_headers
    assert form(replay=b"r").has_headers


LETTER = Event("sha256-0", ("eqiad.x", 3), 5, "", b"[id]", b"?" * 10, "not_json")


def test_a_dead_letter_says_what_it_is() -> None:
    assert record(LETTER)[:3] == ("topic-dead-letters", LETTER.data, b"[id]")
    assert headers_of(LETTER) == {
        "reason": b"not_json",
        "id": b"[id]",
        "identity": b"sha256-0",
        "source": b"eqiad.x:3",
    }
    assert record(LETTER, replay=b"r")[3][-1] == ("replay", b"r")


def test_a_dead_letter_that_is_cut_says_its_size() -> None:
    assert record(LETTER, cut=9)[1] == b"?" * 9
    assert headers_of(LETTER, cut=9)["size"] == b"10"


def test_a_dead_letter_of_unknown_source_and_a_giant_id() -> None:
    letter = LETTER._replace(source=UNKNOWN_SOURCE, key=b"x" * 10**6)
    headers = headers_of(letter)
    assert headers["source"] == b""
    assert headers["id"] == record(letter)[2] == b"x" * MAX_ID_BYTES


FIRST = fallback_identity(("t", 0), 1, b"{}")


@pytest.mark.parametrize("key_field", ["", "wiki"])
def test_an_event_with_a_fallback_identity_says_which_one_it_is(key_field: str) -> None:
    named = event(b'{"meta":{"id":"id"}}')
    assert headers_of(named, key_field).keys() == ({"id"} if key_field else set())
    second = event(b"{}")._replace(identity=FIRST + "-2")
    headers = headers_of(second, key_field)
    assert headers.pop("id", b"") == (second.key if key_field else b"")
    assert headers == {"identity": second.identity.encode(), "source": b"t:0"}


@pytest.mark.parametrize(
    ("value", "headers", "identity", "source"),
    [
        (b"{}", {"identity": FIRST + "-2", "source": "t:0"}, FIRST + "-2", ("t", 0)),
        (b"{}", {"identity": FIRST + "-2", "source": ""}, FIRST + "-2", UNKNOWN_SOURCE),
        # Records of earlier versions, or of others: identified by key and value.
        (b"{}", {}, None, ("u", 1)),
        (b"{}", {"identity": FIRST}, None, ("u", 1)),
        (b"{}", {"identity": "../x", "source": "t:0"}, None, ("u", 1)),
        (b"{}", {"identity": FIRST + "-" + "2" * 200, "source": "t:0"}, None, ("u", 1)),
        # An event's own identity wins.
        (b'{"meta":{"id":"own"}}', {"identity": FIRST, "source": "t:0"}, "own", ("u", 1)),
    ],
)
def test_reading_an_event_back(
    value: bytes, headers: dict[str, str], identity: str | None, source: tuple[str, int]
) -> None:
    key = b'[{"topic":"u","partition":1,"timestamp":7}]'
    sent: list[tuple[str, str | bytes | None]] = [
        (name, text.encode()) for name, text in headers.items()
    ]
    message = Message(value=value, key=key, headers=sent, timestamp=(1, 5))
    published = read_event(message)
    assert published is not None
    assert published.identity == (identity or fallback_identity(("u", 1), 7, value))
    assert published.source == source


OWN_ENTRY = b'{"topic":"t","partition":1,"timestamp":1790000000005}'
USUAL_ID = b"[" + OWN_ENTRY + b',{"topic":"u","partition":0,"offset":-1}]'


class FakeMessage:
    """The part of `confluent_kafka.Message` that the code reads."""

    def __init__(
        self,
        value: bytes | None,
        headers: list[tuple[str, bytes]] | None = None,
        key: bytes = USUAL_ID,
    ) -> None:
        self._value, self._headers, self._key = value, headers, key

    def key(self) -> bytes:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> list[tuple[str, bytes]] | None:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return 1, 7

    def topic(self) -> str:
        return "topic"

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return 3


@pytest.mark.parametrize(
    "value",
    [
        b'{"meta":{"id":"a","topic":"t","partition":1}}',
        b'{"meta":{"id":"a","topic":"t"}}',
        b'{"meta":{"id":"a","topic":"elsewhere","partition":0}}',
        b'{"meta":{"id":"a","topic":"u","partition":0}}',
        b'{"meta":{"id":"../a","topic":"t","partition":1}}',
        b'{"meta":{"topic":"t","partition":1}}',
        b'{"meta":{"id":"a","topic":"t","partition":true}}',
        b'{"meta":[]}',
        b'{"meta":null}',
        b'{"x":"\\ud800","meta":{"id":"a","topic":"t","partition":1}}',
        b"[]",
        b"no json",
        None,
    ],
)
def test_the_quick_reading_of_an_event_says_the_same(
    value: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    message: Any = FakeMessage(value, [("replay", b"r")])
    quick = read_event(message)
    monkeypatch.setattr(records, "MAX_QUICK_BYTES", -1)
    assert read_event(message) == quick
    assert quick is None or (quick.at, quick.offset, quick.replay) == (("topic", 2), 3, b"r")


@pytest.mark.parametrize(
    "key",
    [
        USUAL_ID.replace(b"1790000000005", b"1data: 790000000005"),
        USUAL_ID.replace(b"-1", b"-01"),
        USUAL_ID.replace(b'"u"', b'"/"'),
        USUAL_ID.replace(b"}]", b"},]"),
        USUAL_ID.replace(b'"partition":0', b'"partition":9999999999'),
        b"[" + b",".join([OWN_ENTRY] * 300) + b"]",
        USUAL_ID[:-1],
    ],
)
def test_an_id_that_can_t_be_read_says_nothing_of_the_source(key: bytes) -> None:
    """`decode` treated it in the same way when the event came."""
    value = b'{"meta":{"id":"a","topic":"t","partition":1}}'
    message: Any = FakeMessage(value, key=key)
    published = read_event(message)
    assert published is not None
    assert published.source == UNKNOWN_SOURCE
    usual: Any = FakeMessage(value)
    published = read_event(usual)
    assert published is not None
    assert published.source == ("t", 1)
