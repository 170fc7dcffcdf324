"""Quantiser keeps Q1 to Q4: unbiased, close, saturating and repeatable."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.errors import NonFiniteUpdate
from shared.privacy.quantiser import WIDTHS, Quantiser
from shared.types import FloatVector

widths = st.sampled_from(WIDTHS)
ranges = st.floats(1e-6, 1e6)
shares = arrays(np.float64, 20, elements=st.floats(-1, 1))
uniforms = arrays(np.float64, 20, elements=st.floats(0, 1, exclude_max=True))


@given(widths, ranges, shares, uniforms)
def test_a_value_in_range_moves_less_than_a_step(
    bits: int, value_range: float, share: FloatVector, uniform: FloatVector
) -> None:
    quantiser = Quantiser(bits=bits, value_range=value_range)
    values = np.clip(share * value_range, -value_range, value_range)
    quantised = quantiser.quantise(values, uniform)
    back = quantiser.dequantise(quantised.values)
    assert np.all(np.abs(back - values) <= quantiser.step * (1 + 1e-9))
    assert quantised.saturated == 0
    assert np.all(np.abs(quantised.values) <= quantiser.magnitude)


@given(widths, ranges, arrays(np.float64, 20, elements=st.floats(-1e300, 1e300)), uniforms)
def test_nothing_leaves_the_range_and_all_that_would_is_counted(
    bits: int, value_range: float, values: FloatVector, uniform: FloatVector
) -> None:
    quantiser = Quantiser(bits=bits, value_range=value_range)
    quantised = quantiser.quantise(values, uniform)
    outside = [value for value in values.tolist() if abs(value) > value_range]
    assert quantised.saturated == len(outside)
    assert np.all(np.abs(quantised.values) <= quantiser.magnitude)
    for value, integer in zip(values.tolist(), quantised.values.tolist(), strict=True):
        if abs(value) >= value_range:
            assert integer == math.copysign(quantiser.magnitude, value)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_mean_over_roundings_is_the_value(bits: int) -> None:
    # One rounding has a standard deviation of at most half a step, the mean of 40,000
    # of at most 1/400. Five of those: right code fails for 1 seed in 1.7 million per value,
    # rounding to the nearest (up to half a step off) and truncation fail for all.
    quantiser = Quantiser(bits=bits, value_range=1.0)
    rng = np.random.default_rng(7)
    for value in (-1.0, -0.4321, -0.3 * quantiser.step, 0.0, 0.25 * quantiser.step, 0.7, 1.0):
        values = np.full(40_000, value)
        integers = quantiser.quantise(values, rng.random(len(values))).values
        mean = quantiser.dequantise(integers).mean()
        assert mean == pytest.approx(value, abs=5 * quantiser.step / 400)


def test_the_same_uniforms_repeat_the_release() -> None:
    rng = np.random.default_rng(3)
    quantiser = Quantiser(value_range=2.0)
    values, uniform = rng.normal(size=1000), rng.random(1000)
    first, second = (quantiser.quantise(values, uniform).values for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, quantiser.quantise(values, rng.random(1000)).values)


def test_an_exact_sum_stands_for_the_sum_of_the_rounded_values() -> None:
    quantiser = Quantiser(bits=16, value_range=0.5)
    rng = np.random.default_rng(4)
    parts = [quantiser.quantise(rng.normal(0, 0.1, 50), rng.random(50)).values for _ in range(9)]
    slow = [math.fsum(int(part[i]) * quantiser.step for part in parts) for i in range(50)]
    np.testing.assert_allclose(quantiser.dequantise(np.sum(parts, axis=0)), slow, atol=1e-12)


def test_both_ends_are_reached_and_are_symmetric() -> None:
    quantiser = Quantiser(bits=8, value_range=3.0)
    ends = quantiser.quantise(np.array([-3.0, 3.0]), np.zeros(2))
    assert ends.values.tolist() == [-127, 127]
    assert quantiser.dequantise(ends.values).tolist() == [-3.0, 3.0]
    almost_one = np.nextafter(1.0, 0.0)
    assert quantiser.quantise(np.array([3.0]), np.array([almost_one])).values.tolist() == [127]


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_hair_inside_the_ends_rounding_errors_do_not_reach_past_them(bits: int) -> None:
    # Over 500 ranges some of the divisions round to the end, or beyond it.
    almost_one = np.nextafter(1.0, 0.0)
    for value_range in np.random.default_rng(5).random(500):
        quantiser = Quantiser(bits=bits, value_range=float(value_range))
        hair = float(np.nextafter(value_range, 0.0))
        quantised = quantiser.quantise(np.array([hair, -hair]), np.array([almost_one, 0.0]))
        assert quantised.values.tolist() == [quantiser.magnitude, -quantiser.magnitude]
        assert quantised.saturated == 0


def test_no_values_are_fine() -> None:
    assert Quantiser(value_range=1.0).quantise(np.zeros(0), np.zeros(0)).saturated == 0


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_no_integer_stands_for_is_refused(poison: float) -> None:
    with pytest.raises(NonFiniteUpdate):
        Quantiser(value_range=1.0).quantise(np.array([0.0, poison]), np.zeros(2))


@pytest.mark.parametrize("uniform", [[0.5], [0.5, 1.0], [-0.1, 0.0], [0.0, np.nan]])
def test_uniforms_that_are_not_are_refused(uniform: list[float]) -> None:
    with pytest.raises(ValueError, match="uniform"):
        Quantiser(value_range=1.0).quantise(np.zeros(2), np.array(uniform))


@pytest.mark.parametrize(
    ("bits", "value_range"), [(13, 1.0), (0, 1.0), (12, 0.0), (12, -1.0), (12, math.nan)]
)
def test_a_meaningless_quantiser_is_refused(bits: int, value_range: float) -> None:
    with pytest.raises(ValueError, match=r"bits|value_range"):
        Quantiser(bits=bits, value_range=value_range)
