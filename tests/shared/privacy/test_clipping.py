"""clip_by_norm: what holds for every update, not only for the ones we thought of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.errors import NonFiniteUpdate
from shared.privacy.clipping import clip_by_norm
from shared.types import FloatVector

updates = arrays(np.float64, st.integers(0, 12), elements=st.floats(-1e6, 1e6))
bounds = st.floats(1e-3, 1e3)


def norm(update: FloatVector) -> float:
    """The definition, written the slow way."""
    return math.hypot(*update.tolist())


@given(updates, bounds)
def test_norm_never_exceeds_the_bound(update: FloatVector, bound: float) -> None:
    assert norm(clip_by_norm(update, bound).update) <= bound * (1 + 1e-9)


@given(updates, bounds)
def test_a_long_update_ends_on_the_bound_in_its_own_direction(
    update: FloatVector, bound: float
) -> None:
    clipped = clip_by_norm(update, bound)
    np.testing.assert_allclose(clipped.update, update * clipped.scale)
    assert 0 < clipped.scale <= 1
    if norm(update) > bound:
        assert clipped.was_clipped
        assert norm(clipped.update) == pytest.approx(bound)


@given(updates, bounds)
def test_short_updates_pass_untouched(update: FloatVector, slack: float) -> None:
    clipped = clip_by_norm(update, norm(update) + slack)
    assert not clipped.was_clipped
    assert np.array_equal(clipped.update, update)


def test_the_bound_itself_is_allowed() -> None:
    assert not clip_by_norm(np.array([3.0, 4.0]), 5.0).was_clipped


@given(updates)
def test_the_norm_before_is_reported(update: FloatVector) -> None:
    assert clip_by_norm(update, 1.0).norm_before == pytest.approx(norm(update))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e200])
def test_an_update_without_a_norm_is_refused_not_passed_through(poison: float) -> None:
    with pytest.raises(NonFiniteUpdate):
        clip_by_norm(np.array([0.1, poison]), 1.0)


@pytest.mark.parametrize("bound", [0.0, -1.0, np.nan, np.inf])
def test_a_meaningless_bound_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="max_norm"):
        clip_by_norm(np.ones(2), bound)


def test_the_input_is_left_alone() -> None:
    original = np.full(4, 9.0)
    clip_by_norm(original, 1.0)
    assert original.tolist() == [9.0] * 4
