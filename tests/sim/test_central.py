"""The yardstick is plain softmax regression, and learns what can be learnt."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.models.adapter import FEATURE_SCALE, Adapter, AdapterShape
from shared.types import Digest, FloatMatrix
from sim.central import train_centrally

LABELS = ("a", "b", "c")
START = Adapter.initial(AdapterShape(labels=LABELS, features=3), Digest("ab" * 32))


def some_data(seed: int, rows: int) -> tuple[FloatMatrix, list[str]]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 3)).astype(np.float32)
    # Short, so that the descent is smooth: at full length it swings on so few texts that the
    # last bit of a float32 decides where it ends.
    features /= 10 * np.linalg.norm(features, axis=1, keepdims=True)
    return features, [LABELS[number] for number in rng.integers(0, 3, rows)]


def slowly_trained(features: FloatMatrix, labels: list[str]) -> list[list[float]]:
    """The same descent in plain Python numbers: rows of weights, each with its bias last."""
    weights = [[0.0] * 4 for _ in LABELS]
    velocity = [[0.0] * 4 for _ in LABELS]
    inputs = [[*(FEATURE_SCALE * float(v) for v in row), 1.0] for row in features]
    for _ in range(200):
        gradient = [[1e-4 * w for w in row] for row in weights]
        for x, label in zip(inputs, labels, strict=True):
            logits = [sum(w * v for w, v in zip(row, x, strict=True)) for row in weights]
            top = max(logits)
            exps = [math.exp(z - top) for z in logits]
            for c, name in enumerate(LABELS):
                error = exps[c] / sum(exps) - (name == label)
                for j, v in enumerate(x):
                    gradient[c][j] += error * v / len(inputs)
        for c in range(3):
            for j in range(4):
                velocity[c][j] = 0.9 * velocity[c][j] - 0.5 * gradient[c][j]
                weights[c][j] += velocity[c][j]
    return weights


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(2, 6))
def test_it_is_what_the_definition_gives(seed: int, rows: int) -> None:
    features, labels = some_data(seed, rows)
    trained = train_centrally(START, features, labels)
    slow = np.array(slowly_trained(features, labels))
    fast = np.concatenate([trained.weight, trained.bias[:, None]], axis=1)
    assert fast == pytest.approx(slow, abs=1e-4 * np.abs(slow).max())  # float32 against float64


def test_it_starts_where_it_is_told_and_answers_right_what_can_be_answered() -> None:
    features = np.eye(3, dtype=np.float32)
    start = START.moved(np.full(12, 0.25))
    trained = train_centrally(start, features, ["b", "c", "a"])
    assert trained.predict(features) == ["b", "c", "a"]
    assert trained.digest != train_centrally(START, features, ["b", "c", "a"]).digest


def test_labels_that_the_adapter_lacks_are_left_out() -> None:
    features, labels = some_data(1, 6)
    start = START
    more = np.concatenate([features, np.ones((2, 3), np.float32)])
    assert (
        train_centrally(start, more, [*labels, "unknown", ""]).digest
        == train_centrally(start, features, labels).digest
    )
