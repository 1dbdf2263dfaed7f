"""An endless sequence of events, made from a seed.

Law: pure. The same settings and seed give the same events, identities, and timestamps relative to
`started_ms`, however fast they are consumed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from math import inf
from time import gmtime, strftime

from pleiades.core.sse_id import TopicPartition
from pleiades.simulator.log import Fresh, seeded, sources_of
from pleiades.simulator.settings import Disorder, SimulatorSettings, topics_of
from pleiades.simulator.templates import canary_templates, make_templates

TEMPLATES = 1024
"""Different bodies per stream."""

_YEAR_MS = 365 * 86_400_000
_EARLIEST_MS = 1_000_000_000_000
"""2001, the year Wikipedia began: no event is dated before."""


def generated(settings: SimulatorSettings, started_ms: int) -> Iterator[Fresh]:
    """All events, in the order in which they are appended; those before `started_ms` are history."""
    rng = seeded(settings.seed, "events")
    period_ms = settings.period_ms()
    streams = [_Stream(settings, name, started_ms) for name in settings.streams]
    number = -settings.history_events
    next_canary_ms = number * period_ms if settings.canary_every_seconds else inf
    while True:
        # Slots of equal length with the event anywhere inside: no date is in the future, and the
        # history does not reach beyond the start.
        due_ms = (number + rng.random()) * period_ms
        if canary := due_ms >= next_canary_ms:
            next_canary_ms = due_ms + settings.canary_every_seconds * 1000
            due = [(stream, source) for stream in streams for source in stream.sources]
        else:
            stream = streams[0] if len(streams) == 1 else rng.choice(streams)
            due = [(stream, rng.choices(stream.sources, cum_weights=stream.cumulated)[0])]
        for stream, source in due:
            yield stream.event(rng, source, due_ms, canary)
        number += len(due)


class _Stream:
    """One stream's bodies and topic-partitions."""

    def __init__(self, settings: SimulatorSettings, name: str, started_ms: int) -> None:
        rng = seeded(settings.seed, "bodies", name)
        topics = topics_of(name)
        full_name = topics[0].partition(".")[2]
        self._templates = make_templates(rng, full_name, TEMPLATES)
        self._canaries = canary_templates(rng, full_name)
        self._disorder = settings.disorder
        self._started_ms = started_ms
        self.sources = sources_of(topics, settings.partitions)
        shares = 1 - settings.second_share, settings.second_share
        weights = [share for share in shares for _ in range(settings.partitions)]
        self.cumulated = list(accumulate(weights))
        self._revisions = {source: rng.randrange(10**8, 2 * 10**9) for source in self.sources}
        self._last_ms: dict[TopicPartition, int] = {}

    def event(
        self, rng: random.Random, source: TopicPartition, due_ms: float, canary: bool
    ) -> Fresh:
        """The next event of a topic-partition."""
        before, after = rng.choice(self._canaries if canary else self._templates)
        nominal_ms = self._started_ms + int(due_ms // 1)
        timestamp_ms = disordered(rng, self._disorder, nominal_ms, self._last_ms.get(source))
        self._last_ms[source] = timestamp_ms
        identity = _uuid(rng)
        old = self._revisions[source]
        self._revisions[source] = new = old + 1 + (old & 3)
        seconds, ms = divmod(timestamp_ms, 1000)
        gaps = {
            b"request_id": _uuid(rng).encode(),
            b"identity": identity.encode(),
            b"dt": b"%b.%03dZ" % (_second(seconds), ms),
            b"topic": source[0].encode(),
            b"partition": source[1],
            b"rcid": new + 1,
            b"seconds": seconds,
            b"old": old,
            b"new": new,
        }
        head = before % gaps
        payload = head + after % gaps
        return Fresh(due_ms, source, timestamp_ms, payload, len(head), identity, canary)


def disordered(rng: random.Random, disorder: Disorder, nominal_ms: int, last_ms: int | None) -> int:
    """A Kafka timestamp for an event that happens at `nominal_ms`, in ms since 1970.

    Args:
        last_ms: the timestamp of the event before it in the same topic-partition.
    """
    chance, factor = rng.random(), disorder.factor
    timestamp_ms = nominal_ms
    if (chance := chance - disorder.collide_rate * factor) < 0:
        # Not with an event from years ago: all later events would follow it there.
        if last_ms is not None and abs(nominal_ms - last_ms) < 1000:  # noqa: PLR2004
            timestamp_ms = last_ms
    elif (chance := chance - disorder.back_rate * factor) < 0:
        timestamp_ms -= rng.randint(1, 50)
    elif (chance := chance - disorder.back_seconds_rate * factor) < 0:
        timestamp_ms -= rng.randint(1_000, 10_000)
    elif (chance := chance - disorder.back_years_rate * factor) < 0:
        timestamp_ms -= rng.randint(_YEAR_MS // 12, 10 * _YEAR_MS)
    elif chance - disorder.ahead_rate < 0:
        timestamp_ms += rng.randint(1, max(int(disorder.ahead_seconds * 1000), 1))
    timestamp_ms = max(timestamp_ms, _EARLIEST_MS)
    return timestamp_ms - timestamp_ms % disorder.resolution_ms


def _uuid(rng: random.Random) -> str:
    """A random UUID, version 4; `uuid.UUID` takes three times as long."""
    digits = f"{rng.getrandbits(128):032x}"
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


@lru_cache(maxsize=64)
def _second(seconds: int) -> bytes:
    return strftime("%Y-%m-%dT%H:%M:%S", gmtime(seconds)).encode()
