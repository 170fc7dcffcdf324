"""A language model that says what a test tells it to, and keeps what became of its requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from coordinator.api.app import Services, create_app
from coordinator.inference.engine import (
    Alternative,
    Engine,
    EngineLoad,
    EngineState,
    Finished,
    FinishReason,
    GenerationRequest,
    ModelCard,
    Piece,
    Stream,
    TokenLogprob,
)
from coordinator.inference.front_desk import FrontDesk
from shared.errors import LlmOsError, RunNotFound
from shared.loopback import LOOPBACK, served
from shared.types import Digest, RunId

TOKEN = "secret"  # noqa: S105  of tests
BASE = Digest("ab" * 32)


def token(text: str | bytes, logprob: float = -0.5, *others: Alternative) -> TokenLogprob:
    """A token that was chosen, among ``others``."""
    chosen = alternative(text, logprob)
    return TokenLogprob(chosen, (chosen, *others))


def alternative(text: str | bytes, logprob: float) -> Alternative:
    """A token that could stand in a place."""
    data = text if isinstance(text, bytes) else text.encode()
    return Alternative(data.decode(errors="replace"), data, logprob)


@dataclass
class ScriptedEngine:
    """An :class:`~coordinator.inference.engine.Engine`. Its public attributes are the script.

    It is used from a server's thread and watched from the test's.
    """

    name: str = "scripted"
    pieces: Sequence[Piece | str] = ("Hello", ", ", "world")
    says: Callable[[GenerationRequest], Sequence[Piece | str]] | None = None
    """What it says to one request, in place of ``pieces``."""
    finish_reason: FinishReason = "stop"
    prompt_tokens: int = 7
    cached_tokens: int = 3
    stand_in: bool = False
    state: EngineState = EngineState.READY
    lacks: frozenset[str] = frozenset()

    fails: LlmOsError | None = None
    fails_after: int = 0
    """Pieces that it says before ``fails``."""
    holds_after: int | None = None
    """Pieces that it says before it waits for ``go``."""
    go: threading.Event = field(default_factory=threading.Event)

    requests: list[GenerationRequest] = field(default_factory=list)
    """In the order in which they began."""
    active: int = 0
    """Requests that have begun and not ended, one way or the other."""
    finished: int = 0
    cancelled: int = 0
    """Requests whose stream was closed, or whose reader was cancelled, before the end."""
    started: bool = False
    closed: bool = False

    @property
    def card(self) -> ModelCard:
        """What is served."""
        base = BASE if self.state is EngineState.READY else None
        return ModelCard(
            self.name, self.stand_in, self.state, base=base, context_tokens=512, lacks=self.lacks
        )

    @property
    def load(self) -> EngineLoad:
        """How busy it is."""
        return EngineLoad(slots=64, active=self.active)

    def start(self) -> None:
        """It was asked to begin."""
        self.started = True

    def close(self) -> None:
        """It was asked to end."""
        self.closed = True

    async def stream(self, request: GenerationRequest) -> Stream:
        """Say what the script says."""
        self.requests.append(request)
        self.active += 1
        over = False
        try:
            said = self.pieces if self.says is None else self.says(request)
            cached = self.cached_tokens
            for number, piece in enumerate(said):
                await self._wait(number)
                yield Piece(piece) if isinstance(piece, str) else piece
            await self._wait(len(said))
            over = True
            yield Finished(self.finish_reason, self.prompt_tokens, len(said), cached)
            self.finished += 1
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += not over
            raise
        finally:
            self.active -= 1

    async def _wait(self, said: int) -> None:
        if self.fails is not None and said >= self.fails_after:
            raise self.fails
        if self.holds_after is not None and said >= self.holds_after:
            while not self.go.is_set():  # noqa: ASYNC110  it is set on another thread
                await asyncio.sleep(0.002)
        await asyncio.sleep(0)  # as a real one, it lets others have their turn


def services_of(engines: Sequence[Engine], adapters: Mapping[str, bytes] | None = None) -> Services:
    """What the routes may call when nothing but language models is asked for."""
    nothing: Any = None

    def adapter_of(run: RunId) -> bytes:
        try:
            return (adapters or {})[run]
        except KeyError as err:
            raise RunNotFound(f"no run named {run}") from err

    return Services(
        store=nothing,
        fleet=nothing,
        coordinator=nothing,
        key_holder=None,
        broker=(LOOPBACK, 1883),
        admin_token=TOKEN,
        now=lambda: 0.0,
        stop_run=nothing,
        is_ready=lambda: True,
        desk=FrontDesk({engine.card.name: engine for engine in engines}),
        adapter_of=adapter_of,
    )


@contextmanager
def serving(*engines: Engine, adapters: Mapping[str, bytes] | None = None) -> Iterator[str]:
    """A coordinator's HTTP API in front of ``engines``; gives the URL of ``/v1``."""
    app = create_app(services_of(engines, adapters))
    with served(app, 0, extra="coordinator") as port:
        yield f"http://{LOOPBACK}:{port}/v1"
