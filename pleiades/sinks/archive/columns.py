"""The columns of an event that a query asks for, whatever stream it is from.

Laws:
- Any text has columns. A field that is absent, of another type or out of range is null.
- Memory is a small multiple of the text's length, whatever the text is (see `core.body`).

The names are those of `mediawiki.recentchange`. Other streams have the same facts under other names
(https://schema.wikimedia.org/repositories/primary/jsonschema/mediawiki/):

| column | page change | revision create and other streams of revisions and pages |
|---|---|---|
| `wiki` | `wiki_id` | `database` |
| `type` | `page_change_kind` | |
| `namespace` | `page.namespace_id` | `page_namespace` |
| `title` | `page.page_title` | `page_title` |
| `user` | `performer.user_text` | `performer.user_text` |
| `bot` | `performer.is_bot` | `performer.user_is_bot` |
| `timestamp` | `dt` | `rev_timestamp`, else `dt` |
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from pleiades.core.body import NotJson, checked

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_LAST_SECOND = 253_402_300_799
_YEARS_MS = range(-62_135_596_800_000, (_LAST_SECOND + 1) * 1000)
"""The years 1 to 9999: not all databases read other dates."""

Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=_LAST_SECOND)]


class Meta(msgspec.Struct, gc=False):
    """The fields of `meta`, which all streams share."""

    id: str | None = None
    stream: str | None = None
    domain: str | None = None
    dt: datetime | None = None
    topic: str | None = None
    partition: Integer | None = None
    offset: Integer | None = None
    request_id: str | None = None
    uri: str | None = None


class _Page(msgspec.Struct, gc=False):
    namespace_id: Integer | None = None
    page_title: str | None = None


class _Performer(msgspec.Struct, gc=False):
    user_text: str | None = None
    user_is_bot: bool | None = None
    is_bot: bool | None = None


_NO_META, _NO_PAGE, _NO_PERFORMER = Meta(), _Page(), _Performer()


class _Event(msgspec.Struct, gc=False):
    meta: Meta | None = None
    wiki: str | None = None
    type: str | None = None
    namespace: Integer | None = None
    title: str | None = None
    user: str | None = None
    bot: bool | None = None
    timestamp: Seconds | datetime | None = None
    database: str | None = None
    wiki_id: str | None = None
    page_change_kind: str | None = None
    page: _Page | None = None
    page_namespace: Integer | None = None
    page_title: str | None = None
    performer: _Performer | None = None
    rev_timestamp: datetime | None = None
    dt: datetime | None = None


class Columns(NamedTuple):
    """Those of one event."""

    meta: Meta
    dt_ms: int | None
    """`meta.dt`, in ms since 1970."""
    wiki: str | None
    type: str | None
    namespace: int | None
    title: str | None
    user: str | None
    bot: bool | None
    timestamp_ms: int | None
    """When it happened, in ms since 1970."""


T = TypeVar("T", bound=msgspec.Struct)
_read = msgspec.json.Decoder(_Event).decode
_UNUSUAL = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


def columns_of(text: bytes) -> Columns:
    """The columns of an event's JSON."""
    try:
        event = _read(text)
    except _UNUSUAL:
        event = _read_what_fits(text)
    meta = event.meta or _NO_META
    page = event.page or _NO_PAGE
    performer = event.performer or _NO_PERFORMER
    happened = event.timestamp
    if happened is None:
        happened = event.rev_timestamp or event.dt
    return Columns(
        meta,
        _milliseconds(meta.dt),
        _first(event.wiki, event.database, event.wiki_id),
        _first(event.type, event.page_change_kind),
        _first(event.namespace, event.page_namespace, page.namespace_id),
        _first(event.title, event.page_title, page.page_title),
        _first(event.user, performer.user_text),
        _first(event.bot, performer.user_is_bot, performer.is_bot),
        happened * 1000 if isinstance(happened, int) else _milliseconds(happened),
    )


V = TypeVar("V")


def _first(*values: V | None) -> V | None:
    return next((value for value in values if value is not None), None)


def _milliseconds(when: datetime | None) -> int | None:
    if when is None:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    milliseconds = (when - _EPOCH) // _MILLISECOND
    return milliseconds if milliseconds in _YEARS_MS else None


def _read_what_fits(text: bytes) -> _Event:
    try:
        return _fitting(checked(text), _Event)
    except NotJson:
        return _Event()


def _fitting(text: bytes, kind: type[T]) -> T:
    """A struct with the fields that have their type; the others are None."""
    try:
        raw = _raw_decoder(kind).decode(text)
    except _UNUSUAL:
        return kind()
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        content = bytes(getattr(raw, field.name))
        if content:
            try:
                found[field.name] = msgspec.json.decode(content, type=field.type)
            except _UNUSUAL:
                inner = _INNER.get(field.name) if kind is _Event else None
                found[field.name] = inner and _fitting(content, inner)
    return kind(**found)


_INNER: dict[str, type[msgspec.Struct]] = {"meta": Meta, "page": _Page, "performer": _Performer}


@cache
def _raw_decoder(kind: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    """Reads the fields of a struct without looking into them."""
    fields = [(name, msgspec.Raw, msgspec.Raw(b"")) for name in kind.__struct_fields__]
    return msgspec.json.Decoder(msgspec.defstruct(f"Raw{kind.__name__}", fields))
