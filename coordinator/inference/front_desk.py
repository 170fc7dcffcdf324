"""Who is let in to a language model, in which order, and how much of it: between API and engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.inference.engine import Engine, GenerationRequest, Stream


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request is made.

    Attributes:
        name: Of the API key, or ``device:NAME``; fairness and quotas count by it.
        priority: Higher goes first; 0 is everybody's.
        tokens_per_minute: Of prompts and answers together; 0: no quota.
        public_cache: Whether what is computed for it may be used for others who say so too.
    """

    name: str
    priority: int = 0
    tokens_per_minute: int = 0
    public_cache: bool = False


class FrontDesk:
    """Lets requests through to engines by the name of the model."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        """``engines`` by the name of the model that each serves."""
        self.engines = engines

    def stream(self, caller: Caller, model: str, request: GenerationRequest) -> Stream:
        """Answer one request in its turn.

        Raises:
            KeyError: no engine serves ``model``.
            LlmOsError: as :meth:`~coordinator.inference.engine.Engine.stream`.
        """
        return self.engines[model].stream(request)
