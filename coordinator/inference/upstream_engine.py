"""A language model that other machines serve: any that speak OpenAI's API, vLLM and ours included.

U1  a node that fails costs what it was answering; all else goes to the others
U3  whoever stops reading closes the connection to the node

U2 and U4 are in :mod:`~coordinator.inference.upstream_nodes`, N1 to N4 in
:mod:`~coordinator.inference.node_pool`, W1 to W3 in
:mod:`~coordinator.inference.upstream_wire`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

import httpx

from coordinator.inference.engine import (
    EngineLoad,
    Finished,
    GenerationRequest,
    ModelCard,
    Piece,
    Stream,
)
from coordinator.inference.node_pool import spread
from coordinator.inference.upstream_nodes import (
    MAX_LISTING_BYTES,
    OverNodes,
    Patience,
    bounded,
    patient,
)
from coordinator.inference.upstream_wire import (
    DONE,
    AdapterNames,
    AnswerReader,
    EventReader,
    Node,
    body_of,
    model_name,
    refusal,
)
from shared.errors import ChildDied, EngineError, LlmOsError, PromptRefused

SLOTS_PER_NODE: Final = 64
"""Requests that a node is taken to work on at once; servers with a queue take more."""

_GOODBYE_S: Final = 0.2
"""For the end of a body whose last event was read."""

_ROOM: Final = 256
"""Events that wait for a slow reader; then the node waits too."""


class UpstreamEngine(OverNodes):
    """An :class:`~coordinator.inference.engine.Engine` over OpenAI's API."""

    def __init__(
        self,
        nodes: Sequence[Node],
        model: str,
        *,
        adapter_names: AdapterNames = "llmos",
        slots_per_node: int = SLOTS_PER_NODE,
        patience: Patience | None = None,
    ) -> None:
        """Describe the engine; :meth:`start` begins to watch the nodes.

        Args:
            nodes: At least one; addresses differ.
            model: As all of them call it.
            adapter_names: How they call a run's adapter.
            slots_per_node: Requests at once, for :attr:`load`.
            patience: Other waits than usual.

        Raises:
            ConfigError: an address names no host that there could be.
        """
        super().__init__(nodes, model, patience)
        self._model = model
        self._adapter_names = adapter_names
        self._slots_per_node = slots_per_node
        self._tokens = [0, 0, 0]  # of prompts, of these found computed, of answers

    @property
    def card(self) -> ModelCard:
        """What is served, as the nodes tell it. Returns at once."""
        serving = self._nodes.serving
        contexts = [each.context_tokens for each in serving if each.context_tokens is not None]
        state, reason = self._nodes.state
        return ModelCard(
            name=self._model,
            stand_in=any(offer.stand_in for offer in serving),
            state=state,
            reason=reason,
            base=self._nodes.base,
            context_tokens=min(contexts, default=None),
        )

    @property
    def load(self) -> EngineLoad:
        """How many requests the nodes have. Returns at once."""
        outstanding = sum(self._nodes.seats.taken.values())
        slots = max(1, len(self._nodes.offers)) * self._slots_per_node
        active = min(outstanding, slots)
        prompt, cached, completion = self._tokens
        return EngineLoad(
            slots=slots,
            active=active,
            waiting=outstanding - active,
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=completion,
        )

    async def stream(self, request: GenerationRequest) -> Stream:
        """Answer one request; contract in :class:`~coordinator.inference.engine.Engine`.

        Raises:
            EngineBusy: no node answers at the moment, or all that do are busy; with
                ``retry_after_s`` where they said when to come again.
            EngineError: they do not serve this model, refuse the key, or send what is no answer.
            PromptRefused: a node refuses the request; in its words.
            RunNotFound: no node has the run whose adapter was asked for.
            ChildDied: a node was lost while it answered, or all before.
        """
        relay = _Relay(self._nodes.loop)
        future = self._nodes.run(self._answer(request, relay))
        try:
            async for event in relay.events():
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            if not relay.ended:
                future.cancel()

    # From here on everything runs on the nodes' loop.

    async def _answer(self, request: GenerationRequest, relay: _Relay) -> None:
        """Answer one request into a relay, which gets exactly one end."""
        by_run = request.adapter is not None
        model = model_name(self._model, request, self._adapter_names)
        # Ours list no runs: the base has to do.
        listed = self._model if by_run and self._adapter_names == "llmos" else model
        try:
            answers = spread(
                self._nodes.seats,
                lambda: self._nodes.candidates(listed),
                lambda name: self._ask(name, model, request),
                goes_elsewhere=lambda err: not isinstance(err, PromptRefused),
                nobody=lambda: self._nodes.nobody(model, by_run=by_run),
            )
            async with aclosing(answers):
                async for event in answers:
                    if isinstance(event, Finished):
                        self._count(event)
                    await relay.put(event)
        except asyncio.CancelledError:
            if self._nodes.is_over:
                relay.end(EngineError("the coordinator is shutting down"))
            raise
        except Exception as err:  # noqa: BLE001  it belongs to whoever asked
            relay.end(err)

    def _count(self, end: Finished) -> None:
        prompt, cached, completion = self._tokens
        self._tokens = [
            prompt + end.prompt_tokens,
            cached + end.cached_tokens,
            completion + end.completion_tokens,
        ]

    async def _ask(self, name: str, model: str, request: GenerationRequest) -> Stream:
        """Give a request to one node.

        Raises:
            LlmOsError: with the node's name; before its answer or within.
        """
        offer = self._nodes.health[name].offer
        path, body = body_of(request, model, salted=offer is not None and offer.salted)
        run = None if request.adapter is None else request.adapter.name
        with self._nodes.blamed(name):
            async with aclosing(self._post(name, path, body, run=run)) as events:
                reader = AnswerReader(request.logprobs)
                async for data in events:
                    if data == DONE:
                        break
                    piece = reader.read(data)
                    if piece is not None:
                        yield piece
                end = reader.end()
                if end is None:
                    raise ChildDied("it broke off in the middle of its answer")
                yield end
                # What follows is the end of the body: read, so that the connection can be used
                # again.
                with contextlib.suppress(LlmOsError, httpx.HTTPError, TimeoutError):
                    async with asyncio.timeout(_GOODBYE_S):
                        await anext(events, None)

    async def _post(
        self, name: str, path: str, body: bytes, *, run: str | None
    ) -> AsyncGenerator[str, None]:
        """Events of one answer, each its data.

        The wait for an event begins anew with each, so that comments, with which servers keep
        connections open, do not count as signs of life.
        """
        node, patience = self._nodes.by_name[name], self._nodes.patience
        headers = node.headers | {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",  # what is packed may be any size
        }
        request = self._nodes.client.build_request(
            "POST", node.url + path, content=body, headers=headers
        )
        loop = asyncio.get_running_loop()
        limit, until = patience.first, loop.time() + patience.first
        async with patient(until, limit):
            response = await self._nodes.client.send(request, stream=True)
        try:
            if response.status_code != 200:
                async with patient(until, limit):
                    said = await bounded(response, MAX_LISTING_BYTES)
                raise refusal(node, response.status_code, response.headers, said, run=run)
            kind = response.headers.get("content-type", "")
            if "text/event-stream" not in kind:
                raise EngineError(f"it sent no stream of events, but {kind[:60]!r}")
            reader, chunks = EventReader(), response.aiter_bytes()
            while True:
                async with patient(until, limit):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                for data in reader.feed(chunk):
                    yield data
                    limit, until = patience.silence, loop.time() + patience.silence
        finally:
            await response.aclose()


