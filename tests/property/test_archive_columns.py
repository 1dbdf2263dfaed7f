"""Any text has columns, and they fit the schema."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from pleiades.sinks.archive.columns import Columns, columns_of

NAMES = (
    "meta wiki type namespace title user bot timestamp page performer database page_title "
    "rev_timestamp dt id offset user_text is_bot x"
)
names = st.sampled_from(NAMES.split())
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=5)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=6),
    max_leaves=12,
)
INTEGERS = ("dt_ms", "namespace", "timestamp_ms")
BOOLEANS = ("bot",)


def check(found: Columns) -> None:
    for name, value in found._asdict().items():
        kind = int if name in INTEGERS else bool if name in BOOLEANS else str
        assert name == "meta" or value is None or type(value) is kind
    for number in (*map(found._asdict().get, INTEGERS), found.meta.partition, found.meta.offset):
        assert number is None or -(2**63) <= number < 2**63


@given(st.dictionaries(names, values, max_size=8))
def test_any_object(event: dict[str, object]) -> None:
    check(columns_of(orjson.dumps(event)))


@given(st.binary(max_size=60))
def test_any_bytes(text: bytes) -> None:
    check(columns_of(text))
