"""The definition of a fuzz target.

Law: a target accepts any bytes and returns. It handles documented errors; any other exception is a
finding. It depends on its input alone, so that a finding can be repeated.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

MAX_INPUT_BYTES = 4096
"""Depths and lengths that break something must be reachable within this size."""

MAX_DIGITS = 640
"""Python refuses to read longer numbers, by default from 4,300 digits on. This is the lowest limit that
it allows: an input of 700 bytes then finds what one of 5,000 would."""


class Target(NamedTuple):
    """A reader of foreign bytes, and the checks of its results."""

    read: Callable[[bytes], None]
    tokens: tuple[bytes, ...]
    """Words of the format, which mutations insert to get past the first check."""
    examples: int
    """The number of inputs in the test suite; this, not a clock, bounds its time."""

    def check(self, raw: bytes) -> None:
        """Give the target one input; raises only on a finding."""
        with _early_limit_of_digits():
            self.read(raw)


@contextmanager
def _early_limit_of_digits() -> Iterator[None]:
    usual = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(MAX_DIGITS)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(usual)


SEPARATOR = b"\n%%\n"
"""Separates the parts of an input that has several."""


def parts(raw: bytes, number: int) -> list[bytes]:
    """Split an input into `number` parts; missing parts are empty."""
    found = raw.split(SEPARATOR, number - 1)
    return found + [b""] * (number - len(found))


def cut(stream: bytes, rng: random.Random) -> list[bytes]:
    """A stream in pieces, as a network might cut it; some may be empty."""
    number = rng.choice((1, 3, 10, 100))
    places = sorted(rng.randint(0, len(stream)) for _ in range(number))
    return [stream[start:end] for start, end in pairwise([0, *places, len(stream)])]


def lossless(raw: bytes) -> str:
    """Decode bytes as Python does for arguments, environment, file names and headers."""
    return raw.decode(errors="surrogateescape")
