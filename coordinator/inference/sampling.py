"""From logits to a token: one row of a batch at a time, the same whatever the other rows are."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float32] | NDArray[np.float64]

_FEW: Final = 512
"""Of the likeliest tokens, looked at first: with top_p below 1 they nearly always reach the sum,
and ordering 150,000 takes 10 ms where finding these takes one."""


class Sampler:
    """Draws the tokens of one answer.

    The generator is the request's own, and every token takes one number from it, so that a
    request repeats itself whatever is answered beside it.
    """

    def __init__(self, *, temperature: float, top_p: float, seed: int) -> None:
        """As in :class:`~coordinator.inference.engine.GenerationRequest`."""
        self._temperature = temperature
        self._top_p = top_p
        self._rng = np.random.Generator(np.random.PCG64(seed))

    @property
    def is_greedy(self) -> bool:
        """Whether it always takes the likeliest."""
        return self._temperature == 0.0

    def choose(self, logits: Reals) -> int:
        """Return a token.

        Args:
            logits: Shape (V,); minus infinity where a token is not allowed.
        """
        if self.is_greedy:
            return int(logits.argmax())
        # Shifted before scaling: a tiny temperature would overflow, and infinity is no probability.
        scaled = (logits.astype(np.float64) - float(logits.max())) / self._temperature
        weights = np.exp(scaled)
        drawn = self._rng.random()
        if self._top_p == 1.0:
            return _at(weights, np.arange(len(weights)), drawn)
        total = weights.sum()
        if len(weights) > _FEW:
            order = _likeliest_first(weights, _FEW)
            if weights[order].sum() < self._top_p * total:
                order = _likeliest_first(weights, len(weights))
        else:
            order = _likeliest_first(weights, len(weights))
        kept = weights[order]
        # Kept while what lies before has not reached the sum: always at least the first.
        before = np.cumsum(kept) - kept
        count = max(1, int(np.searchsorted(before, self._top_p * total, side="left")))
        return _at(kept[:count], order[:count], drawn)


def _at(weights: Reals, tokens: np.ndarray, drawn: float) -> int:
    """The token at a place between 0 and 1 along the weights."""
    ends = np.cumsum(weights)
    place = int(np.searchsorted(ends, drawn * ends[-1], side="right"))
    # Rounding may carry the very last place beyond the end, where weights can be 0.
    if place >= len(tokens) or weights[place] == 0.0:
        place = int(np.flatnonzero(weights)[-1])
    return int(tokens[place])


def _likeliest_first(weights: Reals, count: int) -> np.ndarray:
    """The ``count`` heaviest, heaviest first; of equals the lower token, so that runs repeat."""
    if count < len(weights):
        bound = np.partition(weights, -count)[-count]
        some = np.flatnonzero(weights >= bound)
    else:
        some = np.arange(len(weights))
    return np.asarray(some[np.lexsort((some, -weights[some]))][:count])


def log_probabilities(
    logits: Reals, token: int, count: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Log probabilities at temperature 1: of one token, and of the likeliest.

    Args:
        logits: Shape (V,).
        token: That was chosen.
        count: How many of the likeliest.
    """
    shifted = logits.astype(np.float64) - float(logits.max())
    normaliser = float(np.log(np.exp(shifted).sum()))
    likeliest = _likeliest_first(shifted, count) if count else ()
    return (
        float(shifted[token]) - normaliser,
        tuple((int(each), float(shifted[each]) - normaliser) for each in likeliest),
    )
