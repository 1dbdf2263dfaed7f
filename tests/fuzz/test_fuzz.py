"""Foreign bytes have only documented effects.

`scripts/fuzz` does the same for longer.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import mutation
from tests.fuzz.registry import CORPUS, TARGETS, corpus_of
from tests.fuzz.target import MAX_INPUT_BYTES

MAX_KEPT_BYTES = 4096
"""Limit of one file of the corpus, which must stay readable for humans."""
MAX_KEPT = 20
"""Files per target."""
MAX_ANY_BYTES = 100
"""Limit of inputs that are unrelated to the corpus."""


def edits(corpus: list[bytes], tokens: tuple[bytes, ...]) -> st.SearchStrategy[mutation.Edit]:
    places = st.integers(0, MAX_INPUT_BYTES - 1)
    pieces = st.sampled_from(tokens) | st.binary(min_size=1, max_size=3)
    nothing = st.just(b"")
    return st.one_of(
        st.builds(mutation.Edit, st.sampled_from(("insert", "replace")), places, places, pieces),
        st.builds(mutation.Edit, st.sampled_from(("delete", "flip")), places, places, nothing),
        st.builds(
            mutation.Edit, st.sampled_from(("repeat", "nest")), places, places, nothing | pieces
        ),
        st.builds(mutation.Edit, st.just("splice"), places, places, st.sampled_from(corpus)),
    )


def inputs(name: str) -> st.SearchStrategy[bytes]:
    corpus = list(corpus_of(name).values())
    changes = st.lists(edits(corpus, TARGETS[name].tokens), max_size=mutation.MAX_EDITS)
    like_those_kept = st.builds(mutation.edited, st.sampled_from(corpus), changes)
    return like_those_kept | st.binary(max_size=MAX_ANY_BYTES)


@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name in TARGETS for file in corpus_of(name)]
)
def test_what_is_kept(name: str, file: str) -> None:
    TARGETS[name].check(corpus_of(name)[file])


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_made_of_it(name: str) -> None:
    target = TARGETS[name]

    # The usual phases and database: a failing input is shrunk and tried first the next time.
    @settings(
        max_examples=target.examples,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(inputs(name))
    def fuzz(raw: bytes) -> None:
        target.check(raw)

    fuzz()


def test_each_target_has_a_corpus_that_can_be_read() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    for name in TARGETS:
        kept = corpus_of(name)
        assert 0 < len(kept) <= MAX_KEPT, name
        assert all(len(raw) <= MAX_KEPT_BYTES for raw in kept.values()), name