class _Relay:
    """Events from the engine's loop to the one that asked, and how they end."""

    def __init__(self, home: asyncio.AbstractEventLoop) -> None:
        """``home``: the engine's loop. Made on the one that asks."""
        self._home = home
        self._there = asyncio.get_running_loop()
        self._events: deque[Piece | Finished | Exception] = deque()
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()
        self.ended = False
        """Whether the engine has no more to do for it."""

    async def put(self, event: Piece | Finished) -> None:
        """Hand one on; waits for a reader that is far behind. On the engine's loop."""
        self.ended = isinstance(event, Finished)
        self._events.append(event)
        self._wake()
        while len(self._events) > _ROOM:
            self._drained.clear()
            if len(self._events) > _ROOM:
                await self._drained.wait()

    def end(self, err: Exception) -> None:
        """Hand on why there is no more. On the engine's loop."""
        self.ended = True
        self._events.append(err)
        self._wake()

    async def events(self) -> Stream:
        """What arrives, in order; raises what it ends with. On the loop that asked."""
        while True:
            self._arrived.clear()
            while self._events:
                event = self._events.popleft()
                if len(self._events) == _ROOM // 2:
                    self._home.call_soon_threadsafe(self._drained.set)
                if isinstance(event, Exception):
                    raise event
                yield event
            await self._arrived.wait()

    def _wake(self) -> None:
        # A loop that is over has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._there.call_soon_threadsafe(self._arrived.set)
