"""What training on everybody's pooled examples would have reached: the yardstick."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.models.adapter import FEATURE_SCALE, Adapter
from shared.models.classification import positions
from shared.types import FloatMatrix

_STEPS = 200
_LEARNING_RATE = 0.5
_MOMENTUM = 0.9
_WEIGHT_DECAY = 1e-4


def train_centrally(adapter: Adapter, features: FloatMatrix, labels: Sequence[str]) -> Adapter:
    """Softmax regression on pooled data, without privacy: full-batch descent with momentum.

    Args:
        adapter: Where to start, and which labels there are.
        features: Length-normalised, float32, shape (n, F).
        labels: n labels; rows whose label the adapter lacks are left out.
    """
    targets = positions(labels, adapter.labels)
    rows = np.flatnonzero(targets >= 0)
    inputs = np.concatenate(
        [FEATURE_SCALE * features[rows], np.ones((len(rows), 1), np.float32)], axis=1
    )
    target = targets[rows]
    start = np.concatenate([adapter.weight, adapter.bias[:, None]], axis=1).astype(np.float32)
    weights, velocity = start.copy(), np.zeros_like(start)
    for _ in range(_STEPS):
        scores = inputs @ weights.T
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        scores[np.arange(len(rows)), target] -= 1
        gradient = scores.T @ inputs / len(rows) + _WEIGHT_DECAY * weights
        velocity = _MOMENTUM * velocity - _LEARNING_RATE * gradient
        weights += velocity
    change = weights - start
    return adapter.moved(np.concatenate([change[:, :-1].ravel(), change[:, -1]]))
