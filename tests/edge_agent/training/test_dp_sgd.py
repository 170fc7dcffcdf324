"""DP-SGD does what the accountant accounts for, gradient by gradient, and does it again."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.training import dp_sgd
from edge_agent.training.trainer import TrainRequest
from shared.errors import GateRefused, NonFiniteUpdate
from shared.models.adapter import FEATURE_SCALE, Adapter, AdapterShape
from shared.privacy.release import ReleaseStream
from shared.types import Digest, FloatVector

ROOT = Path(__file__).parents[3]

pytest.importorskip("opacus")

LABELS, FEATURES = ("a", "b", "c"), 5
PARAMETERS = len(LABELS) * (FEATURES + 1)
quietly = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


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
        "noise_multiplier": 0.0,
        "expected_examples": 10.0,
        "seed": bytes(32),
    }
    return TrainRequest(**(fields | changes))


def an_adapter(seed: int = 0, *, labels: tuple[str, ...] = LABELS) -> Adapter:
    start = Adapter.initial(AdapterShape(labels=labels, features=FEATURES), Digest("ab" * 32))
    return start.moved(np.random.default_rng(seed).normal(size=start.parameters) * 0.3)


def some_data(count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, FEATURES)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features, rng.integers(0, len(LABELS), count)


def local_update(
    features: NDArray[np.float32],
    targets: NDArray[np.int64],
    adapter: Adapter,
    request: TrainRequest,
) -> NDArray[np.float32]:
    """A head's update on all rows."""
    learner = dp_sgd.head_learner(features, targets, adapter)
    return dp_sgd.local_update(learner, np.arange(len(features)), request)


def naive_update(
    features: NDArray[np.float32],
    targets: NDArray[np.int64],
    adapter: Adapter,
    request: TrainRequest,
) -> FloatVector:
    """Abadi's algorithm 1 in float64: one gradient per example, made, clipped and added."""
    stream = ReleaseStream(request.seed)
    start = adapter.flatten().astype(np.float64)
    parameters = start.copy()
    for _ in range(request.local_steps):
        drawn = stream.uniforms("sample", len(features)) < request.sample_rate
        weight = parameters[: -len(LABELS)].reshape(len(LABELS), FEATURES)
        bias = parameters[-len(LABELS) :]
        total = np.zeros(PARAMETERS)
        for row, target, taken in zip(features.astype(np.float64), targets, drawn, strict=True):
            if not taken:
                continue
            scaled = row * FEATURE_SCALE
            logits = weight @ scaled + bias
            error = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            error[target] -= 1
            gradient = np.concatenate([np.outer(error, scaled).ravel(), error])
            if request.clip_norm is not None:
                gradient *= min(
                    1.0, request.clip_norm / max(float(np.linalg.norm(gradient)), 1e-30)
                )
            total += gradient
        if request.noise_multiplier:
            assert request.clip_norm is not None
            total += (
                request.noise_multiplier * request.clip_norm * stream.gaussians("noise", PARAMETERS)
            )
        total /= request.sample_rate * request.expected_examples
        total += request.proximal_mu * (parameters - start)
        parameters -= request.learning_rate * total
    return parameters - start


@quietly
@given(
    count=st.integers(1, 12),
    physical_batch=st.sampled_from([1, 3, 1024]),
    clip_norm=st.sampled_from([None, 0.1, 2.0, 1e6]),
    noise_multiplier=st.sampled_from([0.0, 0.7]),
    sample_rate=st.sampled_from([0.4, 1.0]),
    local_steps=st.integers(1, 3),
    proximal_mu=st.sampled_from([0.0, 0.3]),
    seed=st.binary(min_size=32, max_size=32),
)
@example(9, 3, 0.1, 0.7, 0.4, 3, 0.3, bytes(32))
def test_an_update_is_that_of_one_gradient_per_example(
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    physical_batch: int,
    clip_norm: float | None,
    noise_multiplier: float,
    sample_rate: float,
    local_steps: int,
    proximal_mu: float,
    seed: bytes,
) -> None:
    request = a_request(
        clip_norm=clip_norm,
        noise_multiplier=noise_multiplier if clip_norm is not None else 0.0,
        sample_rate=sample_rate,
        local_steps=local_steps,
        proximal_mu=proximal_mu,
        seed=seed,
        learning_rate=0.1,
    )
    features, targets = some_data(count)
    monkeypatch.setattr(dp_sgd, "_PHYSICAL_BATCH", physical_batch)
    update = local_update(features, targets, an_adapter(), request)
    expected = naive_update(features, targets, an_adapter(), request)
    assert update.dtype == np.float32
    assert np.linalg.norm(update - expected) <= 1e-5 * max(1.0, float(np.linalg.norm(expected)))


