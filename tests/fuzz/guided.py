"""One target under atheris, in a separate process.

Law: nothing of pleiades is imported before atheris can instrument it, so that the code under test, and
not only this loop, guides it.
"""

from __future__ import annotations

import importlib
import random
import sys
from typing import Any

INSTRUMENTED = ["pleiades", "sseclient", "tomllib", "email"]
OWN_MUTATIONS = 0.3
"""Share of our own mutations: libFuzzer's do not repeat a byte a thousand times."""


def main(name: str) -> None:
    """Fuzz until atheris ends the process; `sys.argv` has atheris' own options."""
    # Not among the requirements, and untyped.
    atheris: Any = importlib.import_module("atheris")

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.registry import TARGETS, corpus_of
    from tests.fuzz.mutation import mutated

    target, others = TARGETS[name], list(corpus_of(name).values())

    def mutate(raw: bytes, max_bytes: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < OWN_MUTATIONS:
            return mutated(rng, [raw], target.tokens, others)[:max_bytes]
        changed: bytes = atheris.Mutate(raw, max_bytes)
        return changed

    atheris.Setup(sys.argv, target.check, custom_mutator=mutate)
    atheris.Fuzz()
