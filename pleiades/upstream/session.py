"""The one loop that reads a connection: bytes → whole frames with their ids, until it ends.

Law: what is handed on are whole frames in their order, and none that may have missed others before it
(`core.past_end`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

from pleiades.core.framing import ColumnarFrames, Framer, before_id, split_columns
from pleiades.core.ids import ParsedIds, read_ids
from pleiades.core.past_end import PastEnd
from pleiades.runtime.errors import Transient
from pleiades.upstream.http import Connection

log = logging.getLogger(__name__)

PAST_END = "past_end"
"""Why a connection ended: a topic-partition delivered that was past its end when it was opened."""


class Received(NamedTuple):
    """What came at a time."""

    content: bytes | ColumnarFrames
    """Whole frames, as in `Frames`; may be empty."""
    ids: list[bytes]
    """Those of the frames."""
    told: ParsedIds
    """What the ids say."""
    left: ParsedIds
    """What the ids say of the frames that are left, because the connection ends before them."""
    retry_ms: int | None
    size_bytes: int
    oversized: int
    """Frames that were skipped."""


def frames(connection: Connection, past_end: PastEnd, name: str = "") -> Iterator[Received]:
    """What comes on a connection, until it ends.

    Args:
        past_end: knows of the connection.
        name: of the reader, for the log.

    Raises:
        Ended: always, at the end.
    """
    framer = Framer()
    chunks = connection.chunks()
    while True:
        try:
            chunk = next(chunks, None)
        except Transient as error:
            if error.kind == "decode":
                log.warning("%s%s; the events in it are fetched again", name, error)
            raise Ended(error.kind) from None
        if chunk is None:
            raise Ended("closed")
        oversized = framer.oversized_total
        content, ids, retry_ms = split_columns(framer.feed(chunk))
        told, left = read_ids(ids), ParsedIds({})
        place = past_end.first_left(told)
        if place is not None:
            content, left = before_id(content, place), read_ids(ids[place:])
            ids = ids[:place]
            told = read_ids(ids)
        skipped = framer.oversized_total - oversized
        yield Received(content, ids, told, left, retry_ms, len(chunk), skipped)
        if place is not None:
            raise Ended(PAST_END)


class Ended(Exception):
    """A connection came to its end.

    Attributes:
        reason: one of `RECONNECT_REASONS`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
