"""One round's gradient as whole numbers, under this device's share of discrete noise.

    I1  what an example adds has an L2 norm of at most ``integer_clip``, after rounding: a
        record's reach in the sum is exactly what is accounted for
    I2  every coordinate is held within ``coordinate_clamp`` before noise, which brings two
        neighbouring sums no farther apart, and never changed after it but by wrapping, so
        that the devices' sum is a function of the noised sum alone
    I3  a sample without examples is noise all the same
    I4  the same request on the same gradients gives the same integers
    I5  an example whose gradient is not finite adds nothing: to refuse would tell of it

Where devices are hidden instead of records the whole update takes the place of one gradient.

Rounding the *sum* of a device's gradients would add up to √d to the reach of a record; rounding
each of them costs a quarter of the dimension in its squared norm, which the clip covers.

Source:
    Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated
    Learning with Secure Aggregation", ICML 2021, algorithm 1 and section 4.2, with samples as
    in Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1.
    The random rotation of the former is left out: the range holds sixteen clips in
    every value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import numpy as np

from edge_agent.training.trainer import TrainRequest
from shared.privacy.discrete_gaussian import discrete_gaussians
from shared.privacy.release import ReleaseStream
from shared.types import FloatMatrix, FloatVector, IntVector

NOISE_STREAM: Final = "discrete noise"
ROUNDING_STREAM: Final = "example rounding"
"""Labels of the release seed's streams; rounding needs to be unbiased, and no secret."""

_SHRINK: Final = 0.98
"""How much shorter an example is made that rounding carried over the clip."""


def integer_step(
    gradients: Iterable[FloatMatrix], request: TrainRequest, *, parameters: int, magnitude: int
) -> IntVector:
    """Return the noised, negated sum of the sample's gradients, in integers.

    Args:
        gradients: Each example's gradient, in batches of shape (n, parameters); may be empty.
        request: Clips, clamp, noise and seed.
        parameters: Length of the vector.
        magnitude: Values wrap beyond ± this.

    Returns:
        Shape (parameters,), int64: a step *down* the gradient, in units of the clip
        divided by ``integer_clip``.
    """
    stream = ReleaseStream(request.seed)
    key = int.from_bytes(stream.words(ROUNDING_STREAM, 2).tobytes(), "little")
    rng = np.random.Generator(np.random.Philox(key=key))
    total = np.zeros(parameters, np.int64)
    for batch in gradients:
        total += rounded_within(batch, request, rng)
    held = np.clip(-total, -request.coordinate_clamp, request.coordinate_clamp)
    noise = discrete_gaussians(
        stream, NOISE_STREAM, variance=request.share_variance, count=parameters
    )
    return wrapped(held + noise, magnitude)


def rounded_within(
    gradients: FloatMatrix, request: TrainRequest, rng: np.random.Generator
) -> IntVector:
    """Return the sum of gradients, each clipped, scaled and rounded at random (I1, I5).

    Clipped a little below ``integer_clip``: rounding adds up to a quarter of the dimension to
    the squared norm. Examples that it carries beyond all the same are shortened and rounded
    again, so the bound holds always and not with high probability.

    Args:
        gradients: Shape (n, parameters).
        request: For ``clip_norm`` and ``integer_clip``.
        rng: Rounds.
    """
    bound = request.update_clip or request.clip_norm
    assert bound, "a request with an integer clip has one in real numbers"
    clip, per_unit = request.integer_clip, request.integer_clip / bound
    aim = math.sqrt(clip**2 - min(gradients.shape[1] / 4, 3 * clip**2 / 4))
    norms = _norms(gradients)
    finite = np.isfinite(norms)
    with np.errstate(divide="ignore"):
        scales = np.minimum(per_unit, np.where(norms > 0, aim / norms, per_unit))
    total = np.zeros(gradients.shape[1], np.int64)
    left = np.flatnonzero(finite)
    while left.size:
        scaled = gradients[left] * scales[left, None].astype(np.float32)
        rounded = np.floor(scaled + rng.random(scaled.shape, dtype=np.float32))
        fits = _norms(rounded) <= clip
        total += rounded[fits].sum(axis=0, dtype=np.float64).astype(np.int64)
        left = left[~fits]
        scales[left] *= _SHRINK
    return total


def wrapped(values: IntVector, magnitude: int) -> IntVector:
    """Return ``values`` modulo 2 · ``magnitude`` + 1, within ± ``magnitude``."""
    return np.asarray((values + magnitude) % (2 * magnitude + 1) - magnitude)


def _norms(rows: FloatMatrix) -> FloatVector:
    """L2 norms in float64: of whole numbers this short they are exact before the root."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1)))
