"""What a fuzz target is.

Law: a target takes any bytes and returns. Errors that the code documents are part of that; whatever
else comes out of it is a finding. It depends on its input alone, so that a finding can be repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

MAX_INPUT_BYTES = 4096
"""Of one input. Depth and length that break something must be reachable within it."""

MAX_DIGITS = 640
"""Python refuses to read longer numbers, by default from 4,300 digits on. Here it does so as early as it
can be told to: then an input of 700 bytes finds what one of 5,000 would."""


class Target(NamedTuple):
    """One reader of foreign bytes, and what must hold of all it makes of them."""

    read: Callable[[bytes], None]
    tokens: tuple[bytes, ...]
    """Words of the format: what a mutation puts in, so that it gets past the first check."""
    examples: int
    """How many inputs the test suite tries. By this, not by a clock, its time is bounded."""

    def check(self, raw: bytes) -> None:
        """Give the target one input; raises on a finding only."""
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
"""Stands between the parts of an input that is more than one thing."""


def parts(raw: bytes, number: int) -> list[bytes]:
    """As many parts of an input as are asked for; what is not there is empty."""
    found = raw.split(SEPARATOR, number - 1)
    return found + [b""] * (number - len(found))


def lossless(raw: bytes) -> str:
    """Bytes as Python gives arguments, environment, file names and headers to a program."""
    return raw.decode(errors="surrogateescape")
