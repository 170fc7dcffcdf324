"""Bound what one device can contribute, so that noise can hide it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shared.errors import NonFiniteUpdate
from shared.types import FloatVector


@dataclass(frozen=True, slots=True)
class Clipped:
    """An update whose L2 norm is known to be bounded."""

    update: FloatVector
    norm_before: float
    scale: float

    @property
    def was_clipped(self) -> bool:
        """Whether the bound was exceeded."""
        return self.scale < 1.0


def clip_by_norm(update: FloatVector, max_norm: float) -> Clipped:
    r"""Scale ``update`` so that its L2 norm is at most ``max_norm``.

    The vector :math:`\Delta` becomes
    :math:`\Delta \cdot \min(1, S / \lVert\Delta\rVert_2)`. All tensors of an
    update are concatenated first: clipping tensor by tensor would bound a
    different quantity and needs different noise. The bound holds up to the
    rounding of float64, a relative 1e-15 or so, not exactly.

    Args:
        update: Change to the parameters, shape ``(count,)``. Left unmodified.
        max_norm: The bound :math:`S > 0`, in the units of the parameters.

    Returns:
        A new vector, the norm before clipping and the factor applied, in (0, 1].

    Raises:
        NonFiniteUpdate: ``update`` holds NaN or infinity, or numbers whose
            squares overflow. NaN compares false with every bound, so unchecked
            it would pass through *unclipped*.
        ValueError: ``max_norm`` is not a positive finite number.

    Source:
        McMahan et al., "Learning Differentially Private Recurrent Language
        Models", ICLR 2018, flat clipping. https://arxiv.org/abs/1710.06963

    Example:
        >>> clipped = clip_by_norm(np.array([3.0, 4.0]), max_norm=1.0)
        >>> clipped.norm_before, clipped.update.tolist()
        (5.0, [0.6000000000000001, 0.8])
    """
    if not (math.isfinite(max_norm) and max_norm > 0):
        raise ValueError(f"max_norm must be positive and finite, not {max_norm!r}")
    with np.errstate(over="ignore", invalid="ignore"):  # what they would warn of is refused below
        norm = math.sqrt(float(np.sum(np.square(update, dtype=np.float64))))
    if not math.isfinite(norm):
        raise NonFiniteUpdate("the update's norm is not finite")
    scale = min(1.0, max_norm / norm) if norm > 0 else 1.0
    return Clipped(update=update * scale, norm_before=norm, scale=scale)
