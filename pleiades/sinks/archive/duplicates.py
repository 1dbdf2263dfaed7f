"""Events that are in an archive twice.

Laws:
- The same event has the same Kafka timestamp in every segment that has it. So two segments share one
  only if their intervals [first, last] overlap, and taken by their first timestamp, what ends before
  the next one begins can be forgotten.
- At most `MAX_HELD` fingerprints are held, if the manifest tells the truth: a pass looks at some of
  them, chosen by their first bytes, and there are as many passes as that takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pleiades.core.fingerprint import fingerprints

MAX_HELD = 2_000_000
"""About 200 MB."""


class Span(NamedTuple):
    """A segment, as far as repeats are concerned."""

    name: str
    first_ms: int
    last_ms: int
    events: int


def passes_for(spans: Iterable[Span], most: int = MAX_HELD) -> int:
    """The number of passes that are needed; the spans are in the order of `first_ms`."""
    held: list[Span] = []
    peak = 0
    for span in spans:
        held = [other for other in held if other.last_ms >= span.first_ms]
        held.append(span)
        peak = max(peak, sum(other.events for other in held))
    return max(-(-peak // most), 1)


class Repeats(NamedTuple):
    """Events of one segment that another one, or itself, has before them. Each counts once."""

    name: str
    """The first segment that has them."""
    identities: list[str]


class Sweep:
    """One pass over the segments, in the order of `first_ms`.

    Args:
        number: of this pass, from 0.
        passes: of `passes_for`.
    """

    def __init__(self, number: int = 0, passes: int = 1) -> None:
        self._number = number
        self._passes = passes
        self._held: list[tuple[Span, set[bytes]]] = []

    def begin(self, span: Span) -> None:
        """The next segment."""
        self._held = [(other, seen) for other, seen in self._held if other.last_ms >= span.first_ms]
        self._held.append((span, set()))

    def add(self, identities: Sequence[str]) -> list[Repeats]:
        """The next events of the segment; returns those that are repeats."""
        found = fingerprints(identities)
        if self._passes > 1:
            chosen = [
                (identity, print_)
                for identity, print_ in zip(identities, found, strict=True)
                if int.from_bytes(print_[:4], "big") % self._passes == self._number
            ]
            identities = [identity for identity, _ in chosen]
            found = [print_ for _, print_ in chosen]
        repeats = []
        for span, seen in self._held[:-1]:
            if not seen.isdisjoint(found):
                again, identities, found = _parted(identities, found, seen)
                repeats.append(Repeats(span.name, again))
        span, own = self._held[-1]
        before = len(own)
        if own.isdisjoint(found):
            own.update(found)
            if len(own) == before + len(found):
                return repeats
            own.difference_update(found)
        again = []
        for identity, print_ in zip(identities, found, strict=True):
            if print_ in own:
                again.append(identity)
            own.add(print_)
        repeats.append(Repeats(span.name, again))
        return repeats


def _parted(
    identities: Sequence[str], found: Sequence[bytes], seen: set[bytes]
) -> tuple[list[str], list[str], list[bytes]]:
    """The repeats, and the others with their fingerprints."""
    again, others, prints = [], [], []
    for identity, print_ in zip(identities, found, strict=True):
        if print_ in seen:
            again.append(identity)
        else:
            others.append(identity)
            prints.append(print_)
    return again, others, prints
