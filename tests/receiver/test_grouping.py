"""What is made of arguments, to compare them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq.receiver.placing import freeze

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=3)
    # A function can tell 0.0 from -0.0, but nobody means to.
    | st.floats(allow_nan=False).filter(bool),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


_SIMILAR: st.SearchStrategy[Any] = st.sampled_from(
    [0, 1, True, False, 1.0, None, "", "1", [], {}, [1], [True]]
)


@given(one=_JSON | _SIMILAR, other=_JSON | _SIMILAR)
def test_arguments_share_a_key_exactly_when_they_are_the_same_json(
    one: Any,
    other: Any,
) -> None:
    are_same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (freeze(one) == freeze(other)) == are_same
    again = json.loads(json.dumps(one))
    assert freeze(one) == freeze(again)
    assert hash(freeze(one)) == hash(freeze(again))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": True}),
        ({1}, {True}),
        ({1}, {1.0}),
        (frozenset({1}), frozenset({True})),
        ({1}, frozenset({1})),
        ([1], (1,)),
    ],
    ids=str,
)
def test_arguments_that_a_function_can_tell_apart_share_no_key(
    one: Any,
    other: Any,
) -> None:
    assert freeze(one) != freeze(other)
    assert freeze(one) == freeze(copy.copy(one))
