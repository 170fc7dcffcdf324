"""Changes of JSON objects as merge patches (RFC 7396).

In a merge patch ``null`` takes a key away, so no object here has a key whose value is null: what
is not known is left out. Lists are values like any other, and are sent whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def without_nulls(value: Any) -> Any:
    """``value`` with every key left out whose value is ``None``, at any depth.

    >>> without_nulls({"a": None, "b": {"c": None, "d": [None, 1]}})
    {'b': {'d': [None, 1]}}
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(each) for each in value]
    return value


def make_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The patch that makes ``after`` of ``before``; empty where they are equal.

    Neither has a key whose value is ``None``.

    >>> make_patch({"a": 1, "b": {"c": 1, "d": 2}}, {"b": {"c": 1, "d": 3}})
    {'a': None, 'b': {'d': 3}}
    """
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if key in before and isinstance(old, Mapping) and isinstance(value, Mapping):
            if inner := make_patch(old, value):
                patch[key] = inner
        elif key not in before or _differs(old, value):
            patch[key] = value
    return patch


def _differs(old: Any, new: Any) -> bool:
    # In Python True equals 1, and 1 equals 1.0; in JSON the first two are different values.
    return isinstance(old, bool) is not isinstance(new, bool) or bool(old != new)


def apply_patch(target: Any, patch: Any) -> Any:
    """What ``target`` becomes (RFC 7396, section 2). Changes neither."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = apply_patch(merged.get(key), value)
    return merged
