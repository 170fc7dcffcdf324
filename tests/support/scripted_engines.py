"""Engines that answer as they are told, in a time that is told too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coordinator.inference.engine import (
    EngineLoad,
    EngineState,
    Finished,
    GenerationRequest,
    ModelCard,
    Piece,
    Stream,
)
from shared.errors import LlmOsError
from shared.types import Digest

BASE = Digest("b" * 64)


class ScriptedEngine:
    """Has slots, and gives one token after the other.

    ``max_tokens`` of a request are generated, or as many as its prompt says when that is a number.
    """

    def __init__(
        self,
        *,
        slots: int = 1,
        token_s: Callable[[int], float] = lambda _active: 0.0,
        prompt_tokens: int = 10,
        base: Digest | None = BASE,
        name: str = "scripted",
    ) -> None:
        """``token_s`` gives the seconds of a token while so many requests are active."""
        self.slots = slots
        self.state = EngineState.READY
        self.active = 0
        self.most_active = 0
        self.closed_early = 0
        self.served: list[GenerationRequest] = []
        self.failure: LlmOsError | None = None
        self._token_s = token_s
        self._prompt_tokens = prompt_tokens
        self._base = base
        self._name = name

    @property
    def card(self) -> ModelCard:
        return ModelCard(
            self._name, stand_in=False, state=self.state, base=self._base, context_tokens=4096
        )

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(slots=self.slots, active=self.active)

    def start(self) -> None:
        """There is nothing to load."""

    def close(self) -> None:
        """There is nothing to end."""

    async def stream(self, request: GenerationRequest) -> Stream:
        prompt = request.prompt
        tokens = request.max_tokens
        if isinstance(prompt, str) and prompt.isdecimal():
            tokens = min(tokens, int(prompt))
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        self.served.append(request)
        finished = False
        try:
            if self.failure is not None:
                raise self.failure
            for number in range(tokens):
                await asyncio.sleep(self._token_s(self.active))
                yield Piece(f"{number} ")
            finished = True
            yield Finished("length", self._prompt_tokens, tokens)
        finally:
            self.active -= 1
            self.closed_early += not finished
