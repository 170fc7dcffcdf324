"""A language model that other machines serve: any that speak OpenAI's API, vLLM and ours included.

U1  a node that fails costs what it was answering; all else goes to the others
U2  a node is asked every few seconds what it serves; it is out and in again by itself
U3  whoever stops reading closes the connection to the node
U4  connections live on one event loop of their own, so that any loop may ask

N1 to N4 are in :mod:`~coordinator.inference.node_pool`, W1 to W3 in
:mod:`~coordinator.inference.upstream_wire`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import httpx
import structlog

from coordinator.inference.engine import (
    EngineLoad,
    EngineState,
    Finished,
    GenerationRequest,
    ModelCard,
    Piece,
    Stream,
)
from coordinator.inference.node_pool import NodeHealth, Offer, Seats, spread
from coordinator.inference.upstream_wire import (
    DONE,
    AdapterNames,
    AnswerReader,
    EventReader,
    Node,
    body_of,
    model_name,
    offer_of,
    refusal,
)
from shared.errors import (
    ChildDied,
    ConfigError,
    EngineBusy,
    EngineError,
    LlmOsError,
    PromptRefused,
    RunNotFound,
)

SLOTS_PER_NODE: Final = 64
"""Requests that a node is taken to work on at once; servers with a queue take more."""

_MAX_BODY_BYTES: Final = 1_000_000
"""Of a list of models, or of an error."""

_END_S: Final = 5.0
"""For connections to be closed when the engine is."""

_GOODBYE_S: Final = 0.2
"""For the end of a body whose last event was read."""

_ROOM: Final = 256
"""Events that wait for a slow reader; then the node waits too."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long nodes are waited for, in seconds.

    Attributes:
        check: Between two checks of a node that is well.
        longest_check: Between two checks of one that is out.
        listing: For what it serves.
        connect: For a connection.
        first: From the request to the first piece: long prompts, and those in front in its queue.
        silence: Between two pieces.
    """

    check: float = 3.0
    longest_check: float = 30.0
    listing: float = 5.0
    connect: float = 5.0
    first: float = 120.0
    silence: float = 60.0


class UpstreamEngine:
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
        for node in nodes:
            try:
                httpx.URL(node.url)
            except httpx.InvalidURL as err:
                raise ConfigError([f"--upstream: {node.name}: {err}"], source="options") from err
        self._nodes = {node.name: node for node in nodes}
        self._model = model
        self._adapter_names = adapter_names
        self._slots_per_node = slots_per_node
        self._patience = patience or Patience()
        self._seats = Seats(self._nodes)
        self._health = dict.fromkeys(self._nodes, NodeHealth())
        self._doubts: dict[str, asyncio.Event] = {}
        self._tokens = [0, 0, 0]  # of prompts, of these found computed, of answers
        self._client: httpx.AsyncClient
        self._answers: set[asyncio.Task[None]] = set()
        # Makes sure that nothing is given to the loop after it was ended.
        self._gate = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event
        self._closed = False
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="upstream-nodes")

    @property
    def card(self) -> ModelCard:
        """What is served, as the nodes tell it. Returns at once."""
        serving = [offer for offer in self._offers() if self._model in offer.models]
        contexts = [each.context_tokens for each in serving if each.context_tokens is not None]
        bases = {offer.base for offer in serving}
        state, reason = EngineState.READY, ""
        if not serving:
            waits = any(not each.failures and each.offer is None for each in self._health.values())
            state = EngineState.LOADING if waits else EngineState.FAILED
            reason = "" if waits else self._whys(self._model)
        return ModelCard(
            name=self._model,
            stand_in=any(offer.stand_in for offer in serving),
            state=state,
            reason=reason,
            base=bases.pop() if len(bases) == 1 else None,
            context_tokens=min(contexts, default=None),
        )

    @property
    def load(self) -> EngineLoad:
        """How many requests the nodes have. Returns at once."""
        outstanding = sum(self._seats.taken.values())
        slots = max(1, len(self._offers())) * self._slots_per_node
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

    @property
    def outstanding(self) -> dict[str, int]:
        """Unanswered requests by node."""
        return self._seats.taken

    @property
    def health(self) -> dict[str, NodeHealth]:
        """What is known of each node."""
        return dict(self._health)

    def start(self) -> None:
        """Begin to ask the nodes what they serve, and return at once."""
        self._thread.start()
        self._running.wait()

    def close(self) -> None:
        """End all connections; whoever waits is told. Harmless if it runs no more."""
        with self._gate:
            closed, self._closed = self._closed, True
            if self._loop is not None and not closed:
                self._loop.call_soon_threadsafe(self._over.set)
        if self._thread.is_alive():
            self._thread.join()

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
        home = self._loop
        if home is None:
            raise EngineBusy(f"nobody asks the nodes of {self._model} yet: ask again in a moment")
        relay = _Relay(home)
        with self._gate:
            if self._closed:
                raise EngineError("the coordinator is shutting down")
            future = asyncio.run_coroutine_threadsafe(self._answer(request, relay), home)
        try:
            async for event in relay.events():
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            if not relay.ended:
                future.cancel()

    def _offers(self) -> list[Offer]:
        return [each.offer for each in self._health.values() if each.offer is not None]

    def _candidates(self, model: str, *, by_run: bool) -> list[str]:
        """Nodes that can answer to a name now. Ours list no runs: the base has to do."""
        listed = self._model if by_run and self._adapter_names == "llmos" else model
        return [
            name
            for name, health in self._health.items()
            if health.offer is not None and listed in health.offer.models
        ]

    def _whys(self, model: str) -> str:
        return "; ".join(f"{name} {self._why(name, model)}" for name in self._nodes)

    def _why(self, name: str, model: str) -> str:
        health = self._health[name]
        if health.offer is None:
            return health.reason or "has not answered yet"
        if health.offer.not_yet:
            return f"has it, {health.offer.not_yet}"
        others = ", ".join(sorted(health.offer.models)[:5])
        return f"does not serve {model}, but {others or 'nothing'}"

    def _nobody(self, model: str, *, by_run: bool) -> LlmOsError:
        text = f"no node answers as {model}: {self._whys(model)}"
        away = any(each.offer is None or each.offer.not_yet for each in self._health.values())
        refused = all("refuses the key" in each.reason for each in self._health.values())
        if away and not refused:
            return EngineBusy(text)
        return RunNotFound(text) if by_run and not refused else EngineError(text)

    # From here on everything runs on the engine's own loop.

    def _work(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._over = asyncio.Event()
        self._doubts = {name: asyncio.Event() for name in self._nodes}
        # Servers close a connection that was idle for some seconds, uvicorn for five; a request
        # on it just then would fail. Environments' proxies are for others than our own nodes.
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0
        )
        timeout = httpx.Timeout(
            connect=self._patience.connect, read=None, write=self._patience.first, pool=None
        )
        async with httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as client:
            self._client = client
            with self._gate:
                self._loop = asyncio.get_running_loop()
                if self._closed:
                    self._over.set()
            self._running.set()
            watchers = [asyncio.create_task(self._watch(name)) for name in self._nodes]
            await self._over.wait()
            # Requests that were let in come before this in the loop's queue: their tasks have
            # begun.
            ending = [*watchers, *self._answers]
            for task in ending:
                task.cancel()
            await asyncio.wait(ending, timeout=_END_S)

    async def _watch(self, name: str) -> None:
        """Ask a node again and again (U2)."""
        doubt = self._doubts[name]
        while not self._over.is_set():
            doubt.clear()
            before = self._health[name]
            self._health[name] = after = await self._checked(name, before)
            if after.offer is not None and self._serves(after) != self._serves(before):
                log.info("node.in", node=name, serving=self._serves(after))
            elif after.offer is None and (before.offer is not None or not before.failures):
                log.warning("node.out", node=name, reason=after.reason)
            pause = after.pause_s(self._patience.check, self._patience.longest_check)
            # Not wait_for, which in Python 3.11 forgets that it was cancelled if the doubt comes
            # at the same moment.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await doubt.wait()

    def _serves(self, health: NodeHealth) -> bool | None:
        return None if health.offer is None else self._model in health.offer.models

    async def _checked(self, name: str, before: NodeHealth) -> NodeHealth:
        node = self._nodes[name]
        try:
            async with (
                asyncio.timeout(self._patience.listing),
                self._client.stream("GET", f"{node.url}/models", headers=node.headers) as response,
            ):
                body = await _bounded(response)
        except TimeoutError:
            why = f"does not say within {self._patience.listing:g} s what it serves"
            return before.went_wrong(why, surely=False)
        except httpx.HTTPError as err:
            surely = isinstance(err, httpx.ConnectError)
            return before.went_wrong(f"cannot be reached: {_told(err)}", surely=surely)
        if response.status_code in (401, 403):
            why = f"refuses the key that it is shown ({response.status_code})"
            return before.went_wrong(why, surely=True)
        if response.status_code != 200:
            return before.went_wrong(f"answers {response.status_code} at /models", surely=False)
        try:
            return before.went_well(offer_of(body, self._model))
        except EngineError as err:
            return before.went_wrong(str(err), surely=True)

    async def _answer(self, request: GenerationRequest, relay: _Relay) -> None:
        """Answer one request into a relay, which gets exactly one end."""
        task = asyncio.current_task()
        assert task is not None
        self._answers.add(task)
        by_run = request.adapter is not None
        model = model_name(self._model, request, self._adapter_names)
        try:
            if self._over.is_set():
                raise EngineError("the coordinator is shutting down")
            answers = spread(
                self._seats,
                lambda: self._candidates(model, by_run=by_run),
                lambda name: self._ask(name, model, request),
                goes_elsewhere=lambda err: not isinstance(err, PromptRefused),
                nobody=lambda: self._nobody(model, by_run=by_run),
            )
            async with aclosing(answers):
                async for event in answers:
                    if isinstance(event, Finished):
                        self._count(event)
                    await relay.put(event)
        except asyncio.CancelledError:
            if self._over.is_set():
                relay.end(EngineError("the coordinator is shutting down"))
            raise
        except Exception as err:  # noqa: BLE001  it belongs to whoever asked
            relay.end(err)
        finally:
            self._answers.discard(task)

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
        offer = self._health[name].offer
        path, body = body_of(request, model, salted=offer is not None and offer.salted)
        run = None if request.adapter is None else request.adapter.name
        try:
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
        except httpx.HTTPError as err:
            self._doubts[name].set()
            if isinstance(err, httpx.ConnectError):
                why = f"cannot be reached: {_told(err)}"
                self._health[name] = self._health[name].went_wrong(why, surely=True)
            raise ChildDied(f"{name} was lost: {_told(err)}") from err
        except TimeoutError as err:
            self._doubts[name].set()
            raise ChildDied(f"{name} was waited for in vain: {err}") from err
        except PromptRefused:
            raise
        except LlmOsError as err:
            self._doubts[name].set()
            if not str(err).startswith(name):
                err.args = (f"{name}: {err}",)
            raise

    async def _post(
        self, name: str, path: str, body: bytes, *, run: str | None
    ) -> AsyncGenerator[str, None]:
        """Events of one answer, each its data.

        The wait for an event begins anew with each, so that comments, with which servers keep
        connections open, do not count as signs of life.
        """
        node, patience = self._nodes[name], self._patience
        headers = node.headers | {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Accept-Encoding": "identity",  # what is packed may be any size
        }
        request = self._client.build_request("POST", node.url + path, content=body, headers=headers)
        loop = asyncio.get_running_loop()
        limit, until = patience.first, loop.time() + patience.first
        async with _patient(until, limit):
            response = await self._client.send(request, stream=True)
        try:
            if response.status_code != 200:
                async with _patient(until, limit):
                    said = await _bounded(response)
                raise refusal(node, response.status_code, response.headers, said, run=run)
            kind = response.headers.get("content-type", "")
            if "text/event-stream" not in kind:
                raise EngineError(f"it sent no stream of events, but {kind[:60]!r}")
            reader, chunks = EventReader(), response.aiter_bytes()
            while True:
                async with _patient(until, limit):
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


@contextlib.asynccontextmanager
async def _patient(until: float, limit: float) -> AsyncGenerator[None, None]:
    """Wait until a moment of the loop's clock, and say how long that was."""
    try:
        async with asyncio.timeout_at(until):
            yield
    except TimeoutError as err:
        raise TimeoutError(f"nothing came for {limit:g} s") from err


async def _bounded(response: httpx.Response) -> bytes:
    """A short body, or the beginning of a long one."""
    read = bytearray()
    async for chunk in response.aiter_bytes():
        read += chunk
        if len(read) > _MAX_BODY_BYTES:
            break
    return bytes(read[:_MAX_BODY_BYTES])


def _told(err: Exception) -> str:
    return str(err) or type(err).__name__
