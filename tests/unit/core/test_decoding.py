from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from pleiades.core.columns import all_published, count_published
from pleiades.core.decoding import (
    Decoded,
    decode,
    decode_any,
    decode_usual,
)
from pleiades.core.event import CANARY, NOT_AN_OBJECT, NOT_JSON, Event, Frames, time_ms, unpublished
from pleiades.core.framing import Framer, ids_in, retry_in
from pleiades.core.identity import delivered_assignment, fallback_identity, identify, own_assignment
from pleiades.core.sse import count_lines, sse_events
from pleiades.core.sse_id import UNKNOWN_SOURCE, Assignment, TopicPartition

RECORDED = Path(__file__).resolve().parents[4] / "shared" / "data" / "recentchange-2018-10-19.sse"
EQIAD: TopicPartition = ("eqiad.x", 0)
CODFW: TopicPartition = ("codfw.x", 0)
ID = (
    b'[{"topic":"eqiad.x","partition":0,"timestamp":1001},'
    b'{"topic":"codfw.x","partition":0,"offset":-1}]'
)
USUAL_ID = ID.replace(b"1001", b"1760000001001")
META: dict[str, Any] = {
    "id": "6f0c",
    "topic": "eqiad.x",
    "partition": 0,
    "dt": "1970-01-01T00:00:01Z",
}

LONG = b"x" * 2048

# Name, bytes, events as (type, last event id, data), and the last `retry`. The cases are those of the
# web platform tests of EventSource (https://github.com/web-platform-tests/wpt, eventsource/format-*).
FORMAT: list[tuple[str, bytes, list[tuple[str, str, str]], int | None]] = [
    (
        "bom: only one, only at the start",
        b"\xef\xbb\xbfdata:1\n\n\xef\xbb\xbfdata:2\n\ndata:3\n\n",
        [("message", "", "1"), ("message", "", "3")],
        None,
    ),
    (
        "bom-2: of two the second belongs to the field's name",
        b"\xef\xbb\xbf\xef\xbb\xbfdata:1\n\ndata:2\n\ndata:3\n\n",
        [("message", "", "2"), ("message", "", "3")],
        None,
    ),
    (
        "comments: anywhere, long, with a NUL, on all line ends",
        b"data:1\r:\0\n:\r\ndata:2\n:%b\rdata:3\n:data:no\r:%b\ndata:4\n\n" % (LONG, LONG),
        [("message", "", "1\n2\n3\n4")],
        None,
    ),
    (
        "data-before-final-empty-line: a frame without its empty line is none",
        b"retry:1000\ndata:test1\n\nid:test\ndata:test2\n",
        [("message", "", "test1")],
        1000,
    ),
    (
        "field-data: empty data is data, and each line adds one",
        b"data:\n\ndata\ndata\n\ndata:test\n\n",
        [("message", "", ""), ("message", "", "\n"), ("message", "", "test")],
        None,
    ),
    (
        "field-event: names the next event only",
        b"event:test\ndata:x\n\ndata:x\n\n",
        [("test", "", "x"), ("message", "", "x")],
        None,
    ),
    ("field-event-empty", b"event: \ndata:data\n\n", [("message", "", "data")], None),
    (
        "field-event: without data there is no event, and the name is forgotten",
        b"event:test\n\ndata:x\n\n",
        [("message", "", "x")],
        None,
    ),
    ("field-id", b"id: \xe2\x80\xa6\ndata:hello\n\n", [("message", "\u2026", "hello")], None),
    (
        "field-id-2: stays until it is set again, also by an empty one",
        b"id:1\ndata:1\n\ndata:2\n\nid:2\ndata:3\n\nid\ndata:4\n\ndata:5\n\n",
        [
            *(("message", "1", "1"), ("message", "1", "2"), ("message", "2", "3")),
            *(("message", "", "4"), ("message", "", "5")),
        ],
        None,
    ),
    (
        "field-id-3: counts without data too, and wherever it stands in the frame",
        b"id:1\n\ndata:1\n\ndata:2\nid:2\n\n",
        [("message", "1", "1"), ("message", "2", "2")],
        None,
    ),
    (
        "field-id-null: an id with a NUL is ignored",
        b"id:1\0\ndata:1\n\nid:2\ndata:2\n\nid:\0\0\ndata:3\n\n",
        [("message", "", "1"), ("message", "2", "2"), ("message", "2", "3")],
        None,
    ),
    (
        "field-parsing: names are exact, one space is dropped",
        (
            b"data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\n"
            b"data:3\rdata:\r\n data:32\ndata:4\n\n"
        ),
        [("message", "", "\0\n 2\n1\n3\n\n4")],
        None,
    ),
    ("field-retry", b"retry:3000\ndata:x\n\n", [("message", "", "x")], 3000),
    ("field-retry-bogus", b"retry:2000\nretry:1000x\ndata:x\n\n", [("message", "", "x")], 2000),
    ("field-retry-empty", b"retry\ndata:test\n\n", [("message", "", "test")], None),
    (
        "field-unknown",
        b"data:test\n data\ndata\nfoobar:xxx\njustsometext\n:comment\ndata:test\n\n",
        [("message", "", "test\n\ntest")],
        None,
    ),
    (
        "leading-space: a tab is none, and of two spaces one stays",
        b"data:\ttest\rdata: \ndata:test\n\ndata:  x\n\n",
        [("message", "", "\ttest\n\ntest"), ("message", "", " x")],
        None,
    ),
    (
        "newlines: CRLF, LF and CR",
        b"data:test\r\ndata\ndata:test\r\n\r\n",
        [("message", "", "test\n\ntest")],
        None,
    ),
    ("null-character", b"data:\0\n\n\n\n", [("message", "", "\0")], None),
    ("utf-8", b"data:ok\xe2\x80\xa6\n\n", [("message", "", "ok\u2026")], None),
    ("utf-8: what is none is replaced", b"data:a\xffb\n\n", [("message", "", "a\ufffdb")], None),
    (
        "mime: other line separators of Unicode end no line",
        "data:a\u2028b\u2029c\u0085d\x0b\x0c\x1ce\n\n".encode(),
        [("message", "", "a\u2028b\u2029c\u0085d\x0b\x0c\x1ce")],
        None,
    ),
]


