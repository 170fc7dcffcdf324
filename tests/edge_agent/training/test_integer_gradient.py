"""A round's gradient in integers: no record reaches farther than the clip, noise is whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_agent.training.integer_gradient import (
    NOISE_STREAM,
    integer_step,
    rounded_within,
    wrapped,
)
from edge_agent.training.trainer import TrainRequest
from shared.privacy.discrete_gaussian import discrete_gaussians
from shared.privacy.release import ReleaseStream
from shared.types import FloatMatrix

MAGNITUDE = 2**15 - 1


def a_request(**changes: Any) -> TrainRequest:
    fields: dict[str, Any] = {
        "store_path": Path("store"),
        "cache_folder": Path("cache"),
        "base": "base",
        "adapter": b"",
        "learning_rate": 0.5,
        "local_steps": 1,
        "sample_rate": 1.0,
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        "expected_examples": 10.0,
        "seed": bytes(32),
        "integer_clip": 100,
        "share_variance": 2500,
        "coordinate_clamp": 20_000,
        "magnitude": MAGNITUDE,
    }
    return TrainRequest(**(fields | changes))


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


gradients = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 400)),
    elements=st.floats(-50, 50, width=32),
)


@settings(deadline=None)
@given(rows=gradients, clip=st.integers(1, 300), clip_norm=st.floats(0.01, 100))
def test_no_example_reaches_farther_than_the_integer_clip(
    rows: FloatMatrix, clip: int, clip_norm: float
) -> None:
    """Rounding included, however many values there are for how short a clip."""
    request = a_request(integer_clip=clip, clip_norm=clip_norm)
    for row in rows:
        added = rounded_within(row[None, :], request, rng())
        assert math.isqrt(int(np.sum(added**2))) <= clip
        assert int(np.sum(added**2)) <= clip**2


@settings(deadline=None)
@given(rows=gradients)
def test_a_batch_adds_what_its_examples_add(rows: FloatMatrix) -> None:
    """The length of a sum is at most that of its parts: nothing is clipped together."""
    added = rounded_within(rows, a_request(), rng())
    assert float(np.linalg.norm(added)) <= 100 * len(rows)


def test_gradients_within_the_clip_are_rounded_without_bias() -> None:
    """Five standard errors of a mean of 4,000 roundings for each of twenty values; fixed seed."""
    row = np.linspace(-0.2, 0.2, 20, dtype=np.float32)
    rows = np.repeat(row[None, :], 4000, axis=0)
    mean = rounded_within(rows, a_request(), rng()) / 4000
    assert np.abs(mean - row * 100).max() < 5 * 0.5 / math.sqrt(4000)


def test_a_long_gradient_keeps_its_direction_and_nearly_the_clip() -> None:
    row = np.zeros((1, 50), np.float32)
    row[0, 3], row[0, 4] = 30.0, -40.0
    added = rounded_within(row, a_request(integer_clip=1000), rng())
    assert added[3] == pytest.approx(600, abs=8)
    assert added[4] == pytest.approx(-800, abs=8)
    assert np.count_nonzero(added) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
def test_an_example_that_is_not_finite_adds_nothing_and_the_others_do(bad: float) -> None:
    rows = np.full((2, 4), 0.25, np.float32)
    rows[0, 1] = bad
    both = rounded_within(rows, a_request(), rng())
    if math.isfinite(bad):  # its squares fit into float64, so it is long and not broken
        assert both[1] > 25
    else:
        assert np.all(np.abs(both) <= 26)
        assert np.all(both >= 24)


def test_an_empty_sample_is_this_device_s_noise_alone() -> None:
    request = a_request()
    step = integer_step([], request, parameters=30, magnitude=MAGNITUDE)
    noise = discrete_gaussians(
        ReleaseStream(request.seed), NOISE_STREAM, variance=request.share_variance, count=30
    )
    assert np.array_equal(step, noise)


def test_a_step_goes_down_the_gradient_by_the_sum_of_its_examples() -> None:
    rows = np.repeat(np.array([[0.6, -0.8, 0.0]], np.float32), 10, axis=0)
    request = a_request(share_variance=1, integer_clip=100)
    step = integer_step([rows[:6], rows[6:]], request, parameters=3, magnitude=MAGNITUDE)
    assert step == pytest.approx([-600, 800, 0], abs=15)


def test_values_are_held_before_noise_and_not_after() -> None:
    rows = np.tile(np.array([[1.0, 0.0]], np.float32), (50, 1))
    request = a_request(coordinate_clamp=300, share_variance=10_000)
    seen = {
        int(integer_step([rows], a, parameters=2, magnitude=MAGNITUDE)[0])
        for a in (a_request(**_but(request, seed=bytes([n]) * 32)) for n in range(40))
    }
    assert min(seen) < -300 < max(seen), "noise goes on beyond the clamp"
    assert abs(float(np.mean(list(seen))) + 300) < 5 * 100 / math.sqrt(40)


def _but(request: TrainRequest, **changes: Any) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__slots__} | changes


def test_the_same_request_gives_the_same_integers_and_another_seed_others() -> None:
    rows = np.random.default_rng(1).normal(size=(5, 40)).astype(np.float32)

    def step(request: TrainRequest) -> list[int]:
        values = integer_step([rows], request, parameters=40, magnitude=MAGNITUDE)
        return [int(value) for value in values]

    assert step(a_request()) == step(a_request())
    assert step(a_request()) != step(a_request(seed=b"1" * 32))


@given(arrays.arrays(np.int64, 8, elements=st.integers(-(10**9), 10**9)), st.integers(1, 40_000))
def test_wrapping_is_arithmetic_modulo_the_range(values: np.ndarray, magnitude: int) -> None:
    inside = wrapped(values, magnitude)
    assert np.all(np.abs(inside) <= magnitude)
    assert np.all((inside - values) % (2 * magnitude + 1) == 0)
    short = np.clip(values, -magnitude, magnitude)
    assert np.array_equal(wrapped(short, magnitude), short)


@pytest.mark.parametrize(
    "wrong",
    [
        {"local_steps": 2},
        {"clip_norm": None, "noise_multiplier": 0.0},
        {"share_variance": 0},
        {"coordinate_clamp": 0},
        {"coordinate_clamp": MAGNITUDE},
    ],
)
def test_a_request_without_room_for_clip_and_noise_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="distributed noise needs"):
        a_request(**wrong)


def test_a_whole_update_is_clipped_and_rounded_as_one() -> None:
    request = a_request(
        update_clip=2.0, local_steps=7, clip_norm=None, noise_multiplier=0.0, share_variance=1
    )
    update = np.array([[3.0, 4.0, 0.0]], np.float32)  # of length five, clipped to two
    step = integer_step([-update], request, parameters=3, magnitude=MAGNITUDE)
    assert step == pytest.approx([60, 80, 0], abs=8)
