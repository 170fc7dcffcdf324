"""An encoder without a model: texts with common words are alike. The same text, the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np

from coordinator.inference.encoder import Encoded, EncoderCard, Span
from coordinator.inference.engine import EngineState, ServedAdapter
from shared.models.adapter import Adapter
from shared.types import Digest

FEATURES = 64
BASE = Digest("b" * 64)


def embedded(text: str) -> np.ndarray:
    """Every word is a place; length 1."""
    row = np.zeros(FEATURES, np.float32)
    for word in text.lower().split():
        row[sha256(word.encode()).digest()[0] % FEATURES] += 1
    return row / max(float(np.linalg.norm(row)), 1e-9)


@dataclass
class WordEncoder:
    """An encoder that counts words, and a reader that finds the passage's word behind "is"."""

    card: EncoderCard = field(
        default_factory=lambda: EncoderCard(
            "words", EngineState.READY, base=BASE, features=FEATURES, max_tokens=512
        )
    )
    asked: list[str] = field(default_factory=list)

    async def embed(self, texts: Sequence[str]) -> Encoded:
        """Counts."""
        self.asked += texts
        tokens = sum(len(text.split()) for text in texts)
        return Encoded(np.stack([embedded(text) for text in texts]), tokens)

    async def classify(self, texts: Sequence[str], adapter: ServedAdapter) -> Encoded:
        """Counts through the adapter's head."""
        encoded = await self.embed(texts)
        return replace(encoded, values=Adapter.from_bytes(adapter.data).logits(encoded.values))

    async def read(
        self, question: str, passages: Sequence[str], *, answers: int, threshold: float | None = 0.0
    ) -> list[Span]:
        """The word behind "is", better the more words the passage shares with the question."""
        spans = []
        for number, passage in enumerate(passages):
            at = passage.find(" is ")
            score = float(embedded(question) @ embedded(passage)) - 0.1
            if at >= 0 and (threshold is None or score > threshold):
                start = at + len(" is ")
                end = (passage + " ").find(" ", start)
                spans.append(Span(number, start, end, passage[start:end], score))
        return sorted(spans, key=lambda span: -span.score)[:answers]
