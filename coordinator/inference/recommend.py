"""Which items a user would look at next, by what they looked at before.

R1  the same history and items give the same order; of equals the earlier item goes first

Source:
    A content-based profile by Rocchio's mean (Pazzani and Billsus, "Content-Based Recommendation
    Systems", The Adaptive Web, 2007, section 10.4), with exponential decay; Carbonell and
    Goldstein, "The Use of MMR", SIGIR 1998, for diversity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.types import FloatMatrix, FloatVector


def recency_weights(count: int, half_life: float | None) -> FloatVector:
    """Weights of a history whose last entry is the newest; they halve every ``half_life`` entries.

    >>> recency_weights(3, 1.0).tolist()
    [0.25, 0.5, 1.0]
    """
    if half_life is None:
        return np.ones(count)
    return np.asarray(0.5 ** (np.arange(count - 1, -1, -1) / half_life))


def profile(history: FloatMatrix, weights: Sequence[float] | FloatVector) -> FloatMatrix:
    """Return the weighted mean of a history's embeddings, brought to length 1: shape (F,).

    Args:
        history: (n, F), n > 0, rows of length 1.
        weights: n numbers, none negative, one of them positive.
    """
    total = np.asarray(weights, np.float64) @ np.asarray(history, np.float64)
    length = float(np.linalg.norm(total))
    # Opposite histories may cancel out; then nothing is known and every item scores 0.
    return np.asarray(total / length if length > 1e-12 else total * 0, np.float32)


def rank(
    wanted: FloatMatrix, items: FloatMatrix, *, top: int, diversity: float = 0.0
) -> list[tuple[int, float]]:
    """Return positions of the best items with their cosines, best first (R1).

    Each place goes to the item for which
    ``(1 - diversity) · cosine - diversity · (greatest cosine with an item before it)`` is greatest.

    Args:
        wanted: (F,), of length 1 or 0.
        items: (m, F), rows of length 1.
        top: At most so many.
        diversity: 0 (cosine alone) to 1.
    """
    relevance = np.asarray(items, np.float64) @ np.asarray(wanted, np.float64)
    # Sums in another order would differ in the last bits, and equals would change places.
    relevance = np.round(relevance, 6)
    if not diversity:
        order = np.argsort(-relevance, kind="stable")[:top]
        return [(int(at), float(relevance[at])) for at in order]
    rows = np.asarray(items, np.float64)
    likeness = np.full(len(rows), -1.0)
    left = np.ones(len(rows), bool)
    chosen: list[tuple[int, float]] = []
    while len(chosen) < min(top, len(rows)):
        repeated = likeness if chosen else np.zeros(len(rows))
        gain = np.round((1 - diversity) * relevance - diversity * repeated, 6)
        at = int(np.where(left, gain, -np.inf).argmax())
        left[at] = False
        chosen.append((at, float(relevance[at])))
        likeness = np.maximum(likeness, rows @ rows[at])
    return chosen
