"""The columns of an event, of any stream and with any values."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pleiades.sinks.archive.columns import Columns, Meta, columns_of

NOTHING = Columns(Meta(), None, None, None, None, None, None, None, None)
META = {
    "uri": "https://test.wikipedia.org/wiki/Talk:A_page",
    "request_id": "a0036bbd-f533-4ec1-bc00-0901aedd5d67",
    "id": "9ae1511e-7e88-4afa-b5c2-8dda3bb39a95",
    "dt": "2026-11-27T10:00:00.250Z",
    "domain": "test.wikipedia.org",
    "stream": "mediawiki.test",
    "topic": "eqiad.mediawiki.test",
    "partition": 2,
    "offset": 2**40,
}
DT_MS = 1_795_773_600_250
HAPPENED = "2026-11-27T09:59:59Z"
HAPPENED_MS = 1_795_773_599_000
RECENT_CHANGE = {
    "$schema": "/mediawiki/recentchange/1.0.0",
    "id": 7,
    "type": "edit",
    "namespace": 1,
    "title": "Talk:A page",
    "timestamp": 1_795_773_599,
    "user": "Somebody",
    "bot": True,
    "wiki": "testwiki",
    "log_params": ["any", {"thing": 1}],
}
# Shortened from the examples of the schemas.
REVISION_CREATE = {
    "$schema": "/mediawiki/revision/create/1.0.0",
    "database": "testwiki",
    "page_id": 112_005,
    "page_title": "Talk:A_page",
    "page_namespace": 1,
    "rev_id": 435_497,
    "rev_timestamp": HAPPENED,
    "dt": "2026-11-27T10:00:00Z",
    "performer": {"user_text": "Somebody", "user_groups": ["*"], "user_is_bot": True},
}
PAGE_CHANGE = {
    "$schema": "/mediawiki/page/change/1.2.0",
    "dt": HAPPENED,
    "changelog_kind": "update",
    "page_change_kind": "edit",
    "wiki_id": "testwiki",
    "page": {"namespace_id": 1, "page_id": 1, "page_title": "Talk:A_page", "is_redirect": False},
    "performer": {"user_id": 123, "user_text": "Somebody", "is_bot": True},
    "revision": {"rev_dt": "2026-11-27T09:59:58Z", "rev_id": 2},
}


def columns(event: dict[str, Any]) -> Columns:
    return columns_of(orjson.dumps(event))


@pytest.mark.parametrize(
    ("event", "title", "kind"),
    [
        (RECENT_CHANGE, "Talk:A page", "edit"),
        (REVISION_CREATE, "Talk:A_page", None),
        (PAGE_CHANGE, "Talk:A_page", "edit"),
    ],
    ids=["recentchange", "revision-create", "page-change"],
)
def test_streams_have_the_same_columns(event: dict[str, Any], title: str, kind: str | None) -> None:
    found = columns({"meta": META} | event)
    assert {name: getattr(found.meta, name) for name in META if name != "dt"} == {
        name: value for name, value in META.items() if name != "dt"
    }
    expected = Columns(found.meta, DT_MS, "testwiki", kind, 1, title, "Somebody", True, HAPPENED_MS)
    assert found == expected


ODD_VALUES: list[Any] = [
    None,
    True,
    1,
    -1,
    1.5,
    "",
    "x",
    [],
    {},
    [{}],
    {"a": 1},
    "0001-01-01T00:00:00+14:00",
]


@pytest.mark.parametrize("value", ODD_VALUES, ids=repr)
@pytest.mark.parametrize("event", [RECENT_CHANGE, REVISION_CREATE, PAGE_CHANGE])
def test_a_field_of_another_type_is_null_and_costs_no_other(
    event: dict[str, Any], value: object
) -> None:
    whole = columns({"meta": META} | event)._asdict()
    for name in event:
        found = columns({"meta": META} | event | {name: value})._asdict()
        changed = [column for column in found if found[column] != whole[column]]
        # A performer has two columns, a page, too.
        assert len(changed) <= (2 if name in ("performer", "page") else 1)
        for column in changed:
            assert found[column] in (None, value, value if value is None else 1000) or (
                (event, column) == (REVISION_CREATE, "timestamp_ms")
            )


def test_a_field_of_meta_of_another_type_is_null() -> None:
    event = {"meta": META | {"id": 3, "offset": 2**63, "dt": "yesterday"}} | RECENT_CHANGE
    found = columns(event)
    assert (found.meta.id, found.meta.offset, found.dt_ms) == (None, None, None)
    assert (found.meta.topic, found.meta.partition) == (META["topic"], META["partition"])
    assert found.title == "Talk:A page"
    assert columns({"meta": 3, "title": "t"}) == NOTHING._replace(title="t")


@pytest.mark.parametrize(
    ("text", "title"),
    [
        (b'{"title":"a","n":1' + b"0" * 1000 + b"}", "a"),
        (rb'{"title":"a\ud800b","namespace":"x"}', "a\ufffdb"),
        (rb'{"title":"a\u0000b","type":[]}', "a\0b"),
        (b'{"title":"a","deep":' + b"[" * 500 + b"]" * 500 + b"}", "a"),
        (b' {"title" : "a" , "title" : "b" } ', "b"),
    ],
)
def test_what_strict_parsers_refuse_has_columns(text: bytes, title: str) -> None:
    assert columns_of(text) == NOTHING._replace(title=title)


def test_depth_that_no_parser_of_fields_allows_is_no_error() -> None:
    """The limit of msgspec is Python's, which differs by version."""
    text = b'{"title":"a","deep":' + b"[" * 1000 + b"]" * 1000 + b"}"
    assert columns_of(text) in (NOTHING, NOTHING._replace(title="a"))


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"null", b"{", b"\xff", b'{"title":"\xff"}', b"[" * 100_000, b'{"a":' * 100_000],
)
def test_what_is_no_event_has_none(text: bytes) -> None:
    assert columns_of(text) == NOTHING


@pytest.mark.parametrize(
    ("timestamp", "ms"),
    [
        (0, 0),
        (253_402_300_799, 253_402_300_799_000),
        (253_402_300_800, None),
        (-1, None),
        (2**70, None),
        ("2018-10-19T11:24:51+00:00", 1_539_948_291_000),
        ("2018-10-19T11:24:51", 1_539_948_291_000),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        ("2018", None),
    ],
)
def test_times(timestamp: object, ms: int | None) -> None:
    text = b'{"timestamp":%b}' % (
        orjson.dumps(timestamp) if isinstance(timestamp, str) else str(timestamp).encode()
    )
    assert columns_of(text).timestamp_ms == ms
