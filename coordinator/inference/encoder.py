"""What a model of texts (an encoder such as MiniLM or BERT) is to the rest of the coordinator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from coordinator.inference.engine import EngineState, ServedAdapter
from shared.types import Digest, FloatMatrix


@dataclass(frozen=True, slots=True)
class EncoderCard:
    """What is served.

    Attributes:
        name: As requests call it.
        state: Whether it answers.
        reason: Why it failed; empty otherwise.
        base: SHA-256 of its weights, which adapters name; ``None`` until it is loaded.
        features: F, the width of an embedding; ``None`` until it is loaded.
        max_tokens: Of one text; what is longer is cut.
        reads_answers: Whether it can find answers in passages: it has a head for spans.
    """

    name: str
    state: EngineState
    reason: str = ""
    base: Digest | None = None
    features: int | None = None
    max_tokens: int | None = None
    reads_answers: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of n texts."""

    values: FloatMatrix
    """Embeddings, shape (n, F), each of length 1; or logits, shape (n, C)."""
    tokens: int
    """That were read."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where in a passage an answer stands."""

    passage: int
    """Which of the passages, from 0."""
    start: int
    """First character."""
    end: int
    """Behind the last character."""
    text: str
    score: float
    """Logit of the start plus logit of the end, less those of "no answer"."""


class Encoder(Protocol):
    """A model of texts, in this process's children or on another node."""

    @property
    def card(self) -> EncoderCard:
        """What is served, and whether it answers. Returns at once."""
        ...

    async def embed(self, texts: Sequence[str]) -> Encoded:
        """Features of texts, with no adapter in place.

        Raises:
            EngineBusy: it is loading, or too many wait already.
            EngineError: it could not be loaded, or no node answers.
            DataError: a text cannot be tokenised.
        """
        ...

    async def classify(self, texts: Sequence[str], adapter: ServedAdapter) -> Encoded:
        """Logits of texts, (n, C) in the order of the adapter's labels.

        Raises:
            EngineBusy, EngineError, DataError: as :meth:`embed`.
            ModelError: the adapter does not belong to this model, or has no labels.
        """
        ...

    async def read(
        self,
        question: str,
        passages: Sequence[str],
        *,
        answers: int,
        threshold: float | None = 0.0,
    ) -> list[Span]:
        """The best spans that answer a question, best first; none where there is no answer.

        Args:
            question: One question.
            passages: Where to look, each of any length.
            answers: At most so many, of which no two overlap.
            threshold: A span must score higher; ``None``: the best are given even where
                "no answer" scores higher.

        Raises:
            EngineBusy, EngineError, DataError: as :meth:`embed`.
            ModelError: it has no head for spans.
        """
        ...
