"""The second accountant is tighter than ours, never far below the truth, and says what it cannot do."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.prv import epsilon_prv
from shared.errors import PrivacyError
from shared.privacy.accountant import (
    NonPrivate,
    SampledGaussian,
    SharedDiscreteGaussian,
    epsilon,
)

DELTA = 1e-5

pytestmark = pytest.mark.filterwarnings("ignore")  # opacus computes far out in the tails

moderate = st.builds(
    SampledGaussian,
    noise_multiplier=st.floats(0.8, 5),
    sample_rate=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    steps=st.integers(1, 50),
)


def exact(noise_multiplier: float) -> float:
    """ε of one Gaussian release: Balle and Wang, ICML 2018, theorem 8, solved by halving."""
    low, high = 0.0, 100.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        half, shift = 0.5 / noise_multiplier, middle * noise_multiplier
        delta = _normal(half - shift) - math.exp(middle) * _normal(-half - shift)
        low, high = (middle, high) if delta > DELTA else (low, middle)
    return high


def _normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


@pytest.mark.parametrize("noise_multiplier", [0.8, 1.0, 2.0, 5.0])
def test_one_release_costs_what_is_known_exactly(noise_multiplier: float) -> None:
    found = epsilon_prv([SampledGaussian(noise_multiplier, 1.0, 1)], delta=DELTA)
    assert exact(noise_multiplier) <= found <= exact(noise_multiplier) + 0.03


def test_many_releases_cost_what_one_of_less_noise_does() -> None:
    facts = [SampledGaussian(5.0, 1.0, 20), SampledGaussian(5.0, 1.0, 5)]
    assert exact(1.0) <= epsilon_prv(facts, delta=DELTA) <= exact(1.0) + 0.03


@settings(max_examples=15, deadline=None)
@given(st.lists(moderate, min_size=1, max_size=3))
def test_it_is_not_above_ours_by_more_than_its_error(facts: list[SampledGaussian]) -> None:
    assert epsilon_prv(facts, delta=DELTA) <= epsilon(facts, delta=DELTA) + 0.03


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon_prv([], delta=DELTA) == 0.0
    assert epsilon_prv([SampledGaussian(1.0, 0.0, 3)], delta=DELTA) == 0.0
    assert epsilon_prv([SampledGaussian(1.0, 1.0, 0)], delta=DELTA) == 0.0
    assert epsilon_prv([SampledGaussian(0.0, 1.0, 1)], delta=DELTA) == math.inf
    assert epsilon_prv([SampledGaussian(1.0, 1.0, 1), NonPrivate("none")], delta=DELTA) == math.inf


def test_shared_noise_is_refused_rather_than_guessed() -> None:
    shared = SharedDiscreteGaussian(100, 9, 50, 10, 2**14, 10, 0.2, 3)
    with pytest.raises(PrivacyError, match="devices shared"):
        epsilon_prv([SampledGaussian(1.0, 1.0, 1), shared], delta=DELTA)
