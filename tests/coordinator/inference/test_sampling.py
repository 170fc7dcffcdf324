"""Tokens are drawn as the definition says, and the same request draws the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coordinator.inference.sampling import Sampler

DRAWS = 20_000

logits = arrays(np.float32, st.integers(2, 40), elements=st.floats(-8, 8, width=32))


def nucleus(values: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Probabilities by the definition, written the slow way."""
    weights = np.exp((values.astype(np.float64) - values.max()) / temperature)
    weights /= weights.sum()
    order = sorted(range(len(values)), key=lambda token: (-weights[token], token))
    kept, reached = np.zeros(len(values)), 0.0
    for token in order:
        if reached >= top_p:
            break
        kept[token] = weights[token]
        reached += weights[token]
    return np.asarray(kept / kept.sum())


@given(logits, st.integers(0, 2**63 - 1))
def test_at_temperature_zero_the_likeliest_is_taken(values: np.ndarray, seed: int) -> None:
    sampler = Sampler(temperature=0.0, top_p=1.0, seed=seed)
    assert sampler.choose(values) == int(values.argmax())


@given(logits, st.floats(0.05, 2.0), st.floats(0.05, 1.0), st.integers(0, 1000))
def test_only_tokens_of_the_nucleus_are_drawn(
    values: np.ndarray, temperature: float, top_p: float, seed: int
) -> None:
    # A little more than asked for: sums of another order differ in the last place.
    allowed = nucleus(values, temperature, min(1.0, top_p + 1e-9)) > 0
    sampler = Sampler(temperature=temperature, top_p=top_p, seed=seed)
    assert all(allowed[sampler.choose(values)] for _ in range(20))


@given(logits, st.floats(0.1, 2.0), st.integers(0, 2**63 - 1))
def test_the_same_seed_draws_the_same(values: np.ndarray, temperature: float, seed: int) -> None:
    one, other = (Sampler(temperature=temperature, top_p=0.9, seed=seed) for _ in range(2))
    assert [one.choose(values) for _ in range(8)] == [other.choose(values) for _ in range(8)]


@pytest.mark.parametrize("top_p", [1.0, 0.8])
@pytest.mark.parametrize("size", [6, 2000])
def test_tokens_come_as_often_as_their_probability_says(top_p: float, size: int) -> None:
    rng = np.random.default_rng(5)
    values = (3 * rng.normal(size=size)).astype(np.float32)
    expected = nucleus(values, 0.7, top_p)
    sampler = Sampler(temperature=0.7, top_p=top_p, seed=11)
    found = np.bincount([sampler.choose(values) for _ in range(DRAWS)], minlength=size) / DRAWS
    for token in np.argsort(-expected)[:5]:
        # A share of N draws has standard error sqrt(p (1 - p) / N). Five of them: right code
        # fails one of these twenty comparisons for 1 seed in 87,000; a token left out or a
        # temperature not applied moves the first by tens of them.
        error = math.sqrt(expected[token] * (1 - expected[token]) / DRAWS)
        assert found[token] == pytest.approx(expected[token], abs=5 * error)


def test_a_tiny_temperature_is_the_likeliest_and_no_overflow() -> None:
    values = np.array([1.0, 3.0, 2.0], np.float32)
    assert Sampler(temperature=1e-9, top_p=1.0, seed=0).choose(values) == 1


def test_what_is_not_allowed_is_never_drawn() -> None:
    values = np.full(50, -np.inf, np.float32)
    values[[7, 21]] = 0.0
    sampler = Sampler(temperature=2.0, top_p=1.0, seed=2)
    assert {sampler.choose(values) for _ in range(200)} == {7, 21}