def test_a_sample_of_several_physical_batches_is_one_step() -> None:
    features, targets = some_data(2 * dp_sgd._PHYSICAL_BATCH + 100)
    request = a_request(expected_examples=2000.0, noise_multiplier=1.0)
    update = local_update(features, targets, an_adapter(), request)
    expected = naive_update(features, targets, an_adapter(), request)
    assert np.linalg.norm(update - expected) <= 1e-5 * np.linalg.norm(expected)


@quietly
@given(st.integers(0, 999), st.integers(0, 7), st.sampled_from([0.05, 1.0, 3.0]))
def test_one_record_moves_the_sum_by_at_most_the_clip(
    seed: int, removed: int, clip_norm: float
) -> None:
    """The sensitivity that the accountant takes for granted, noise being the same."""
    features, targets = some_data(8, seed)
    request = a_request(clip_norm=clip_norm, noise_multiplier=1.0)
    whole = local_update(features, targets, an_adapter(seed), request)
    kept = np.arange(8) != removed
    without = local_update(features[kept], targets[kept], an_adapter(seed), request)
    moved = (whole - without).astype(np.float64) * request.expected_examples / request.learning_rate
    assert np.linalg.norm(moved) <= clip_norm * (1 + 1e-4)


def test_a_record_at_the_clip_uses_all_of_it() -> None:
    features, targets = some_data(1)
    request = a_request(clip_norm=0.01, expected_examples=1.0, learning_rate=1.0)
    update = local_update(features, targets, an_adapter(), request)
    assert np.linalg.norm(update.astype(np.float64)) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_noise_has_the_promised_scale(steps: int) -> None:
    """False alarms: five standard errors of a variance, one seed in 1.7 million."""
    labels = tuple(f"label-{index}" for index in range(4000))
    request = a_request(
        sample_rate=1e-9,  # nobody is drawn: what is left is noise
        expected_examples=1e9 * 7.0,
        noise_multiplier=2.85,
        clip_norm=0.5,
        learning_rate=3.0,
        local_steps=steps,
    )
    features, targets = some_data(4)
    adapter = Adapter.initial(AdapterShape(labels=labels, features=FEATURES), Digest("ab" * 32))
    update = local_update(features, targets, adapter, request)
    std = 3.0 * 2.85 * 0.5 / 7.0 * math.sqrt(steps)
    count = len(update)
    assert count == 24_000
    assert np.var(update) == pytest.approx(std**2, rel=5 * math.sqrt(2 / count))
    assert np.mean(update) == pytest.approx(0, abs=5 * std / math.sqrt(count))


def test_an_empty_sample_still_steps_with_noise() -> None:
    request = a_request(
        sample_rate=1e-9, expected_examples=1e9, noise_multiplier=1.0, local_steps=2
    )
    update = local_update(*some_data(3), an_adapter(), request)
    stream = ReleaseStream(request.seed)
    noise = stream.gaussians("noise", PARAMETERS) + stream.gaussians("noise", PARAMETERS)
    assert update == pytest.approx(-0.5 * noise, abs=1e-5)


def test_an_empty_sample_without_privacy_moves_nothing() -> None:
    request = a_request(sample_rate=1e-9, clip_norm=None)
    assert not local_update(*some_data(3), an_adapter(), request).any()


@pytest.mark.parametrize("sample_rate", [0.3, 1.0])
def test_without_clip_and_noise_private_training_is_plain_training(sample_rate: float) -> None:
    request = a_request(
        clip_norm=math.inf, local_steps=3, sample_rate=sample_rate, learning_rate=0.1
    )
    plain = dataclasses.replace(request, clip_norm=None)
    data = some_data(9)
    assert local_update(*data, an_adapter(), request) == pytest.approx(
        local_update(*data, an_adapter(), plain), abs=1e-6
    )


def test_the_proximal_term_pulls_back_to_the_start() -> None:
    data = some_data(9)
    norms = [
        np.linalg.norm(local_update(*data, an_adapter(), a_request(local_steps=5, proximal_mu=mu)))
        for mu in (0.0, 0.5, 1.5)
    ]
    assert norms == sorted(norms, reverse=True)


def test_another_seed_draws_other_noise_and_another_sample() -> None:
    data = some_data(9)
    seeds = [bytes([index]) * 32 for index in range(4)]
    noisy = [
        local_update(*data, an_adapter(), a_request(noise_multiplier=1.0, seed=s)) for s in seeds
    ]
    drawn = [
        local_update(*data, an_adapter(), a_request(clip_norm=None, sample_rate=0.5, seed=s))
        for s in seeds
    ]
    assert len({update.tobytes() for update in noisy}) == len(seeds)
    assert len({update.tobytes() for update in drawn}) > 1


