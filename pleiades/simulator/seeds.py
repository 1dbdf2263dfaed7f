"""Chance that can be repeated. Law: every draw in the simulator comes from here."""

from __future__ import annotations

import random


def seeded(seed: int, *purpose: object) -> random.Random:
    """A source of numbers of its own for each purpose, the same for the same seed."""
    return random.Random("/".join(map(str, (seed, *purpose))))  # noqa: S311  # not for secrets
