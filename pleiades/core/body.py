r"""Reads the fields of an event's JSON that identify it, without building objects for the rest.

Law: reading a text takes memory of a small multiple of its length, whatever the text is. A parser that
builds all objects takes forty times the length for `[{},{},...]`.

JSON that JavaScript writes and strict parsers refuse is accepted: a lone surrogate (`\ud800`), a number
of any length. A text nested deeper than about 1,000 levels is refused.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec
import orjson

MAX_FIELD_BYTES = 1024
"""A longer field of `meta` is ignored."""
MAX_DEEP_BYTES = 1 << 20
"""The longest text that may be nested deeper than msgspec allows, up to orjson's 1,024 levels."""

_FIELDS = ("id", "topic", "partition", "offset", "dt", "domain", "stream")
_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*+\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_OFFSET = re.compile(rb'"offset"\s*:\s*-?[0-9]+')


class _Body(msgspec.Struct, gc=False):
    meta: msgspec.Raw = msgspec.Raw(b"null")


class _Meta(msgspec.Struct, gc=False):
    id: msgspec.Raw = msgspec.Raw(b"")
    topic: msgspec.Raw = msgspec.Raw(b"")
    partition: msgspec.Raw = msgspec.Raw(b"")
    offset: msgspec.Raw = msgspec.Raw(b"")
    dt: msgspec.Raw = msgspec.Raw(b"")
    domain: msgspec.Raw = msgspec.Raw(b"")
    stream: msgspec.Raw = msgspec.Raw(b"")


_check = msgspec.json.Decoder(msgspec.Raw).decode
_read_body = msgspec.json.Decoder(_Body).decode
_read_meta = msgspec.json.Decoder(_Meta).decode


class NotJson(ValueError):
    """The text is not JSON."""


class Body(NamedTuple):
    """The parts of a JSON object that identify the event."""

    meta: dict[str, Any]
    """The fields of `meta` that identify the event; empty if `meta` is not an object."""
    content: bytes
    """The object without `meta.offset`, which differs between the upstream's data centres."""


def read_body(data: bytes) -> Body | None:
    """Read an event's data; None if it is JSON but not an object.

    Args:
        data: UTF-8.

    Raises:
        NotJson: it is not JSON.
    """
    text = checked(data)
    if not text.lstrip(b" \t\r\n").startswith(b"{"):
        return None
    try:
        raw_meta = bytes(_read_body(text).meta)
    except RecursionError:
        # Rare and short, see `checked`.
        raw_meta = orjson.dumps(orjson.loads(text).get("meta"))
    meta = _fields(raw_meta)
    content = data
    if "offset" in meta:
        before, _, after = data.partition(raw_meta)
        content = before + _OFFSET.sub(b'"offset"', raw_meta) + after
    return Body(meta, content)


def checked(data: bytes) -> bytes:
    """The text, or an equivalent one that strict parsers accept.

    Raises:
        NotJson: it is not JSON.
    """
    try:
        _check(data)
    except RecursionError:
        # The depth that msgspec allows depends on its caller; orjson's limit does not.
        if len(data) > MAX_DEEP_BYTES:
            raise NotJson("it is nested too deep") from None
        try:
            orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise NotJson(str(error)) from None
    except msgspec.DecodeError as error:
        if b"\\u" not in data:
            raise NotJson(str(error)) from None
        text = _without_surrogates(data)
        try:
            _check(text)
        except (RecursionError, msgspec.DecodeError) as error:
            raise NotJson(str(error)) from None
        return text
    return data


def _without_surrogates(data: bytes) -> bytes:
    # No field that matters has one. In place, because a million pieces to join would be objects, too.
    text = bytearray(data)
    for found in _SURROGATE.finditer(data):
        text[found.end() - 4 : found.end()] = b"fffd"
    return bytes(text)


def _fields(raw_meta: bytes) -> dict[str, Any]:
    try:
        read = _read_meta(raw_meta)
    except (RecursionError, msgspec.MsgspecError):
        return {}
    meta = {}
    for name in _FIELDS:
        raw = bytes(getattr(read, name))
        if raw:
            meta[name] = _value(raw)
    return meta


def _value(raw: bytes) -> Any:
    """The value of a field; None if no field that matters can have it."""
    if len(raw) > MAX_FIELD_BYTES:
        return None
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