@pytest.mark.parametrize("chunk_bytes", [10**6, 1, 7])
@pytest.mark.parametrize(
    ("stream", "events", "retry_ms"),
    [case[1:] for case in FORMAT],
    ids=[case[0] for case in FORMAT],
)
def test_format(
    stream: bytes, events: list[tuple[str, str, str]], retry_ms: int | None, chunk_bytes: int
) -> None:
    framer = Framer()
    found: list[tuple[str, str, str]] = []
    last_id, retry = b"", None
    for start in range(0, len(stream), chunk_bytes):
        blob = framer.feed(stream[start : start + chunk_bytes])
        found += [
            (kind, sse_id.decode(), data.decode())
            for kind, sse_id, data, _ in sse_events(blob, last_id)
        ]
        last_id = (ids_in(blob) or [last_id])[-1]
        retry = retry if retry_in(blob) is None else retry_in(blob)
    assert found == events
    assert retry == retry_ms


def decoded(blob: bytes, last_event_id: bytes = b"", keep_canaries: bool = False) -> Decoded:
    return decode(received(blob, last_event_id), keep_canaries)


def received(blob: bytes, last_event_id: bytes = b"") -> Frames:
    return Frames(7, 3, blob, last_event_id, 11, 13)


def frame(data: bytes, sse_id: bytes = ID) -> bytes:
    return b"event: message\nid: " + sse_id + b"\ndata: " + data + b"\n\n"


def usual_frame(data: bytes, sse_id: bytes = USUAL_ID) -> bytes:
    return frame(data, sse_id)


