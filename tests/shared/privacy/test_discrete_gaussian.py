"""Whole-number noise has the discrete Gaussian's probabilities, and repeats with its stream."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.privacy.discrete_gaussian import MAX_VARIANCE, _Draws, discrete_gaussians
from shared.privacy.release import ReleaseStream
from shared.types import FloatVector, IntVector

SEED = bytes(range(32))


def drawn(variance: int, count: int, *, seed: bytes = SEED, label: str = "noise") -> IntVector:
    return discrete_gaussians(ReleaseStream(seed), label, variance=variance, count=count)


def probabilities(variance: int, reach: int) -> FloatVector:
    """exp(-x² / 2σ²) over its sum, for x from -reach to reach."""
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(x**2) / (2 * variance))
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("variance", [1, 2, 7, 50])
def test_every_integer_comes_up_as_often_as_it_should(variance: int) -> None:
    """Pearson's test at 1e-6 for each of four variances; the seed is fixed, so it never alarms."""
    stats = pytest.importorskip("scipy.stats")
    count, reach = 200_000, math.ceil(12 * math.sqrt(variance))
    found = np.bincount(drawn(variance, count) + reach, minlength=2 * reach + 1)
    expected = count * probabilities(variance, reach)
    usual = expected >= 20
    # What is rare is one class: half of it on either side.
    seen = np.append(found[usual], found[~usual].sum())
    wanted = np.append(expected[usual], max(expected[~usual].sum(), 1e-9))
    assert stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-6


@pytest.mark.parametrize("variance", [600_000, 8_900_000, MAX_VARIANCE])
def test_wide_noise_is_indistinguishable_from_a_rounded_gaussian(variance: int) -> None:
    """Kolmogorov and Smirnov's test at 1e-6; the seed is fixed, so it never alarms.

    Steps of 1/700 deviation and less are far finer than 100,000 numbers can tell.
    """
    stats = pytest.importorskip("scipy.stats")
    values = drawn(variance, 100_000) / math.sqrt(variance)
    assert stats.kstest(values, "norm").pvalue > 1e-6


def test_the_test_would_notice_a_slightly_wrong_variance() -> None:
    """The control: 5 % too wide is found."""
    stats = pytest.importorskip("scipy.stats")
    values = drawn(600_000, 100_000) / math.sqrt(600_000 / 1.05**2)
    assert stats.kstest(values, "norm").pvalue < 1e-3


def test_the_same_stream_gives_the_same_numbers_and_another_label_others() -> None:
    assert np.array_equal(drawn(100, 500), drawn(100, 500))
    assert not np.array_equal(drawn(100, 500), drawn(100, 500, label="other"))
    assert not np.array_equal(drawn(100, 500), drawn(100, 500, seed=bytes(32)))


def test_coordinates_are_independent() -> None:
    """Correlation of neighbours within five standard errors; the seed is fixed."""
    values = drawn(10_000, 50_000) / 100
    assert abs(float(np.mean(values[1:] * values[:-1]))) < 5 / math.sqrt(50_000)


@given(bound=st.one_of(st.integers(1, 40), st.integers(2**62, 2**63 - 1)))
def test_uniform_numbers_stay_below_their_bound(bound: int) -> None:
    numbers = _Draws(ReleaseStream(SEED), "bound").below(bound, 200)
    assert numbers.min() >= 0
    assert numbers.max() < bound


def test_uniform_numbers_favour_none_where_the_bound_does_not_divide_the_words() -> None:
    """Of 3·2^61 a plain remainder would give the lower third twice as often: half instead of a third.

    Five standard errors; the seed is fixed.
    """
    bound, count = 3 * 2**61, 20_000
    numbers = _Draws(ReleaseStream(SEED), "bound").below(bound, count)
    share = float(np.mean(numbers < bound // 3))
    assert share == pytest.approx(1 / 3, abs=5 * math.sqrt(2 / 9 / count))


@pytest.mark.parametrize("fraction", [(0, 1), (1, 4), (2, 3), (1, 1)])
def test_exponential_coins_come_up_with_their_chance(fraction: tuple[int, int]) -> None:
    """Five standard errors; the seed is fixed."""
    numerator, denominator = fraction
    coins = _Draws(ReleaseStream(SEED), "coins").exponential_coins(
        np.full(40_000, numerator), denominator
    )
    chance = math.exp(-numerator / denominator)
    spread = math.sqrt(chance * (1 - chance) / 40_000)
    assert float(coins.mean()) == pytest.approx(chance, abs=5 * spread)


def test_nothing_is_drawn_of_nothing() -> None:
    assert drawn(5, 0).shape == (0,)


@pytest.mark.parametrize(("variance", "count"), [(0, 1), (-1, 1), (MAX_VARIANCE + 1, 1), (1, -1)])
def test_what_is_no_distribution_is_refused(variance: int, count: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        drawn(variance, count)
