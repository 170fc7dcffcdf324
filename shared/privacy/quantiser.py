"""Real numbers as small integers, whose sums are exact, and the sums back again.

    Q1  the integer of a value inside the range is unbiased: its mean over the uniform
        number that rounds it is the value itself
    Q2  it is less than one step away from the value
    Q3  a value outside the range becomes the range's end and is counted; nothing wraps
    Q4  the same values and the same uniform numbers give the same integers, so a device
        that restarts repeats its release instead of making a second one

A count of saturated values is derived from records: it may be shown to the
device's owner, and leaves the device only inside a noised, encrypted sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shared.errors import NonFiniteUpdate
from shared.types import FloatVector, IntVector

WIDTHS = (8, 12, 16)
"""Bits that one value may have."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """Integers within ± the magnitude, and how many values lay outside the range."""

    values: IntVector
    saturated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiser:
    """Both halves of quantisation: devices quantise, whoever opened a sum dequantises it.

    Attributes:
        bits: Bits of one integer, sign included: 8, 12 or 16.
        value_range: Values beyond ± this are saturated. In the values' unit, > 0.
    """

    bits: int = 12
    value_range: float

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS:
            raise ValueError(f"bits must be one of {WIDTHS}, not {self.bits!r}")
        if not (math.isfinite(self.value_range) and self.value_range > 0 and self.step > 0):
            raise ValueError(f"value_range must be positive and finite, not {self.value_range!r}")

    @property
    def magnitude(self) -> int:
        """The largest integer; the smallest is its negative, so that signs are treated alike."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def step(self) -> float:
        """What one unit of the integers stands for."""
        return self.value_range / self.magnitude

    def quantise(self, values: FloatVector, uniforms: FloatVector) -> Quantised:
        r"""Round every value to one of its two neighbours at random, by the caller's numbers.

        :math:`q = \lfloor x / s + u \rfloor` for the step :math:`s` and
        :math:`u` uniform on [0, 1), so :math:`E[s q] = x` (Q1). Rounding *after*
        noise was added is post-processing and costs no ε; rounding a sum's parts
        before noise can lengthen a record's contribution, which the noise then
        has to cover.

        Args:
            values: Shape ``(count,)``, finite.
            uniforms: As many numbers in [0, 1), each used once (Q4).

        Raises:
            NonFiniteUpdate: ``values`` holds NaN or infinity, which no integer stands for.
            ValueError: ``uniforms`` has another shape or leaves [0, 1).
        """
        if values.shape != uniforms.shape:
            raise ValueError(f"{uniforms.shape} uniform numbers for {values.shape} values")
        if not np.all((uniforms >= 0) & (uniforms < 1)):
            raise ValueError("uniforms must lie in [0, 1)")
        if not np.all(np.isfinite(values)):
            raise NonFiniteUpdate("the update holds NaN or infinity")
        saturated = int(np.count_nonzero(np.abs(values) > self.value_range))
        inside = np.clip(values, -self.value_range, self.value_range)
        levels = np.floor(inside / self.step + uniforms)
        # At the ends themselves the division's last bit decides, one level off either way.
        ends = np.abs(values) >= self.value_range
        levels[ends] = np.copysign(self.magnitude, values[ends])
        levels = np.clip(levels, -self.magnitude, self.magnitude)
        return Quantised(values=levels.astype(np.int64), saturated=saturated)

    def dequantise(self, total: IntVector) -> FloatVector:
        """What an exact sum of integers stands for: the sum of the rounded values."""
        return np.asarray(total, dtype=np.float64) * self.step
