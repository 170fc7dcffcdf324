"""How good an adapter is on texts whose labels are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shared.models.adapter import Adapter
from shared.models.calibration import UNKNOWN
from shared.models.task import Accuracy, summed_up
from shared.types import FloatMatrix

LOSS_LIMIT: Final = 30.0
"""Most that one example adds to the loss, in nats (a probability of 1e-13), so that a label
the adapter does not know, or a hopeless answer, still leaves a finite mean."""


def positions(labels: Sequence[str], known: Sequence[str]) -> NDArray[np.int64]:
    """Where each of n labels stands among the ``known``, (n,); :data:`UNKNOWN` where nowhere."""
    place = {label: index for index, label in enumerate(known)}
    return np.array([place.get(label, UNKNOWN) for label in labels], np.int64)


def evaluate(
    adapter: Adapter, features: FloatMatrix, labels: Sequence[str], groups: Sequence[str]
) -> Accuracy:
    """Compare an adapter's answers with the truth. A label it does not know counts as wrong.

    Args:
        adapter: C labels over F features.
        features: (n, F), n > 0, mean-pooled and length-normalised, with the adapter's inner
            matrices in place.
        labels: n true labels.
        groups: n group names.

    Raises:
        ShapeMismatch: the features do not fit the adapter.
        ValueError: there is nothing to evaluate on, or the lengths differ.
    """
    if len(features) != len(labels):
        raise ValueError(f"{len(features)} rows and {len(labels)} labels differ")
    logits = adapter.logits(features).astype(np.float64)
    truth = positions(labels, adapter.labels)
    known = truth >= 0

    right = logits.argmax(axis=1) == truth
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    losses = np.full(len(labels), LOSS_LIMIT)
    rows = np.flatnonzero(known)
    losses[rows] = np.minimum(log_sums[rows] - shifted[rows, truth[rows]], LOSS_LIMIT)

    return summed_up(right.astype(np.float64), losses, groups)