def with_meta(**changes: Any) -> bytes:
    return orjson.dumps({"meta": META | changes})


def test_an_event() -> None:
    data = with_meta()
    batch = decoded(frame(data)).batch
    assert (batch.sequence, batch.connection, batch.started_ms, batch.clock_ms) == (7, 3, 11, 13)
    assert batch.timestamps_ms == {EQIAD: 1001, CODFW: 0}
    assert batch.events == [Event("6f0c", EQIAD, 1001, META["dt"], ID, data)]
    assert batch.events[0].dt_ms == 1000  # as META says


def test_the_shape_that_is_fast() -> None:
    assert is_usual(usual_frame(with_meta()) * 2)
    for odd in (b"", b":ok\n\n", b"\n", b"data: 1\n\n", b"event: error\nid: 1\ndata: 1\n\n"):
        assert not is_usual(odd)
        assert not is_usual(usual_frame(with_meta()) + odd) or not odd
    assert not is_usual(usual_frame(with_meta(), b"a\0b"))


@pytest.mark.parametrize(
    "odd",
    [
        *(b"1", b"[]", b'"meta"', b"{}", b'{"meta":1}', b'{"meta":[]}', b'{"meta":{}', b"\xff"),
        *(
            with_meta(domain="canary"),
            with_meta(id="a/b"),
            with_meta(id=None),
            with_meta(id="a\nb"),
        ),
        *(with_meta(partition=True), with_meta(partition=0.0), with_meta(partition=None)),
        *(with_meta(topic="codfw.x"), with_meta(topic=None), with_meta(topic=["eqiad.x"])),
        *(with_meta(dt="x" * 41), with_meta(dt=1), with_meta(dt="2026\n01")),
        # In a skipped string; nested too deeply to be parsed.
        with_meta()[:-1] + b',"x":"\xff"}',
        with_meta()[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_not_as_usual_goes_the_general_way(odd: bytes) -> None:
    assert not is_usual(usual_frame(odd))
    assert not is_usual(usual_frame(with_meta()) + usual_frame(odd))


def test_an_id_that_names_its_topic_twice_goes_the_general_way() -> None:
    twice = b'[{"topic":"eqiad.x","partition":0,"timestamp":%d},' % 1760000001001
    twice += b'{"topic":"eqiad.x","partition":0,"timestamp":%d}]' % 1760000002002
    assert not is_usual(usual_frame(with_meta(), twice))
    assert decoded(usual_frame(with_meta(), twice)).batch.events[0].timestamp_ms == 1760000001001


def is_usual(blob: bytes) -> bool:
    return decode_usual(received(blob), keep_canaries=False) is not None


@pytest.mark.parametrize("number", [b"9" * 10_000, b"-" + b"9" * 10_000, b"1e999", b"2" * 30])
def test_a_number_may_be_of_any_length(number: bytes) -> None:
    data = with_meta()[:-1] + b',"n":' + number + b"}"
    for decoded_ in (
        decode_usual(received(usual_frame(data)), False),
        decode_any(received(usual_frame(data)), False),
    ):
        assert decoded_ is not None
        assert decoded_.batch.events[0].data == data
    assert identify(ID, data) is not None


def test_canaries_leave_their_place() -> None:
    canary = with_meta(domain="canary")
    both = decoded(frame(with_meta()) + frame(canary) + frame(with_meta()))
    assert both.batch.events[1] == unpublished(EQIAD, 1001, CANARY)
    assert (both.canaries, count_published(both.batch.events)) == (1, 2)
    assert decoded(frame(canary)).batch.timestamps_ms[EQIAD] == 1001
    assert len(decoded(frame(canary), keep_canaries=True).batch.events) == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", NOT_JSON),
        (b'{"a":NaN}', NOT_JSON),
        (b'{"a":Infinity}', NOT_JSON),
        (b"{} {}", NOT_JSON),
        (b"\xef\xbb\xbf{}", NOT_JSON),
        (b"[" * 200_000, NOT_JSON),
        (b"9" * 10_000, NOT_AN_OBJECT),
        (b"1e999", NOT_AN_OBJECT),
        (b"null", NOT_AN_OBJECT),
        (b"[]", NOT_AN_OBJECT),
        (b'"\\ud800"', NOT_AN_OBJECT),
    ],
)
def test_dead_letters(data: bytes, reason: str) -> None:
    batch = decoded(frame(with_meta()) + frame(data)).batch
    assert batch.events[0].identity == "6f0c"
    # The only entry of its id with a timestamp is its own: the others have not delivered anything yet.
    identity = fallback_identity(EQIAD, 1001, data)
    assert batch.events[1:] == [Event(identity, EQIAD, 1001, "", ID, data, reason)]
    assert batch.fallbacks == 1


def test_json_that_javascript_writes_is_an_event() -> None:
    data = b'{"title":"\\ud800","meta":' + orjson.dumps(META) + b"}"
    (event,) = decoded(frame(data)).batch.events
    assert (event.identity, event.data) == ("6f0c", data)


def test_invalid_utf_8_is_replaced_alike_on_both_ways() -> None:
    for data in (b'{"a":"\xff"}', b"\xff"):
        fast = decoded(frame(data)).batch
        slow = decoded(b":\n\n" + frame(data)).batch
        assert fast == slow
        published = [event.data for event in fast.events]
        assert published == [data.replace(b"\xff", "\ufffd".encode())]


def test_errors_of_the_upstream_are_set_apart() -> None:
    result = decoded(b"event: error\ndata: {}\n\n" + frame(with_meta()))
    assert result.upstream_errors == [b"{}"]
    assert len(result.batch.events) == 1


def test_a_frame_without_an_id_has_the_last_one() -> None:
    event, other = decoded(b"data: {}\n\nid: x\ndata: {}\n\n", ID).batch.events
    assert (event.key, other.key) == (ID, b"x")


@pytest.mark.parametrize(
    "identity",
    [
        *("", ".", "..", ".hidden", "-x", "_x", "a/b", "a\\b", "a\n", "a\0", "a b", "\u00e9"),
        *("a" * 129, "a:b", None, True, 5, ["a"], {"a": 1}),
    ],
)
def test_untrusted_identities_are_replaced(identity: object) -> None:
    data = with_meta(id=identity)
    result = decoded(frame(data))
    assert result.batch.events[0].identity == fallback_identity(EQIAD, 1001, data)
    assert (result.replaced_identities, result.batch.fallbacks) == (1, 1)


def test_a_fallback_identity_does_not_depend_on_the_data_centre() -> None:
    """Offsets differ: a client that relies on them takes new events for old ones after a failover."""
    one, other = (
        decoded(frame(with_meta(id=None, offset=offset))).batch.events[0] for offset in (9, 12345)
    )
    assert one.identity == other.identity
    for changed in (
        with_meta(id=None, offset=9, x=1),
        with_meta(id=None, offset=9)[:-1] + b',"x":1}',
    ):
        assert decoded(frame(changed)).batch.events[0].identity != one.identity
    later = decoded(frame(with_meta(id=None, offset=9), ID.replace(b"1001", b"1002")))
    assert later.batch.events[0].identity != one.identity


def test_no_meta_id_is_taken_for_a_fallback_identity() -> None:
    forged = fallback_identity(EQIAD, 1001, b"{}")
    for name in (forged, forged + "-2", "sha256-x"):
        assert decoded(frame(with_meta(id=name))).batch.events[0].identity != name


@pytest.mark.parametrize("identity", ["a" * 128, "0", "A.b_c-d", "a..b"])
def test_usable_identities_are_kept(identity: str) -> None:
    assert decoded(frame(with_meta(id=identity))).batch.events[0].identity == identity


BOTH = (Assignment(EQIAD, 1001), Assignment(CODFW, 2001))


@pytest.mark.parametrize(
    ("meta", "assignments", "own"),
    [
        ({"topic": "codfw.x", "partition": 0}, BOTH, (CODFW, 2001)),
        ({"topic": "codfw.x"}, BOTH, (CODFW, 2001)),
        ({"topic": "codfw.x", "partition": 1}, BOTH, (UNKNOWN_SOURCE, 2001)),
        ({"topic": "codfw.x", "partition": False}, BOTH, (UNKNOWN_SOURCE, 2001)),
        ({"topic": "codfw.x", "partition": 0.0}, BOTH, (UNKNOWN_SOURCE, 2001)),
        ({"topic": ["codfw.x"]}, BOTH, (UNKNOWN_SOURCE, 2001)),
        ({}, BOTH, (UNKNOWN_SOURCE, 2001)),
        ({}, BOTH[:1], (EQIAD, 1001)),
        ({}, (), (UNKNOWN_SOURCE, 0)),
        # The other topic has not delivered yet; that does not make the first entry the event's own.
        ({}, (BOTH[0], Assignment(CODFW, None)), (UNKNOWN_SOURCE, 1001)),
        # Without a Kafka timestamp it must not become a name.
        ({"topic": "eqiad.x"}, (Assignment(EQIAD, 0),), (UNKNOWN_SOURCE, 0)),
    ],
)
def test_own_assignment(
    meta: dict[str, Any],
    assignments: tuple[Assignment, ...],
    own: tuple[TopicPartition, int],
) -> None:
    assert own_assignment(meta, assignments) == own


WAITING = (Assignment(EQIAD, None), Assignment(CODFW, None))


@pytest.mark.parametrize(
    ("assignments", "before", "source"),
    [
        ((BOTH[0], WAITING[1]), (), EQIAD),
        ((WAITING[0], BOTH[1]), BOTH, CODFW),
        (BOTH, (), UNKNOWN_SOURCE),
        (BOTH, (BOTH[0], WAITING[1]), CODFW),
        (BOTH, (BOTH[0], Assignment(CODFW, 2002)), CODFW),
        (BOTH, (Assignment(EQIAD, 7), BOTH[1]), EQIAD),
        # The order varies.
        (BOTH, (BOTH[1], Assignment(EQIAD, 7)), EQIAD),
        # It is in the same millisecond as the previous event, or an event between them is missing.
        (BOTH, BOTH, UNKNOWN_SOURCE),
        (BOTH, (Assignment(EQIAD, 7), Assignment(CODFW, 8)), UNKNOWN_SOURCE),
        (
            (*BOTH, Assignment(("eqiad.y", 0), None)),
            (Assignment(EQIAD, 7), BOTH[1], Assignment(("eqiad.y", 0), 8)),
            UNKNOWN_SOURCE,
        ),
        (BOTH, BOTH[:1], UNKNOWN_SOURCE),
        (BOTH, (*BOTH, BOTH[0]), UNKNOWN_SOURCE),
        ((*BOTH, Assignment(EQIAD, 7)), BOTH, UNKNOWN_SOURCE),
        ((), (), UNKNOWN_SOURCE),
    ],
)
def test_what_the_delivery_tells_of_an_event_that_does_not_name_its_topic(
    assignments: tuple[Assignment, ...], before: tuple[Assignment, ...], source: TopicPartition
) -> None:
    own_ms = dict(assignments).get(source) or max((ms or 0 for _, ms in assignments), default=0)
    assert delivered_assignment({}, assignments, before) == (source, own_ms)


def test_the_id_before_is_that_of_the_frame_before() -> None:
    first = ID.replace(b'"offset":-1', b'"timestamp":2001')
    second = first.replace(b"2001", b"2002")
    # An event without data counts, too.
    for blob in (frame(b"1", first), b"id: " + first + b"\n\n"):
        *_, letter = decoded(blob + frame(b"2", second)).batch.events
        assert (letter.source, letter.timestamp_ms) == (CODFW, 2002)
    (letter,) = decoded(frame(b"2", second), first).batch.events
    assert letter.source == CODFW
    (letter,) = decoded(frame(b"2", second)).batch.events
    assert letter.source == UNKNOWN_SOURCE


def test_of_duplicate_keys_the_last_counts_as_upstream() -> None:
    (event,) = decoded(frame(b'{"meta":{"id":"a"},"meta":{"id":"b","id":"c"}}')).batch.events
    assert event.identity == "c"


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1970-01-01T00:00:01Z", 1000),
        ("1970-01-01T00:00:01.2019999Z", 1201),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T00:00:01", 1000),
        ("2025-10-09T08:53:20.201Z", 1_760_000_000_201),
        ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
        ("9999-12-31T23:59:59.999-00:01", 0),
        ("1969-12-31T23:59:59Z", 0),
        ("0001-01-01T00:00:00+23:59", 0),
        ("2025-10-09T08:53:20+99:99", 0),
        ("2025-13-09T08:53:20Z", 0),
        ("2025-10-09T08:53:20Z" + " " * 100, 0),
        ("\ud800" * 20, 0),
        ("", 0),
    ],
)
def test_time_ms(text: str, milliseconds: int) -> None:
    assert time_ms(text) == milliseconds


