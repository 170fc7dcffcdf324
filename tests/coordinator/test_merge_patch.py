"""``make_patch`` against ``apply_patch``, and both against the standard."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.merge_patch import apply_patch, make_patch, without_nulls

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, 1.0, 0.5])
    | st.text("ab", max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text("abc", max_size=2), VALUES, max_size=5).map(without_nulls)


@given(OBJECTS, OBJECTS)
def test_who_applies_a_patch_has_what_it_was_made_for(before: Any, after: Any) -> None:
    patched = apply_patch(before, make_patch(before, after))
    assert json.dumps(patched, sort_keys=True) == json.dumps(after, sort_keys=True) or (
        patched == after
    )
    assert _kinds(patched) == _kinds(after), "true is not 1"


def _kinds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _kinds(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_kinds(each) for each in value]
    return bool if isinstance(value, bool) else None


@given(OBJECTS)
def test_what_has_not_changed_needs_no_patch(state: Any) -> None:
    assert make_patch(state, json.loads(json.dumps(state))) == {}


@given(VALUES)
def test_no_key_is_left_whose_value_is_null(value: Any) -> None:
    def keys_are_known(each: Any) -> bool:
        if isinstance(each, dict):
            return all(inner is not None and keys_are_known(inner) for inner in each.values())
        return not isinstance(each, list) or all(map(keys_are_known, each))

    assert keys_are_known(without_nulls(value))


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_patches_mean_what_the_standard_says(target: Any, patch: Any, result: Any) -> None:
    """RFC 7396, appendix A."""
    assert apply_patch(target, patch) == result
