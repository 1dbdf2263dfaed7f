"""Turns meaningful inputs into almost meaningful ones.

Law: an edit is a value and applying it is pure, so that hypothesis can draw and shrink edits, and a
plain random generator can make a hundred thousand of them per second.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from tests.fuzz.target import MAX_INPUT_BYTES

MAX_EDITS = 6
EDITS = (1, 1, 2, 3, MAX_EDITS)
"""The number of edits; a single one breaks nothing else, and so gets furthest."""
MAX_PIECE_BYTES = 64
MAX_REPEATS = 1200
"""More than the depth limits of JSON readers (1,024) and of Python's stack (1,000)."""

KINDS = ("insert", "replace", "delete", "flip", "repeat", "nest", "splice")
WEIGHTS = (6, 6, 4, 4, 3, 1, 2)


class Edit(NamedTuple):
    """One change of an input."""

    kind: str
    """One of `KINDS`."""
    at: int
    """The place, modulo the length of the input."""
    size: int
    """The number of bytes from there on; for `repeat` the count, for `nest` the depth, for `flip` the
    bit."""
    piece: bytes
    """The inserted bytes; for `splice` another input, whose rest replaces this one's; for `repeat`
    empty to repeat the existing byte."""


def edited(base: bytes, edits: Sequence[Edit]) -> bytes:
    """Apply edits to an input; the result is never longer than `MAX_INPUT_BYTES`."""
    changed = base
    for edit in edits:
        changed = _once(changed, edit)[:MAX_INPUT_BYTES]
    return changed


def _once(base: bytes, edit: Edit) -> bytes:
    at = edit.at % (len(base) + 1)
    before, after = base[:at], base[at:]
    put, dropped = edit.piece, 0
    match edit.kind:
        case "replace":
            dropped = edit.size % MAX_PIECE_BYTES
        case "delete":
            put, dropped = b"", edit.size % MAX_PIECE_BYTES
        case "flip":
            put, dropped = bytes(byte ^ (1 << edit.size % 8) for byte in after[:1]), 1
        case "repeat":
            put = (edit.piece or after[:1]) * (edit.size % MAX_REPEATS)
        case "nest":
            depth = edit.size % MAX_REPEATS
            put = b"[" * depth + b"]" * depth + edit.piece
        case "splice":
            put, dropped = edit.piece[edit.size % (len(edit.piece) + 1) :], len(after)
    return before + put + after[dropped:]


def mutated(
    rng: random.Random,
    corpus: Sequence[bytes],
    tokens: Sequence[bytes],
    others: Sequence[bytes] = (),
) -> bytes:
    """Mutate an input of the corpus, perhaps spliced with others."""
    edits = [_any_edit(rng, others or corpus, tokens) for _ in range(rng.choice(EDITS))]
    return edited(rng.choice(corpus), edits)


def _any_edit(rng: random.Random, corpus: Sequence[bytes], tokens: Sequence[bytes]) -> Edit:
    (kind,) = rng.choices(KINDS, WEIGHTS)
    piece = b""
    if kind == "splice":
        piece = rng.choice(corpus)
    elif rng.random() < 0.6:
        piece = rng.choice(tokens)
    elif kind != "repeat":
        piece = rng.randbytes(rng.randint(1, 3))
    return Edit(kind, rng.randrange(MAX_INPUT_BYTES), rng.randrange(MAX_INPUT_BYTES), piece)
