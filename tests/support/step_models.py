"""A step model without a model: what follows is a hash of what a row holds.

So a row that was mixed up, cut or computed under another adapter shows in the very next token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from coordinator.inference.step_model import KeysAndValues, Logits
from shared.errors import ModelError
from shared.models.adapter import Adapter
from shared.types import FloatMatrix

END = 0


def after(tokens: Sequence[int], adapter: str = "", *, vocabulary: int = 64) -> Logits:
    """Logits of what follows ``tokens``, shape (V,): the oracle."""
    seed = hashlib.sha256(repr((list(tokens), adapter)).encode()).digest()[:8]
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little")))
    return rng.normal(size=vocabulary).astype(np.float32)


class HashModel:
    """Keeps tokens where a model keeps keys and values."""

    def __init__(self, *, vocabulary: int = 64, context_tokens: int = 4096) -> None:
        self.vocabulary = vocabulary
        self.context_tokens = context_tokens
        self.ends: tuple[int, ...] = (END,)
        self.bytes_per_token = 4
        self.reserved: list[tuple[int, int]] = []
        self.read_at_once: list[int] = []
        self.decoded_at_once: list[int] = []
        self._held = np.full((0, 0), -1, np.int64)
        self._adapters: list[str] = []

    def reserve(self, rows: int, tokens: int) -> None:
        self.reserved.append((rows, tokens))
        old, self._held = self._held, np.full((rows, tokens), -1, np.int64)
        some, length = min(rows, old.shape[0]), min(tokens, old.shape[1])
        self._held[:some, :length] = old[:some, :length]
        self._adapters = [*self._adapters[:rows], *[""] * (rows - len(self._adapters))]

    def check(self, adapter: Adapter) -> None:
        if adapter.shape.method == "none":
            raise ModelError("no place for it")

    def place(self, row: int, adapter: Adapter | None) -> None:
        self._adapters[row] = adapter.digest if adapter is not None else ""

    def move(self, source: int, target: int, tokens: int) -> None:
        self._held[target] = -1
        self._held[target, :tokens] = self._held[source, :tokens]
        self._held[source] = -1
        self._adapters[target] = self._adapters[source]

    def read(self, row: int, tokens: Sequence[int], past: int) -> Logits:
        self.read_at_once.append(len(tokens))
        self._held[row, past : past + len(tokens)] = tokens
        return self._after(row, past + len(tokens))

    def decode(self, tokens: Sequence[int], past: Sequence[int]) -> FloatMatrix:
        self.decoded_at_once.append(len(tokens))
        for row, (token, length) in enumerate(zip(tokens, past, strict=True)):
            self._held[row, length] = token
        return np.stack([self._after(row, length + 1) for row, length in enumerate(past)])

    def _after(self, row: int, length: int) -> Logits:
        held = self._held[row, :length].tolist()
        return after(held, self._adapters[row], vocabulary=self.vocabulary)

    def take(self, row: int, start: int, end: int) -> KeysAndValues:
        part = self._held[row, start:end].astype(np.float32)
        return part[None, None, :, None].copy()

    def put(self, row: int, start: int, kept: KeysAndValues) -> None:
        part = kept[0, 0, :, 0]
        self._held[row, start : start + len(part)] = part
