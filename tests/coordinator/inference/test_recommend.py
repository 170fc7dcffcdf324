"""The ranking of items: hand-computed, deterministic, and diverse where that is wanted."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.inference.recommend import profile, rank, recency_weights
from shared.types import FloatMatrix


def unit(*rows: tuple[float, ...]) -> FloatMatrix:
    matrix = np.array(rows, np.float32)
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float32)


def test_weights_halve_with_every_half_life() -> None:
    assert recency_weights(4, 2.0) == pytest.approx([2**-1.5, 0.5, 2**-0.5, 1.0])
    assert recency_weights(3, None).tolist() == [1.0, 1.0, 1.0]


def test_a_profile_is_the_weighted_mean_of_length_one() -> None:
    wanted = profile(unit((1, 0), (0, 1)), [3.0, 4.0])
    assert wanted == pytest.approx([0.6, 0.8])


def test_a_history_that_cancels_out_prefers_nothing() -> None:
    wanted = profile(unit((1, 0), (-1, 0)), [1.0, 1.0])
    assert rank(wanted, unit((1, 0), (0, 1), (-1, 0)), top=3) == [(0, 0.0), (1, 0.0), (2, 0.0)]


def test_of_equal_items_the_earlier_goes_first() -> None:
    items = unit((1, 1), (1, 0), (1, 1))
    for diversity in (0.0, 1e-9):
        order = [at for at, _ in rank(unit((1, 1))[0], items, top=2, diversity=diversity)]
        assert order == [0, 2]


def test_diversity_passes_over_what_is_like_those_before() -> None:
    wanted = unit((1, 0, 0))[0]
    items = unit((1, 0.1, 0), (1, 0.12, 0), (1, 0, 2))
    assert [at for at, _ in rank(wanted, items, top=2)] == [0, 1]
    assert [at for at, _ in rank(wanted, items, top=2, diversity=0.5)] == [0, 2]


def test_no_more_items_come_out_than_went_in() -> None:
    items = unit((1, 0), (0, 1))
    for diversity in (0.0, 0.5):
        assert len(rank(items[0], items, top=9, diversity=diversity)) == 2
        assert rank(items[0], items[:0], top=9, diversity=diversity) == []
