"""Who an event is: its identity, its place upstream, and how both are read from the event itself.

The same event gets the same identity from every process, sink and later version: what is published is
recognised by it.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NamedTuple, NoReturn

import orjson

from pleiades.core.wire import (
    UNKNOWN_SOURCE,
    Assignment,
    MalformedId,
    TopicPartition,
    parse_id,
)

_MAX_DIGITS = 1000

# One rule for all sinks: a name of at most 128 characters that no file system, path or log reads in
# another way; no leading dot.
_IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_IDENTITIES = re.compile(rf"(?:{_IDENTITY.pattern}\n)*")


def identity_of(meta: dict[str, Any]) -> str | None:
    """`meta.id`, if it can be trusted as a name."""
    identity = meta.get("id")
    if type(identity) is str and _IDENTITY.fullmatch(identity) is not None:
        return identity
    return None


def are_names(identities: list[str]) -> bool:
    """Whether each of them can be trusted as a name."""
    text = "\n".join(identities) + "\n"
    return _IDENTITIES.fullmatch(text) is not None and text.count("\n") == len(identities)


def substitute_identity(meta: dict[str, Any], data: bytes) -> str:
    """A name for an event without a usable `meta.id`: its place in Kafka, else its digest."""
    topic, partition, offset = meta.get("topic"), meta.get("partition"), meta.get("offset")
    if type(topic) is str and type(partition) is int and type(offset) is int:
        place = f"{topic}-{partition}-{offset}"
        if _IDENTITY.fullmatch(place) is not None:
            return place
    return digest(data)


def digest(data: bytes) -> str:
    """Names bytes by their content."""
    return "sha256-" + hashlib.sha256(data).hexdigest()


def own_assignment(
    meta: dict[str, Any], assignments: tuple[Assignment, ...]
) -> tuple[TopicPartition, int]:
    """Which entry of its id is the event's own: the one `meta` names, else the only one.

    Returns the unknown source with the greatest timestamp in the id where that stays open.
    """
    topic, partition = meta.get("topic"), meta.get("partition", 0)
    # By type: True == 1 and 1.0 == 1, and neither is a partition.
    if type(topic) is str and type(partition) is int:
        for source, timestamp_ms in assignments:
            if timestamp_ms and source[0] == topic and source[1] == partition:
                return source, timestamp_ms
    timed = [(source, time) for source, time in assignments if time]
    if len(timed) == 1 and len(assignments) == 1:
        return timed[0]
    return UNKNOWN_SOURCE, max((time for _, time in timed), default=0)


def loosely_loaded(data: bytes) -> Any:
    r"""JSON that orjson refuses, and JavaScript writes: a lone surrogate, as `\ud800`; or a number that
    is too long for Python's own.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is too deep.
    """
    text = data.decode(errors="replace")
    return json.loads(text, parse_constant=_refuse_constant, parse_int=_integer)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


class Identified(NamedTuple):
    """What is said of a published event by its id and data."""

    identity: str
    source: TopicPartition
    assignments: tuple[Assignment, ...]
    stream: str
    """`meta.stream`, such as `mediawiki.recentchange`; empty where it has none."""


def identify(sse_id: bytes, data: bytes) -> Identified | None:
    """What `decode` made of this event when it came; None for what is none."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            body = loosely_loaded(data)
        except (ValueError, RecursionError):
            return None
    if type(body) is not dict:
        return None
    meta = body.get("meta")
    if type(meta) is not dict:
        meta = {}
    try:
        assignments = parse_id(sse_id)
    except MalformedId:
        assignments = ()
    stream = meta.get("stream")
    return Identified(
        identity_of(meta) or substitute_identity(meta, data),
        own_assignment(meta, assignments)[0],
        assignments,
        stream if type(stream) is str else "",
    )
