"""A causal model that computes one step for several requests: what slots are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.models.adapter import Adapter
from shared.types import FloatMatrix

KeysAndValues = NDArray[np.float32]
"""Of n tokens in all layers, shape (2 L, H, n, S): keys and values of layer 0, of layer 1, …"""


Logits = NDArray[np.float32]
"""Of one row, shape (V,)."""


class StepModel(Protocol):
    """Rows of keys and values, and the model that reads and extends them.

    A row holds one request. Rows count from 0; a decoding step takes the first B of them.
    """

    context_tokens: int
    vocabulary: int
    """V."""
    ends: tuple[int, ...]
    """Tokens that end a turn."""
    bytes_per_token: int
    """Of keys and values."""

    def reserve(self, rows: int, tokens: int) -> None:
        """Have room for so many rows of so many tokens each; what the rows hold stays.

        A row may lose room that it does not use.
        """
        ...

    def check(self, adapter: Adapter) -> None:
        """Raise ModelError where the adapter has no place in this model."""
        ...

    def place(self, row: int, adapter: Adapter | None) -> None:
        """Let a row be computed with an adapter from now on."""
        ...

    def move(self, source: int, target: int, tokens: int) -> None:
        """Let ``target`` hold what ``source`` holds, its adapter and so many tokens."""
        ...

    def read(self, row: int, tokens: Sequence[int], past: int) -> Logits:
        """Put tokens behind the ``past`` ones of a row; logits of what follows, shape (V,)."""
        ...

    def decode(self, tokens: Sequence[int], past: Sequence[int]) -> FloatMatrix:
        """Put one token into each of the first B rows; logits of what follows, shape (B, V).

        Args:
            tokens: B of them.
            past: How many tokens each row holds already.
        """
        ...

    def take(self, row: int, start: int, end: int) -> KeysAndValues:
        """Copy keys and values of some tokens out of a row."""
        ...

    def put(self, row: int, start: int, kept: KeysAndValues) -> None:
        """Copy keys and values into a row."""
        ...