def test_no_millisecond_is_lost_to_a_float() -> None:
    # A float of these seconds, times 1000, lies below the millisecond.
    assert time_ms("3075-01-05T17:18:24.269Z") == time_ms("3075-01-05T17:18:24Z") + 269
    assert time_ms("4175-10-05T19:48:06.831Z") == time_ms("4175-10-05T19:48:06Z") + 831


def test_lines_are_counted_by_kind() -> None:
    blob = b":ok\n\nevent: message\nid: 1\ndata: 1\nretry: 5\nx\ndata\n\nfoo\ndata: a\nbar\n\n"
    counts = {"comment": 1, "event": 1, "id": 1, "data": 3, "unknown": 4}
    assert count_lines(blob) == counts
    assert decoded(blob).lines == counts
    assert decoded(frame(b"{}") * 2).lines == {"id": 2, "event": 2, "data": 2}
    assert decoded(b"foo\ndata: a\nbar\n\n").lines == {"unknown": 2, "data": 1}


def test_a_frame_of_a_million_lines_costs_no_more_than_its_length() -> None:
    # sseclient-py alone would copy terabytes here.
    lines = b"data\n" * 500_000 + b"event: odd\n" + b"data: x\n" * 500_000
    (event,) = sse_events(lines + b"\n", b"")
    assert event.type == "odd"
    assert event.data == b"\n" * 500_000 + b"\n".join([b"x"] * 500_000)


@pytest.mark.parametrize("character", ["x", " ", "\u00e9", "\u20ac", "\U0001f600"])
@pytest.mark.parametrize("end", [b"", b"\ndata: next", b"\nx\nevent: odd"])
def test_a_long_line_is_one_line(character: str, end: bytes) -> None:
    for length in (65_530, 65_537, 200_001):
        value = character.encode() * length
        (event,) = sse_events(b":\ndata: " + value + end + b"\n\n", b"")
        assert event.data == value + (b"\nnext" if b"next" in end else b"")
        assert event.type == ("odd" if b"odd" in end else "message")


def test_recorded_stream() -> None:
    if not RECORDED.exists():
        pytest.skip("the recorded stream is not here")
    blob = Framer().feed(RECORDED.read_bytes())
    result = decoded(blob)
    assert len(result.batch.events) > 100
    assert all_published(result.batch.events)
    assert not result.malformed_ids
    assert not result.replaced_identities
    assert all(event.source != UNKNOWN_SOURCE for event in result.batch.events)
