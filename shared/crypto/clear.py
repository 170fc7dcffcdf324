"""Sums in clear: for simulations, for silos that trust their coordinator, and as an oracle.

It protects nothing: whoever holds a frame reads the update in it. Everything
else is as the contract says, so that a run which works in clear works encrypted.
A contribution's values are also checked one by one, which no encrypted scheme can do.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from shared.crypto.sum_checks import check_key, check_range, check_room, check_values
from shared.crypto.sum_cipher import KeyPair, Scheme, SumContext, SumLayout
from shared.crypto.sum_frame import FrameFormat, Kind
from shared.errors import CohortTooSmall, UndecodableMessage
from shared.types import IntVector

_VALUE: Final[dict[int, np.dtype[Any]]] = {
    8: np.dtype("<i1"),
    12: np.dtype("<i2"),
    16: np.dtype("<i2"),
}
_SUM: Final = np.dtype("<i4")
"""Wide enough for 256 values of 16 bits."""


class ClearSum:
    """The devices' and adders' side."""

    scheme: Final = Scheme.CLEAR

    def __init__(self, layout: SumLayout) -> None:
        self.layout: Final = layout
        self.parameter_set: Final = f"clear-{layout.bits}"
        self._contribution = FrameFormat(
            kind=Kind.CONTRIBUTION,
            scheme=self.scheme,
            parameter_set=self.parameter_set,
            count=layout.count,
            payload_bytes=layout.count * _VALUE[layout.bits].itemsize,
        )
        self.total_format: Final = FrameFormat(
            kind=Kind.TOTAL,
            scheme=self.scheme,
            parameter_set=self.parameter_set,
            count=layout.count,
            payload_bytes=layout.count * _SUM.itemsize,
        )

    def frame_bytes(self) -> int:
        """Exact length of one contribution frame."""
        return self._contribution.frame_bytes

    def encrypt(self, values: IntVector, *, public_key: bytes, context: SumContext) -> bytes:
        """Frame ``values`` as they are."""
        check_values(values, self.layout)
        check_key(public_key, context)
        payload = values.astype(_VALUE[self.layout.bits]).tobytes()
        return self._contribution.wrap(payload, context=context, devices=1)

    def begin(self, context: SumContext) -> ClearTotal:
        """Start an empty total."""
        return ClearTotal(self, context)

    def read(self, frame: bytes, context: SumContext) -> IntVector:
        """The values of one contribution frame; raises as ``Total.add``."""
        payload = self._contribution.unwrap(frame, context=context, devices=1)
        values = np.frombuffer(payload, dtype=_VALUE[self.layout.bits]).astype(np.int64)
        if np.any(np.abs(values) > self.layout.magnitude):
            raise UndecodableMessage(f"a value lies outside ±{self.layout.magnitude}")
        return values


class ClearTotal:
    """A running sum in clear."""

    def __init__(self, cipher: ClearSum, context: SumContext) -> None:
        self._cipher = cipher
        self._context = context
        self._sum = np.zeros(cipher.layout.count, dtype=np.int64)
        self._devices = 0

    @property
    def devices(self) -> int:
        """How many frames are in it."""
        return self._devices

    def add(self, frame: bytes) -> None:
        """Add one contribution, or leave the total as it was."""
        check_room(self._devices, self._cipher.layout)
        self._sum = self._sum + self._cipher.read(frame, self._context)
        self._devices += 1

    def dump(self) -> bytes:
        """The sum and how many are in it."""
        if self._devices == 0:
            raise CohortTooSmall(present=0, required=1)
        payload = self._sum.astype(_SUM).tobytes()
        return self._cipher.total_format.wrap(payload, context=self._context, devices=self._devices)


class ClearOpener:
    """The side of whoever reads totals; there is no secret."""

    def __init__(self, layout: SumLayout) -> None:
        self._cipher = ClearSum(layout)

    def new_key_pair(self) -> KeyPair:
        """Two empty halves: everybody opens."""
        return KeyPair(public=b"", secret=b"")

    def open(
        self, total: bytes, *, secret_key: bytes, context: SumContext, devices: int
    ) -> IntVector:
        """Read a total, checking what the encrypted schemes check."""
        check_key(secret_key, context)  # both halves are empty, so one name fits both
        payload = self._cipher.total_format.unwrap(total, context=context, devices=devices)
        values = np.frombuffer(payload, dtype=_SUM).astype(np.int64)
        check_range(values, self._cipher.layout, devices)
        return values
