"""Who is let in to a language model, in which order, and how much of it: between API and engine.

D1  an engine is given no more requests at once than it has slots; the rest wait here, where a
    fair line decides who is next (:mod:`coordinator.inference.fair_queue`)
D2  what waits is bounded, for each caller and for all: beyond that, and beyond a caller's quota,
    a request is refused at once, with the seconds after which to try again
D3  a stream that is closed leaves the line at once, or ends the engine's work
D4  a slot is free again when the engine has finished, however slowly the answer is fetched

No request is handed to an engine ahead of a free slot. That may leave a slot idle for a step
between two answers, some hundredth of an answer's time, and keeps a polite caller from standing
behind what a greedy one has parked in the engine.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

from coordinator.inference.answer_cache import Answer, AnswerCache
from coordinator.inference.engine import Engine, Finished, GenerationRequest, Piece, Stream
from coordinator.inference.token_bucket import Quotas
from coordinator.inference.waiting_line import DeskLimits, Place, WaitingLine
from shared.errors import (
    EngineBusy,
    ModelError,
    PromptRefused,
    ProtocolError,
    QuotaExceeded,
)

BYTES_A_TOKEN: Final = 4
"""Of text as UTF-8, so a Chinese character is most of a token: near enough until it is counted."""

Outcome = Literal[
    "stop", "length", "cached", "busy", "quota", "timeout", "cancelled", "refused", "failed"
]
"""How a request ended. ``busy``, ``quota`` and ``timeout`` were turned away; ``refused`` cannot be
answered as it was asked; ``failed`` is what the engine owed; ``cancelled`` nobody waited for."""


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

    @property
    def scope(self) -> str:
        """Who may profit from what was computed for it: this caller, or all who said so."""
        return "public" if self.public_cache else f"of {self.name}"


@dataclass(frozen=True, slots=True)
class Served:
    """What became of one request, for whoever counts.

    Attributes:
        model: That was asked.
        caller: Who asked.
        outcome: How it ended.
        waited_s: From asking to being let in; ``None`` if it never was.
        first_s: From asking to the first piece; ``None`` if none came.
        total_s: From asking to the end.
        finished: Usage, if it was answered whole.
    """

    model: str
    caller: str
    outcome: Outcome
    waited_s: float | None
    first_s: float | None
    total_s: float
    finished: Finished | None


class Meter(Protocol):
    """Counts what happens at the desk. Called on any thread; returns at once."""

    def served(self, what: Served) -> None:
        """A request is over, however it ended."""
        ...

    def looked_up(self, model: str, *, hit: bool) -> None:
        """An answer was looked for in the cache."""
        ...


class _NobodyCounts:
    def served(self, what: Served) -> None:
        pass

    def looked_up(self, model: str, *, hit: bool) -> None:
        pass


@dataclass(slots=True, eq=False)
class _Visit:
    """A request at the desk, from being asked to its end. Its own event loop alone touches it."""

    model: str
    caller: Caller
    asked_at: float
    prompt_tokens: int
    """Estimated."""
    estimate: int
    """Of prompt and answer together."""
    reserved: bool = False
    place: Place | None = None
    first_at: float | None = None
    outcome: Outcome = "cancelled"
    generated: int = 0
    finished: Finished | None = None

    @property
    def used(self) -> int:
        """Tokens of prompt and answer so far."""
        if self.finished is not None:
            return self.finished.prompt_tokens + self.finished.completion_tokens
        if self.place is None or self.place.let_in_at is None:
            return 0
        # Broken off. Before the first piece the prompt may have been read or not; whoever breaks
        # off is not given it, or asking and hanging up would cost nothing.
        return self.prompt_tokens + self.generated

    @property
    def cost(self) -> int:
        """Of these, what was computed."""
        return max(0, self.used - (self.finished.cached_tokens if self.finished else 0))


class FrontDesk:
    """Lets requests through to engines by the name of the model. Safe on any thread and loop."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        *,
        limits: DeskLimits | None = None,
        cache: AnswerCache | None = None,
        meter: Meter | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the desk.

        Args:
            engines: By the name of the model that each serves.
            limits: What may wait before each of them.
            cache: Of exact answers; ``None`` remembers none.
            meter: Told what became of every request.
            now: Seconds on a clock that does not go back.
        """
        self.engines = engines
        self._limits = limits or DeskLimits()
        self._cache = cache
        self._meter = meter or _NobodyCounts()
        self._now = now
        self._quotas = Quotas(now)
        self._lines: dict[str, WaitingLine] = {}
        self._lock = threading.Lock()

    def stream(self, caller: Caller, model: str, request: GenerationRequest) -> Stream:
        """Answer one request in its turn, or at once with what was answered before.

        An empty ``request.share`` becomes the caller's scope: prompts that begin alike are
        computed once for each caller, or once for all who said that they do not mind.

        Raises:
            KeyError: no engine serves ``model``; at once.
            EngineBusy: too much waits already, or it has waited too long.
            QuotaExceeded: the caller's tokens are used up.
            LlmOsError: as :meth:`~coordinator.inference.engine.Engine.stream`.
        """
        engine = self.engines[model]
        shared = request if request.share else replace(request, share=caller.scope)
        return self._answer(engine, caller, model, shared)

    def waiting(self, model: str) -> int:
        """Requests that wait here for an engine."""
        return self._line(model).waiting

    def serving(self, model: str) -> int:
        """Requests that an engine was given and has not finished."""
        return self._line(model).serving

    def _line(self, model: str) -> WaitingLine:
        with self._lock:
            if model not in self._lines:
                engine = self.engines[model]
                self._lines[model] = WaitingLine(model, engine, self._limits, self._now)
            return self._lines[model]

    async def _answer(
        self, engine: Engine, caller: Caller, model: str, request: GenerationRequest
    ) -> Stream:
        asked_at = self._now()
        key: bytes | None = None
        if self._cache is not None:
            key = self._cache.key(engine.card.base, caller.scope, request)
        if self._cache is not None and key is not None:
            known = await self._cache.get(key, request)
            self._meter.looked_up(model, hit=known is not None)
            if known is not None:
                async with aclosing(self._replay(known, caller, model, asked_at)) as events:
                    async for event in events:
                        yield event
                return
        prompt_tokens = estimated_prompt_tokens(request)
        visit = _Visit(
            model, caller, asked_at, prompt_tokens, estimate=prompt_tokens + request.max_tokens
        )
        try:
            async with aclosing(self._serve(visit, engine, request, key)) as events:
                async for event in events:
                    yield event
        except Exception as err:
            visit.outcome = _outcome(err, visit)
            raise
        finally:
            self._tell(visit)

    async def _replay(self, known: Answer, caller: Caller, model: str, asked_at: float) -> Stream:
        """An answer from the cache. It is no work and touches neither line nor quota."""
        end = replace(known.finished, cached_tokens=known.finished.prompt_tokens)
        took_s = self._now() - asked_at
        self._meter.served(Served(model, caller.name, "cached", None, took_s, took_s, end))
        for piece in known.pieces:
            yield piece
        yield end

    async def _serve(
        self, visit: _Visit, engine: Engine, request: GenerationRequest, key: bytes | None
    ) -> Stream:
        caller, line = visit.caller, self._line(visit.model)
        self._quotas.reserve(caller.name, caller.tokens_per_minute, visit.estimate)
        visit.reserved = True
        reader: asyncio.Task[None] | None = None
        try:
            place = visit.place = line.enter(
                caller.name,
                priority=caller.priority,
                cost=visit.estimate,
                size=prompt_bytes(request),
            )
            await line.let_in(place)
            # Read by a task of its own (D4); what piles up is one answer at most.
            events: asyncio.Queue[Piece | Finished | Exception] = asyncio.Queue()
            reader = asyncio.create_task(
                self._read(visit, line, engine.stream(request), events, key)
            )
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    if isinstance(event, EngineBusy) and event.retry_after_s is None:
                        event.retry_after_s = line.pause_s(caller.name)
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            if reader is not None:
                reader.cancel()
                await asyncio.wait({reader})
            self._over(visit, line)

    async def _read(
        self,
        visit: _Visit,
        line: WaitingLine,
        stream: Stream,
        events: asyncio.Queue[Piece | Finished | Exception],
        key: bytes | None,
    ) -> None:
        """Take the engine's answer as fast as it comes, and give the slot back behind it."""
        pieces: list[Piece] = []
        end: Finished | Exception
        try:
            end = await self._read_on(visit, stream, events, pieces)
        except Exception as err:  # noqa: BLE001  it belongs to whoever reads the other side
            end = err
            # Nothing of what failed is charged: the fault was not the caller's, or it was
            # found before anything was computed.
            visit.prompt_tokens = visit.generated = 0
        else:
            visit.finished, visit.outcome = end, end.finish_reason
            if self._cache is not None and key is not None:
                self._cache.put(key, Answer(tuple(pieces), end))
        self._over(visit, line)
        events.put_nowait(end)

    async def _read_on(
        self,
        visit: _Visit,
        stream: Stream,
        events: asyncio.Queue[Piece | Finished | Exception],
        pieces: list[Piece],
    ) -> Finished:
        async with aclosing(stream):
            async for event in stream:
                if visit.first_at is None:
                    visit.first_at = self._now()
                if isinstance(event, Finished):
                    return event
                visit.generated += max(1, len(event.logprobs))
                pieces.append(event)
                events.put_nowait(event)
        raise AssertionError("a stream without an end")

    def _over(self, visit: _Visit, line: WaitingLine) -> None:
        """Give back place, slot and what was reserved. A second time nothing happens."""
        if visit.place is not None:
            line.leave(visit.place, cost=visit.cost)
        if visit.reserved:
            visit.reserved = False
            self._quotas.settle(visit.caller.name, reserved=visit.estimate, used=visit.used)

    def _tell(self, visit: _Visit) -> None:
        let_in_at = visit.place.let_in_at if visit.place is not None else None
        self._meter.served(
            Served(
                visit.model,
                visit.caller.name,
                visit.outcome,
                None if let_in_at is None else let_in_at - visit.asked_at,
                None if visit.first_at is None else visit.first_at - visit.asked_at,
                self._now() - visit.asked_at,
                visit.finished,
            )
        )


def prompt_bytes(request: GenerationRequest) -> int:
    """Of its text as UTF-8; tokens count as four."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return len(prompt.encode(errors="surrogatepass"))
    return sum(
        BYTES_A_TOKEN if isinstance(part, int) else len(part.content.encode(errors="surrogatepass"))
        for part in prompt
    )


def estimated_prompt_tokens(request: GenerationRequest) -> int:
    """Before anybody has counted; at least 1."""
    return max(1, prompt_bytes(request) // BYTES_A_TOKEN)


def _outcome(err: Exception, visit: _Visit) -> Outcome:
    match err:
        case QuotaExceeded():
            return "quota"
        case EngineBusy() if visit.place is not None and visit.place.let_in_at is None:
            return "timeout"
        case EngineBusy():
            return "busy"
        case PromptRefused() | ModelError() | ProtocolError():
            return "refused"
        case _:
            return "failed"
