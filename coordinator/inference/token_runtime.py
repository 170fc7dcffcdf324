"""What runs a causal model inside an engine's own process: tokens in, tokens out, many at once.

R1  ``step`` never waits for work: with nothing to do it returns at once
R2  a request that is cancelled gives no further token, and its slot and room are free at the next step
R3  a request ends with exactly one token whose ``finish`` is set
R4  keys and values that were computed under one adapter or one ``share`` serve no other
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from coordinator.inference.engine import EngineLoad, FinishReason
from shared.models.adapter import Adapter


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request as the runtime takes it. What is not said here is as in ``GenerationRequest``.

    Attributes:
        number: Chosen by whoever asks; answers carry it.
        tokens: Of the prompt, at least one.
        max_tokens: At least 1, and prompt and answer fit into the context together.
        schema: A JSON schema as text, or ``None``.
    """

    number: int
    tokens: Sequence[int]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    logprobs: int | None = None
    schema: str | None = None
    adapter: Adapter | None = None
    share: str = ""


@dataclass(frozen=True, slots=True)
class Emitted:
    """One token of one answer.

    Attributes:
        number: Of the request.
        token: That was chosen.
        logprob: Its natural log probability at temperature 1; 0 unless asked for.
        likeliest: Tokens and log probabilities of the likeliest in its place, likeliest first.
        finish: Set with the last token: ``stop`` when it ended the turn, ``length`` when it is
            the last that was allowed.
        cached_tokens: Of the prompt, that were not computed again; said with the first token.
    """

    number: int
    token: int
    logprob: float = 0.0
    likeliest: Sequence[tuple[int, float]] = ()
    finish: FinishReason | None = None
    cached_tokens: int = 0


class TokenRuntime(Protocol):
    """A causal model in memory with slots for several requests."""

    context_tokens: int
    """Prompt and answer together."""
    ends: tuple[int, ...]
    """Tokens that end a turn."""
    lacks: frozenset[str]
    """Fields of ``GenerationRequest`` that it cannot serve."""

    @property
    def load(self) -> EngineLoad:
        """How busy it is; ``restarts`` is the parent's."""
        ...

    def submit(self, request: TokenRequest) -> None:
        """Take a request; it waits until there is a slot and room for its keys and values.

        Raises:
            PromptRefused: it would not fit even if it were alone, or the schema cannot be followed.
            ModelError: the adapter was trained on another base, or has no place in this one.
        """
        ...

    def cancel(self, number: int) -> None:
        """Forget a request (R2); nothing happens if it is over or was never there."""
        ...

    def step(self) -> Sequence[Emitted]:
        """Read prompts and generate at most one token for each request, and return these (R1)."""
        ...

    def close(self) -> None:
        """Give back what the process's end would not."""
        ...