REPEATED = a_request(
    noise_multiplier=1.0, sample_rate=0.5, local_steps=3, seed=b"again" + bytes(27)
)


def digest_of_an_update() -> str:
    update = local_update(*some_data(1500), an_adapter(), REPEATED)
    return hashlib.sha256(update.tobytes()).hexdigest()


def test_the_same_request_gives_the_same_bytes_in_any_process() -> None:
    code = (
        "from tests.edge_agent.training.test_dp_sgd import digest_of_an_update;"
        "print(digest_of_an_update())"
    )
    # Threads and hash seeds are what usually makes two processes differ.
    others = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": threads, "OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for threads in ("1", "2")
    }
    assert others == {digest_of_an_update()}


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad: float, clip_norm: float | None) -> None:
    features, targets = some_data(3)
    features[1, 2] = bad
    with pytest.raises(NonFiniteUpdate, match="features"):
        local_update(features, targets, an_adapter(), a_request(clip_norm=clip_norm))


def test_training_that_diverges_is_refused_at_the_step_that_did_it() -> None:
    request = a_request(clip_norm=None, learning_rate=1e38, local_steps=4, expected_examples=1e-3)
    with pytest.raises(GateRefused, match=r"local step \d: the adapter is no longer finite"):
        local_update(*some_data(9), an_adapter(), request)


def test_a_step_that_moves_nothing_is_refused() -> None:
    request = a_request(learning_rate=1e-30)
    with pytest.raises(GateRefused, match="local step 1: the adapter did not move"):
        local_update(*some_data(9), an_adapter(), request)


def test_a_step_that_goes_farther_than_clip_and_noise_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Noise of another scale than was promised is the kind of bug that trains garbage."""
    quiet = a_request(noise_multiplier=1.0, local_steps=3)
    local_update(*some_data(9), an_adapter(), quiet)
    gaussians = ReleaseStream.gaussians
    monkeypatch.setattr(ReleaseStream, "gaussians", lambda *args: 10 * gaussians(*args))
    with pytest.raises(GateRefused, match=r"local step 1: the adapter moved by .* bound"):
        local_update(*some_data(9), an_adapter(), quiet)


def test_a_proximal_pull_that_overshoots_is_refused() -> None:
    request = a_request(local_steps=9, proximal_mu=9.0, sample_rate=0.5, expected_examples=9.0)
    with pytest.raises(GateRefused, match=r"local step \d: the adapter moved by"):
        local_update(*some_data(9), an_adapter(), request)


def test_only_the_rows_that_are_named_are_trained_on() -> None:
    features, targets = some_data(9)
    rows = np.array([1, 4, 5])
    learner = dp_sgd.head_learner(features, targets, an_adapter())
    update = dp_sgd.local_update(learner, rows, a_request(noise_multiplier=1.0))
    alone = local_update(
        features[rows], targets[rows], an_adapter(), a_request(noise_multiplier=1.0)
    )
    assert (update == alone).all()


def test_scores_are_counted_right_answers() -> None:
    features, targets = some_data(9)
    adapter = an_adapter()
    learner = dp_sgd.head_learner(features, targets, adapter)
    right = adapter.logits(features).argmax(axis=1) == targets
    rows = np.array([0, 2, 3, 7])
    assert dp_sgd.scores(learner, rows, "text-classification") == right[rows].sum()
    assert dp_sgd.scores(learner, rows[:0], "text-classification") == 0.0


def test_single_gradients_of_a_head_are_those_of_the_naive_loop() -> None:
    features, targets = some_data(9)
    adapter = an_adapter()
    request = a_request(clip_norm=1e6, sample_rate=0.6, expected_examples=1 / 0.6, seed=b"7" * 32)
    learner = dp_sgd.head_learner(features, targets, adapter)
    found = np.concatenate(list(dp_sgd.sample_gradients(learner, np.arange(9), request)))
    drawn = ReleaseStream(request.seed).uniforms("sample", 9) < 0.6
    assert 1 < len(found) == drawn.sum() < 9
    for gradient, row in zip(found, np.flatnonzero(drawn), strict=True):
        whole = a_request(clip_norm=1e6, expected_examples=1.0)
        expected = naive_update(features[row : row + 1], targets[row : row + 1], adapter, whole)
        assert gradient == pytest.approx(-expected / whole.learning_rate, rel=1e-4, abs=1e-6)


def test_an_empty_sample_has_no_gradients() -> None:
    features, targets = some_data(3)
    learner = dp_sgd.head_learner(features, targets, an_adapter())
    request = a_request(sample_rate=1e-9)
    assert list(dp_sgd.sample_gradients(learner, np.arange(3), request)) == []
