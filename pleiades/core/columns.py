"""Usual events, stored as columns.

Law: as a sequence, `Columns` is equal to the list of the events that the general way makes.

Functions that handle many events take the columns they need. `Event` objects cost as much as everything
else that the publisher does for an event.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import repeat
from operator import attrgetter
from pickle import PickleBuffer
from typing import Any, overload

from pleiades.core.event import Event
from pleiades.core.sse_id import TopicPartition
from pleiades.core.usual import AFTER_DATA, BEFORE_DATA, BEFORE_ID


@dataclass(frozen=True, slots=True, eq=False)
class Columns(Sequence[Event]):
    """Published events, at least one; their bytes stay in the blob that they arrived in."""

    blob: bytes
    """Whole frames of the usual shape; see `core.usual`."""
    identities: list[str]
    """None of them is a fallback identity."""
    known: list[TopicPartition]
    numbers: bytes
    """The source of each event, as its place in `known`."""
    timestamps_ms: array[int]
    times: str
    """`Event.dt` of each, joined by newlines."""
    id_bytes: int
    """The length of each id."""
    data_bytes: array[int]
    """The length of the data of each."""

    @property
    def sources(self) -> list[TopicPartition]:
        """The source of each event."""
        return [self.known[number] for number in self.numbers]

    def keys_and_data(self) -> tuple[list[bytes], list[bytes]]:
        """The key and the data of each event."""
        keys, data = [], []
        blob, id_bytes, before_data = self.blob, self.id_bytes, len(BEFORE_DATA)
        between = len(AFTER_DATA + BEFORE_ID)
        place = len(BEFORE_ID)
        for size in self.data_bytes:
            end = place + id_bytes
            keys.append(blob[place:end])
            place = end + before_data
            end = place + size
            data.append(blob[place:end])
            place = end + between
        return keys, data

    def __len__(self) -> int:
        return len(self.identities)

    def __iter__(self) -> Iterator[Event]:
        # As `Event._make`, without a Python call for each: half the time.
        make: Any = tuple.__new__
        keys, data = self.keys_and_data()
        columns = (
            self.identities,
            self.sources,
            self.timestamps_ms,
            self.times.split("\n"),
            keys,
            data,
            repeat("", len(self)),
        )
        return map(make, repeat(Event), zip(*columns, strict=True))

    @overload
    def __getitem__(self, index: int) -> Event: ...

    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...

    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __reduce__(self) -> tuple[Any, ...]:
        # A list of 200 names costs ten times as much to pickle and to read back as one text.
        names = "\n".join(self.identities)
        others = [getattr(self, field.name) for field in fields(self)[2:]]
        return _columns, (PickleBuffer(self.blob), names, *others)


def _columns(blob: bytes, names: str, *others: Any) -> Columns:
    return Columns(blob, names.split("\n"), *others)


_reason_of = attrgetter("reason")


def all_published(events: Iterable[Event]) -> bool:
    """True if no event has a reason not to be published."""
    return isinstance(events, Columns) or not any(map(_reason_of, events))


def count_published(events: Iterable[Event]) -> int:
    """The number of events without a reason not to be published."""
    return len(events) if isinstance(events, Columns) else sum(not event.reason for event in events)


def identities_of(events: Sequence[Event]) -> list[str]:
    """The identity of each event."""
    return (
        events.identities if isinstance(events, Columns) else [event.identity for event in events]
    )


def times_of(events: Sequence[Event]) -> list[str]:
    """`Event.dt` of each event."""
    return (
        events.times.split("\n") if isinstance(events, Columns) else [event.dt for event in events]
    )


def timestamps_of(events: Sequence[Event]) -> Sequence[int]:
    """The timestamp of each event."""
    if isinstance(events, Columns):
        return events.timestamps_ms
    return [event.timestamp_ms for event in events]


def data_bytes_of(events: Sequence[Event]) -> int:
    """The length of all data."""
    if isinstance(events, Columns):
        return sum(events.data_bytes)
    return sum([len(event.data) for event in events])


def letters_in(events: Sequence[Event]) -> list[Event]:
    """The dead letters among events."""
    return [] if isinstance(events, Columns) else [event for event in events if event.reason]


def sources_of(events: Sequence[Event]) -> tuple[set[TopicPartition], set[TopicPartition]]:
    """The sources of the published events, and those of the dead letters."""
    if isinstance(events, Columns):
        return set(events.sources), set()
    published = {event.source for event in events if not event.reason}
    return published, {event.source for event in letters_in(events)}
