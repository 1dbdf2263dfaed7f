"""What goes wrong with which request.

Law: pure. The decisions depend on the seed and the request's number alone, so the same seed gives the
same faults however the requests are spread in time.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from pleiades.simulator.seeds import seeded
from pleiades.simulator.settings import DATA_CENTRES, Cut, Faults


class Plan(NamedTuple):
    """What will happen to one request."""

    refuse_status: int | None
    """500 or 503; None: serve it."""
    hang: bool
    """Answer nothing at all."""
    silent: bool
    """Nothing after `:ok`."""
    data_centre: str
    """Whose cluster serves it."""
    cut: Cut
    cut_seconds: float
    """When to cut, from the start of the answer on; infinite: never."""
    cut_bytes: float
    """After how many bytes of the body to cut; infinite: never."""
    rng: random.Random
    """For what is decided on the way."""


def plan(faults: Faults, seed: int, number: int) -> Plan:
    """The plan for the request with this number, counted from 1 and without those answered 4xx."""
    rng = seeded(seed, "request", number)
    refuse, hang, silent, elsewhere = (rng.random() for _ in range(4))
    jitter_seconds, jitter_bytes = (rng.uniform(-1, 1) * faults.cut_jitter for _ in range(2))
    return Plan(
        refuse_status=(500 if refuse < 0.5 else 503) if _in_burst(faults, seed, number) else None,  # noqa: PLR2004  # a coin
        hang=hang < faults.hang_rate,
        silent=silent < faults.silence_rate,
        data_centre=DATA_CENTRES[elsewhere < faults.other_cluster_rate],
        cut=rng.choice(faults.cuts),
        cut_seconds=faults.cut_every_seconds * (1 + jitter_seconds) or float("inf"),
        cut_bytes=int(faults.cut_bytes * (1 + jitter_bytes)) or float("inf"),
        rng=rng,
    )


def _in_burst(faults: Faults, seed: int, number: int) -> bool:
    first = max(number - faults.error_burst + 1, 1)
    return faults.error_rate > 0 and any(
        seeded(seed, "burst", start).random() < faults.error_rate
        for start in range(first, number + 1)
    )
