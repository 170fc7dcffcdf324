"""The few names that every package uses, so that two identifiers are never swapped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NewType

import numpy as np
from numpy.typing import NDArray

DeviceId = NewType("DeviceId", str)
"""The name a device joined under; unique in one coordinator's registry."""

RunId = NewType("RunId", str)
"""One federated run: a job that was submitted once."""

RoundNumber = NewType("RoundNumber", int)
"""1, 2, 3, … within one run."""

Digest = NewType("Digest", str)
"""SHA-256 as 64 lower-case hexadecimal digits: the name of any blob."""

PublicKey = NewType("PublicKey", bytes)
"""A raw Ed25519 public key, 32 bytes."""

IntVector = NDArray[np.int64]
IntMatrix = NDArray[np.int64]
FloatVector = NDArray[np.float64]
FloatMatrix = NDArray[np.float32]
Tensors = Mapping[str, NDArray[Any]]
"""Parameters or a change to them, by name."""
