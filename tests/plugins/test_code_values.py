"""What came out of the sandbox against what was expected: laws, with Python's own == as the oracle."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from align.core.sandbox.checks import Called
from align.core.sandbox.matching import key, passes, prints, same
from align.core.sandbox.sandbox_runtime.values import encode

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3) | st.binary(max_size=3)
)
HASHABLE = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.sets(HASHABLE, max_size=3)
        | st.dictionaries(HASHABLE, inner, max_size=3)
    ),
    max_leaves=6,
)


@given(VALUES)
def test_every_value_is_itself(value: Any) -> None:
    assert same(json.loads(encode(value)), value, False, 0.0)
    assert same(json.loads(encode(value)), value, True, 0.0)


@settings(max_examples=300)
@given(VALUES, VALUES)
def test_an_assert_means_what_python_means(left: Any, right: Any) -> None:
    assert same(json.loads(encode(left)), right, False, 0.0) == (left == right)


@given(HASHABLE, HASHABLE)
def test_keys_are_equal_where_values_are(left: Any, right: Any) -> None:
    assert (key(json.loads(encode(left))) == key(json.loads(encode(right)))) == (left == right)


TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=4)
    | st.sampled_from(["int", "list", "dict", "0x", "set"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
)


@given(st.lists(TREES, min_size=1), VALUES, st.sampled_from(["json", "python", "is", "truth", "near"]))
def test_no_tree_breaks_the_comparison(tree: Any, expected: Any, rule: Any) -> None:
    tree = [str(tree[0]), *tree[1:]]
    assert passes(Called(("f", b"", ()), expected if rule != "near" else 1.0, rule), tree, 1e-6) in (True, False)


def test_prints() -> None:
    assert prints(b"a \nb\n\n", "a\nb", 0.0)
    assert not prints(b"a b", "a\nb", 0.0)
    assert not prints(b"12", "13", 1.0), "whole numbers are exact"
    assert prints(b"1e-3 x", "0.0010000001 x", 1e-6)
    assert not prints(b"nan", "0.5", 1e-6)
    assert not prints(b"\xff", "y", 1e-6)
