"""Guesses prove no more about ε than is true, and much where there is much to prove."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.audit.bounds import _binomial, lower_bound, threshold_bound


def test_the_bound_is_that_of_the_published_procedure() -> None:
    """For δ = 0 it is the ε at which a binomial's tail meets the confidence, computed here by hand.

    All of n guesses right: (e^ε / (1 + e^ε))^n = 0.05.
    """
    chance = 0.05 ** (1 / 100)
    expected = math.log(chance / (1 - chance))
    found = lower_bound(canaries=1000, guesses=100, right=100, delta=0.0)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 4.0])
def test_a_mechanism_that_keeps_its_promise_is_seldom_accused(epsilon: float) -> None:
    """Randomised response is as revealing as ε allows.

    Of 2,000 audits at 95 % confidence 5 % may be wrong; five standard errors more is the bar, and the seed is fixed.
    """
    rng = np.random.default_rng(5)
    truthful = 1 / (1 + math.exp(-epsilon))
    audits = 2000
    right = rng.binomial(200, truthful, audits)
    bounds = {
        int(count): lower_bound(canaries=200, guesses=200, right=int(count), delta=0.0)
        for count in set(right.tolist())
    }
    accused = np.mean([bounds[int(count)] > epsilon for count in right])
    assert accused <= 0.05 + 5 * math.sqrt(0.05 * 0.95 / audits)
    proved = np.median([bounds[int(count)] for count in right])
    assert proved > 0.4 * epsilon, "a bound of nothing would keep every promise"


@settings(deadline=None, max_examples=50)
@given(guesses=st.integers(1, 120), data=st.data())
def test_more_right_guesses_prove_more(guesses: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, guesses - 1))
    fewer, more = (
        lower_bound(canaries=150, guesses=guesses, right=count, delta=1e-5)
        for count in (right, right + 1)
    )
    assert fewer <= more + 1e-9


def test_guessing_by_chance_proves_nothing_and_delta_takes_some_away() -> None:
    assert lower_bound(canaries=1000, guesses=400, right=200, delta=1e-5) == 0.0
    assert lower_bound(canaries=1000, guesses=0, right=0, delta=1e-5) == 0.0
    with_delta = lower_bound(canaries=1000, guesses=400, right=399, delta=1e-5)
    assert 0 < with_delta < lower_bound(canaries=1000, guesses=400, right=399, delta=0.0)


@pytest.mark.parametrize(
    ("canaries", "guesses", "right"), [(10, 11, 1), (10, 5, 6), (10, 5, -1), (-1, -1, -1)]
)
def test_no_outcome_of_an_audit_is_refused(canaries: int, guesses: int, right: int) -> None:
    with pytest.raises(ValueError, match="cannot be right"):
        lower_bound(canaries=canaries, guesses=guesses, right=right, delta=0.0)


@pytest.mark.parametrize("chance", [0.0, 0.03, 0.5, 1.0])
def test_binomial_chances_are_those_of_the_textbook(chance: float) -> None:
    exact = [math.comb(40, k) * chance**k * (1 - chance) ** (40 - k) for k in range(41)]
    assert _binomial(40, chance) == pytest.approx(np.array(exact), abs=1e-12)


def test_a_threshold_that_finds_everybody_and_nobody_else_proves_much() -> None:
    found = threshold_bound(members=500, found=500, strangers=500, accused=0, delta=1e-5)
    # Clopper and Pearson's ends: 0.025^(1/500) and one less that.
    end = 0.025 ** (1 / 500)
    assert found == pytest.approx(math.log((end - 1e-5) / (1 - end)), rel=1e-6)


def test_a_threshold_that_tells_nobody_apart_proves_nothing() -> None:
    assert threshold_bound(members=500, found=250, strangers=500, accused=250, delta=0.0) == 0.0
    assert threshold_bound(members=5, found=5, strangers=5, accused=5, delta=0.0) == 0.0
    assert threshold_bound(members=0, found=0, strangers=0, accused=0, delta=0.0) == 0.0
