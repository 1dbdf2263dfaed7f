"""An endless sequence of events, made from a seed.

Law: pure. The same settings and seed give the same events, identities, and timestamps relative to
`started_ms`, however fast they are consumed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
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


class _Topic:
    """The state that the next event of one topic-partition depends on."""

    def __init__(self, source: TopicPartition, first_number: int) -> None:
        self.source = source
        self.name = source[0].encode()
        self.last_ms: int | None = None
        self.revision = first_number


def generated(settings: SimulatorSettings, started_ms: int) -> Iterator[Fresh]:
    """All events, in the order in which they are appended.

    Args:
        settings: `seed`, `streams`, `partitions`, `disorder`, and those that determine the pace.
        started_ms: the simulator's start, ms since 1970; the history is dated before it.
    """
    rng = seeded(settings.seed, "events")
    period_ms = settings.period_ms()
    every_ms = settings.canary_every_seconds * 1000.0
    streams = [_Stream(settings, name) for name in settings.streams]
    due_ms = -settings.history_events * period_ms
    next_canary_ms = due_ms if every_ms else float("inf")
    number = -settings.history_events
    while True:
        # Slots of equal length with the event anywhere inside: no date is in the future, and the
        # history does not reach beyond the start.
        due_ms = (number + rng.random()) * period_ms
        if due_ms >= next_canary_ms:
            next_canary_ms = due_ms + every_ms
            for stream in streams:
                for topic in stream.topics:
                    yield stream.event(rng, topic, due_ms, started_ms, canary=True)
                    number += 1
            continue
        stream = streams[0] if len(streams) == 1 else rng.choice(streams)
        yield stream.event(rng, stream.topic(rng), due_ms, started_ms, canary=False)
        number += 1


class _Stream:
    """One stream's topics and bodies."""

    def __init__(self, settings: SimulatorSettings, name: str) -> None:
        rng = seeded(settings.seed, "bodies", name)
        first, second = topics_of(name)
        full_name = first.partition(".")[2]
        self._templates = make_templates(rng, full_name, TEMPLATES)
        self._canaries = canary_templates(full_name)
        self._disorder = settings.disorder
        self._second_share = settings.second_share
        self._partitions = settings.partitions
        self.topics = [
            _Topic(source, rng.randrange(10**8, 2 * 10**9))
            for source in sources_of((first, second), settings.partitions)
        ]

    def topic(self, rng: random.Random) -> _Topic:
        """The topic-partition of the next event."""
        second = self._partitions if rng.random() < self._second_share else 0
        return self.topics[
            second + (rng.randrange(self._partitions) if self._partitions > 1 else 0)
        ]

    def event(
        self, rng: random.Random, topic: _Topic, due_ms: float, started_ms: int, *, canary: bool
    ) -> Fresh:
        """The next event of a topic-partition."""
        before, after = rng.choice(self._canaries if canary else self._templates)
        timestamp_ms = disordered(rng, self._disorder, started_ms + int(due_ms // 1), topic.last_ms)
        topic.last_ms = timestamp_ms
        identity = _uuid(rng)
        old = topic.revision
        topic.revision = new = old + 1 + (old & 3)
        seconds, ms = divmod(timestamp_ms, 1000)
        gaps = {
            b"request_id": _uuid(rng).encode(),
            b"identity": identity.encode(),
            b"dt": b"%b.%03dZ" % (_second(seconds), ms),
            b"topic": topic.name,
            b"partition": topic.source[1],
            b"rcid": new + 1,
            b"seconds": seconds,
            b"old": old,
            b"new": new,
        }
        head = before % gaps
        payload = head + after % gaps
        return Fresh(due_ms, topic.source, timestamp_ms, payload, len(head), identity, canary)


def disordered(rng: random.Random, disorder: Disorder, nominal_ms: int, last_ms: int | None) -> int:
    """A Kafka timestamp for an event that happens at `nominal_ms`, in ms since 1970.

    Args:
        rng: one number is drawn, and more where the event is out of order.
        disorder: how often it is.
        nominal_ms: when the event is appended, ms since 1970.
        last_ms: the timestamp of the event before it in the same topic-partition.
    """
    chance = rng.random()
    timestamp_ms = nominal_ms
    if (chance := chance - disorder.collide_rate) < 0:
        # Not with an event from years ago: all later events would follow it there.
        if last_ms is not None and abs(nominal_ms - last_ms) < 1000:  # noqa: PLR2004
            timestamp_ms = last_ms
    elif (chance := chance - disorder.back_rate) < 0:
        timestamp_ms -= rng.randint(1, 50)
    elif (chance := chance - disorder.back_seconds_rate) < 0:
        timestamp_ms -= rng.randint(1_000, 10_000)
    elif (chance := chance - disorder.back_years_rate) < 0:
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
