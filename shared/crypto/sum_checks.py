"""What every scheme checks about vectors, keys and totals, in the same words."""

from __future__ import annotations

import numpy as np

from shared.crypto.sum_cipher import SumContext, SumLayout, key_id_of
from shared.errors import ShapeMismatch, SumOutOfRange, WrongKey
from shared.types import IntVector


def check_values(values: IntVector, layout: SumLayout) -> None:
    """Refuse what a device must not encrypt. Raises ShapeMismatch or ValueError."""
    if values.shape != (layout.count,):
        raise ShapeMismatch(f"a vector of shape {values.shape}, not of {layout.count} values")
    if not np.issubdtype(values.dtype, np.signedinteger):
        raise ValueError(f"values must be signed integers, not {values.dtype}")
    if values.max() > layout.magnitude or values.min() < -layout.magnitude:
        raise ValueError(f"values must lie within ±{layout.magnitude}")


def check_key(key: bytes, context: SumContext) -> None:
    """Refuse a key that ``context`` does not name. Raises WrongKey."""
    if key_id_of(key) != context.key_id:
        raise WrongKey(f"this key is not the one of round {context.round}, {context.key_id}")


def check_room(devices: int, layout: SumLayout) -> None:
    """Refuse a contribution too many. Raises SumOutOfRange."""
    if devices >= layout.max_devices:
        raise SumOutOfRange(
            f"the total holds {devices} contributions, and the run allows no more: "
            "with more, one value's sum could run into its neighbour's"
        )


def check_range(values: IntVector, layout: SumLayout, devices: int) -> None:
    """Refuse a sum that ``devices`` honest contributions cannot reach. Raises SumOutOfRange."""
    bound = devices * layout.magnitude
    if np.any(np.abs(values) > bound):
        raise SumOutOfRange(
            f"the total holds a value that {devices} honest contributions cannot reach (±{bound})"
        )
