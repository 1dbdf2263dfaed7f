r"""The identity of an event, and its place upstream, as read from the event itself.

Law: an event gets the same identity from every process, sink and later version, because repeats are
recognised by it. Two different events get different identities.

The identity is `meta.id`. An event without a usable one, and every dead letter, has a *fallback
identity*: a digest of its topic-partition, its timestamp and its content. All three are the same at
every delivery and in both of the upstream's data centres; offsets are not. `core.occurrences`
distinguishes events that have all three in common by their order. No other identity begins with
`FALLBACK`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pleiades.core.body import NotJson, read_body
from pleiades.core.sse_id import UNKNOWN_SOURCE, Assignment, MalformedId, TopicPartition, parse_id

FALLBACK = "sha256-"
"""The prefix of fallback identities, and of no others."""

# One rule for all sinks: at most 128 characters, none of which a file system, path or log interprets,
# and no leading dot.
_LEGAL = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_IDENTITY = re.compile(rf"(?!{FALLBACK}){_LEGAL}")
_IDENTITIES = re.compile(rf"(?:{_IDENTITY.pattern}\n)*")
_FALLBACK = re.compile(rf"{FALLBACK}[0-9a-f]{{64}}(?:-[0-9a-z-]{{1,50}})?")


def identity_of(meta: dict[str, Any]) -> str | None:
    """`meta.id`, if it is safe as a name."""
    identity = meta.get("id")
    if type(identity) is str and _IDENTITY.fullmatch(identity) is not None:
        return identity
    return None


def are_names(identities: list[str]) -> bool:
    """True if each of them is safe as a name."""
    text = "\n".join(identities) + "\n"
    return _IDENTITIES.fullmatch(text) is not None and text.count("\n") == len(identities)


def fallback_identity(source: TopicPartition, timestamp_ms: int, content: bytes) -> str:
    """The identity of an event without a usable `meta.id`, or of a dead letter.

    Args:
        source: its topic-partition.
        timestamp_ms: as in `Event`.
        content: as in `Body.content`; all bytes of a dead letter.
    """
    topic, partition = source
    found = hashlib.sha256(f"{topic}\n{partition}\n{timestamp_ms}\n".encode())
    found.update(content)
    return FALLBACK + found.hexdigest()


def is_fallback(identity: str) -> bool:
    """True for the identity of an event without a usable `meta.id`, or of a dead letter."""
    return identity.startswith(FALLBACK)


def is_legal_fallback(identity: str) -> bool:
    """True if a stored text, which anybody may have written, has the form of a fallback identity."""
    return _FALLBACK.fullmatch(identity) is not None


def own_assignment(
    meta: dict[str, Any], assignments: Sequence[Assignment]
) -> tuple[TopicPartition, int]:
    """The event's own entry in its id: the one that `meta` names, else the only one.

    The result depends on the event and its id alone, so it is the same when the event is read back. If
    neither rule applies, it is the unknown source with the greatest timestamp in the id.
    """
    topic, partition = meta.get("topic"), meta.get("partition", 0)
    # Compared by type: True == 1 and 1.0 == 1, but neither is a partition.
    if type(topic) is str and type(partition) is int:
        for source, timestamp_ms in assignments:
            if timestamp_ms and source[0] == topic and source[1] == partition:
                return source, timestamp_ms
    timed = [(source, time) for source, time in assignments if time]
    if len(timed) == 1 and len(assignments) == 1:
        return timed[0]
    return UNKNOWN_SOURCE, max((time for _, time in timed), default=0)


def delivered_assignment(
    meta: dict[str, Any], assignments: Sequence[Assignment], before: Sequence[Assignment]
) -> tuple[TopicPartition, int]:
    """As `own_assignment`; where that gives no source, derived from the delivery.

    An entry has a timestamp only if its topic-partition has delivered on this connection. So if one
    entry has a timestamp, it is the event's own. The same holds if one entry differs from the previous
    id.

    Args:
        before: the previous id on the same connection; empty if there is none.
    """
    own = own_assignment(meta, assignments)
    if own[0] != UNKNOWN_SOURCE:
        return own
    timed = [(source, time) for source, time in assignments if time]
    if len(timed) == 1:
        return timed[0]
    now, earlier = dict(assignments), dict(before)
    # If an id names a topic-partition twice, its previous value is not known.
    if now.keys() != earlier.keys() or not len(now) == len(assignments) == len(before):
        return own
    changed = [(source, time) for source, time in timed if time != earlier[source]]
    stood_still = sum(time == earlier[source] for source, time in assignments)
    return changed[0] if len(changed) == 1 and stood_still == len(now) - 1 else own


class Identified(NamedTuple):
    """The identity and source of a published event, by its id and data."""

    identity: str
    """A fallback identity without the suffix of a later occurrence."""
    source: TopicPartition
    assignments: tuple[Assignment, ...]
    stream: str
    """`meta.stream`, such as `mediawiki.recentchange`; empty if absent."""


def identify(sse_id: bytes, data: bytes) -> Identified | None:
    """The result of `decode` for this event at its delivery; None if it is no event.

    For a fallback identity `decode` may have known more: the previous id, and the number of the
    occurrence. So identity and source are stored with such an event.
    """
    try:
        body = read_body(data)
    except NotJson:
        return None
    if body is None:
        return None
    meta = body.meta
    try:
        assignments = parse_id(sse_id)
    except MalformedId:
        assignments = ()
    source, timestamp_ms = own_assignment(meta, assignments)
    identity = identity_of(meta)
    if identity is None:
        source, timestamp_ms = delivered_assignment(meta, assignments, ())
        identity = fallback_identity(source, timestamp_ms, body.content)
    stream = meta.get("stream")
    return Identified(identity, source, assignments, stream if type(stream) is str else "")
