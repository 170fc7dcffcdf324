"""Whole-number noise with the discrete Gaussian distribution, drawn exactly.

    N1  every integer x has probability proportional to exp(-x² / 2σ²), with no error: only
        whole numbers are compared, so no rounding shapes a tail that someone could look at
    N2  the same stream gives the same numbers
    N3  σ² is a whole number, so that what is drawn is what is accounted for

Exact means: given uniform random words. That the words are a key stream's is release.py's
promise.

Source:
    Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020,
    algorithms 1 to 3, here on whole vectors at a time. https://arxiv.org/abs/2004.00010
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from shared.types import IntVector

if TYPE_CHECKING:
    from shared.privacy.release import ReleaseStream

MAX_VARIANCE: Final = 2**27
"""σ up to 11,585: the acceptance test's denominators then fit into 64 bits, see there."""

_SQUARES_IN_64_BITS: Final = 3_000_000_000
"""Squares of what is below are less than 2^63."""

_Flags = NDArray[np.bool_]


def discrete_gaussians(
    stream: ReleaseStream, label: str, *, variance: int, count: int
) -> IntVector:
    """Draw ``count`` independent integers from the discrete Gaussian N_Z(0, ``variance``).

    Args:
        stream: Where randomness comes from; more of ``label`` is used than ``count`` words.
        label: Which of its streams.
        variance: σ², a whole number from 1 to :data:`MAX_VARIANCE`. The distribution's true
            variance is a little less: for σ² = 1 by 10^-7, beyond by nothing that floats show.
        count: How many.

    Returns:
        Shape ``(count,)``, int64.

    Raises:
        ValueError: ``variance`` or ``count`` lies outside its domain.
    """
    if not 1 <= variance <= MAX_VARIANCE:
        raise ValueError(f"variance must be 1 to {MAX_VARIANCE}, not {variance}")
    if count < 0:
        raise ValueError(f"count must be >= 0, not {count}")
    draw = _Draws(stream, label)
    scale = math.isqrt(variance) + 1
    found = np.empty(count, np.int64)
    missing = np.arange(count)
    while missing.size:
        candidates, kept = _discrete_laplace(draw, scale, missing.size)
        tried = np.flatnonzero(kept)
        kept[tried] = _accepted(draw, candidates[tried], variance, scale)
        found[missing[kept]] = candidates[kept]
        missing = missing[~kept]
    return found


class _Draws:
    """Uniform whole numbers, and coins whose chances are fractions or exponentials of them."""

    def __init__(self, stream: ReleaseStream, label: str) -> None:
        self._stream = stream
        self._label = label

    def below(self, bound: int, count: int) -> IntVector:
        """``count`` uniform integers in [0, bound), for a bound in [1, 2^63)."""
        # The last, incomplete copy of [0, bound) in 64 bits would favour small numbers.
        last = np.uint64(2**64 - 1 - 2**64 % bound)
        drawn = np.array(self._stream.words(self._label, count))
        while (unfair := np.flatnonzero(drawn > last)).size:
            drawn[unfair] = self._stream.words(self._label, unfair.size)
        return (drawn % np.uint64(bound)).astype(np.int64)

    def exponential_coins(self, numerators: IntVector, denominator: int) -> _Flags:
        """True with probability exp(-numerator / denominator), for fractions in [0, 1].

        Algorithm 1 of the source: the first k at which a coin of chance γ / k fails is odd
        with probability e^-γ.
        """
        is_odd = np.ones(numerators.size, bool)
        going, k = np.arange(numerators.size), 1
        while going.size:
            comes_up = self.below(denominator * k, going.size) < numerators[going]
            going, k = going[comes_up], k + 1
            is_odd[going] = k % 2 == 1
        return is_odd

    def geometric(self, count: int) -> IntVector:
        """How many coins of chance e^-1 come up before the first that does not."""
        number = np.zeros(count, np.int64)
        going = np.arange(count)
        while going.size:
            going = going[self.exponential_coins(np.ones(going.size, np.int64), 1)]
            number[going] += 1
        return number


def _discrete_laplace(draw: _Draws, scale: int, count: int) -> tuple[IntVector, _Flags]:
    """Integers with probability ∝ exp(-|x| / scale); where the flag is not set, none was found.

    Algorithm 2 of the source, one attempt each.
    """
    remainder = draw.below(scale, count)
    found = draw.exponential_coins(remainder, scale)
    size = remainder + scale * draw.geometric(count)
    negative = draw.below(2, count) == 1
    found &= ~(negative & (size == 0))  # or 0 would come up twice as often
    return np.where(negative, -size, size), found


def _accepted(draw: _Draws, candidates: IntVector, variance: int, scale: int) -> _Flags:
    """Coins of chance exp(-(|x| - σ²/t)² / 2σ²), algorithm 3 of the source, for scale t.

    The exponent as a fraction is (|x| t - σ²)² / (2 σ² t²). With σ² ≤ 2^27 and t ≤ σ + 1 the
    denominator stays below 2^55.1, and below 2^63 for the first 200 steps of a coin, of
    which the 26th is reached once in 10^26 times.
    """
    distance = np.abs(np.abs(candidates) * scale - variance)
    denominator = 2 * variance * scale * scale
    whole, rest = np.divmod(np.square(np.minimum(distance, _SQUARES_IN_64_BITS)), denominator)
    for at in np.flatnonzero(distance > _SQUARES_IN_64_BITS):  # far out, once in millions
        whole[at], rest[at] = divmod(int(distance[at]) ** 2, denominator)
    accepted = draw.exponential_coins(rest, denominator)
    # A factor e^-1 for each whole: as many coins in a row as the exponent has ones.
    asked = np.flatnonzero(accepted & (whole > 0))
    accepted[asked] = draw.geometric(asked.size) >= whole[asked]
    return accepted
