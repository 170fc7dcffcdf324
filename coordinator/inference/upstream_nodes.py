"""Nodes that speak OpenAI's API, watched, and the loop that their connections live on.

U2  a node is asked every few seconds what it serves; it is out and in again by itself
U4  connections live on one event loop of their own, so that any loop may ask
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import httpx
import structlog

from coordinator.inference.engine import EngineState
from coordinator.inference.node_pool import NodeHealth, Offer, Seats
from coordinator.inference.upstream_wire import Node, offer_of
from shared.errors import (
    ChildDied,
    ConfigError,
    EngineBusy,
    EngineError,
    LlmOsError,
    PromptRefused,
    RunNotFound,
)
from shared.types import Digest

MAX_LISTING_BYTES: Final = 1_000_000
"""Of a list of models, or of an error."""

_END_S: Final = 5.0
"""For connections to be closed when all ends."""

log = structlog.get_logger()

T = TypeVar("T")


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


class WatchedNodes:
    """Where one model is served, which of them are well, and a way to ask them."""

    client: httpx.AsyncClient
    """On the nodes' own loop only."""

    def __init__(
        self, nodes: Sequence[Node], model: str, *, patience: Patience | None = None
    ) -> None:
        """Describe them; :meth:`start` begins to watch.

        Args:
            nodes: At least one; addresses differ.
            model: As all of them call it.
            patience: Other waits than usual.

        Raises:
            ConfigError: an address names no host that there could be.
        """
        for node in nodes:
            try:
                httpx.URL(node.url)
            except httpx.InvalidURL as err:
                raise ConfigError([f"--upstream: {node.name}: {err}"], source="options") from err
        self.by_name = {node.name: node for node in nodes}
        self.patience = patience or Patience()
        self.seats = Seats(self.by_name)
        self._model = model
        self._health = dict.fromkeys(self.by_name, NodeHealth())
        self._doubts: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        # Makes sure that nothing is given to the loop after it was ended.
        self._gate = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event
        self._closed = False
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="upstream-nodes")

    @property
    def health(self) -> dict[str, NodeHealth]:
        """What is known of each node."""
        return dict(self._health)

    @property
    def offers(self) -> list[Offer]:
        """Of the nodes that are in."""
        return [each.offer for each in self._health.values() if each.offer is not None]

    @property
    def serving(self) -> list[Offer]:
        """Of those that serve the model."""
        return [offer for offer in self.offers if self._model in offer.models]

    @property
    def base(self) -> Digest | None:
        """SHA-256 of the model's weights, where all that serve it tell the same."""
        bases = {offer.base for offer in self.serving}
        return bases.pop() if len(bases) == 1 else None

    @property
    def state(self) -> tuple[EngineState, str]:
        """Whether any node answers, and why none does."""
        if self.serving:
            return EngineState.READY, ""
        if any(not each.failures and each.offer is None for each in self._health.values()):
            return EngineState.LOADING, ""
        return EngineState.FAILED, self._whys(self._model)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The nodes' own.

        Raises:
            EngineBusy: they are not watched yet.
        """
        if self._loop is None:
            raise EngineBusy(f"nobody asks the nodes of {self._model} yet: ask again in a moment")
        return self._loop

    @property
    def is_over(self) -> bool:
        """Whether what runs is being ended. On the nodes' loop only."""
        return self._over.is_set()

    def start(self) -> None:
        """Begin to ask the nodes what they serve, and return at once."""
        self._thread.start()
        self._running.wait()

    def close(self) -> None:
        """End all connections, and what runs. Harmless if nothing runs any more."""
        with self._gate:
            closed, self._closed = self._closed, True
            if self._loop is not None and not closed:
                self._loop.call_soon_threadsafe(self._over.set)
        if self._thread.is_alive():
            self._thread.join()

    def run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Let something run on the nodes' loop; cancelling the future cancels it. Any thread.

        Raises:
            EngineBusy: the nodes are not watched yet.
            EngineError: they were closed. What is under way then ends with this too.
        """
        try:
            loop = self.loop
            with self._gate:
                if self._closed:
                    raise EngineError("the coordinator is shutting down")
                return asyncio.run_coroutine_threadsafe(self._kept(work), loop)
        except LlmOsError:
            work.close()
            raise

    def candidates(self, model: str) -> list[str]:
        """Nodes that list a model now."""
        return [
            name
            for name, health in self._health.items()
            if health.offer is not None and model in health.offer.models
        ]

    def nobody(self, model: str, *, by_run: bool = False) -> LlmOsError:
        """The error where no node lists a model; ``by_run``: with the adapter of a run."""
        text = f"no node answers as {model}: {self._whys(model)}"
        away = any(each.offer is None or each.offer.not_yet for each in self._health.values())
        refused = all("refuses the key" in each.reason for each in self._health.values())
        if away and not refused:
            return EngineBusy(text)
        return RunNotFound(text) if by_run and not refused else EngineError(text)

    @contextlib.contextmanager
    def blamed(self, name: str) -> Iterator[None]:
        """Turn what goes wrong with a node into errors of ours that name it, and look after it.

        On the nodes' loop only.
        """
        try:
            yield
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

    def _whys(self, model: str) -> str:
        return "; ".join(f"{name} {self._why(name, model)}" for name in self.by_name)

    def _why(self, name: str, model: str) -> str:
        health = self._health[name]
        if health.offer is None:
            return health.reason or "has not answered yet"
        if health.offer.not_yet:
            return f"has it, {health.offer.not_yet}"
        others = ", ".join(sorted(health.offer.models)[:5])
        return f"does not serve {model}, but {others or 'nothing'}"

    # From here on everything runs on the nodes' own loop.

    def _work(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._over = asyncio.Event()
        self._doubts = {name: asyncio.Event() for name in self.by_name}
        # Servers close a connection that was idle for some seconds, uvicorn for five; a request
        # on it just then would fail. Environments' proxies are for others than our own nodes.
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0
        )
        timeout = httpx.Timeout(
            connect=self.patience.connect, read=None, write=self.patience.first, pool=None
        )
        async with httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as client:
            self.client = client
            with self._gate:
                self._loop = asyncio.get_running_loop()
                if self._closed:
                    self._over.set()
            self._running.set()
            watchers = [asyncio.create_task(self._watch(name)) for name in self.by_name]
            await self._over.wait()
            # What was let in comes before this in the loop's queue: its tasks have begun.
            ending = [*watchers, *self._tasks]
            for task in ending:
                task.cancel()
            await asyncio.wait(ending, timeout=_END_S)

    async def _kept(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self.is_over:
                work.close()
                raise EngineError("the coordinator is shutting down")
            return await work
        except asyncio.CancelledError:
            if self.is_over:
                raise EngineError("the coordinator is shutting down") from None
            raise
        finally:
            self._tasks.discard(task)

    async def _watch(self, name: str) -> None:
        """Ask a node again and again (U2)."""
        doubt = self._doubts[name]
        while not self.is_over:
            doubt.clear()
            before = self._health[name]
            self._health[name] = after = await self._checked(name, before)
            if after.offer is not None and self._serves(after) != self._serves(before):
                log.info("node.in", node=name, serving=self._serves(after))
            elif after.offer is None and (before.offer is not None or not before.failures):
                log.warning("node.out", node=name, reason=after.reason)
            pause = after.pause_s(self.patience.check, self.patience.longest_check)
            # Not wait_for, which in Python 3.11 forgets that it was cancelled if the doubt comes
            # at the same moment.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await doubt.wait()

    def _serves(self, health: NodeHealth) -> bool | None:
        return None if health.offer is None else self._model in health.offer.models

    async def _checked(self, name: str, before: NodeHealth) -> NodeHealth:
        node = self.by_name[name]
        try:
            async with (
                asyncio.timeout(self.patience.listing),
                self.client.stream("GET", f"{node.url}/models", headers=node.headers) as response,
            ):
                body = await bounded(response, MAX_LISTING_BYTES)
        except TimeoutError:
            why = f"does not say within {self.patience.listing:g} s what it serves"
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


class OverNodes:
    """A model that nodes serve: what is the same for all kinds of models."""

    def __init__(self, nodes: Sequence[Node], model: str, patience: Patience | None) -> None:
        """As :class:`WatchedNodes`."""
        self._nodes = WatchedNodes(nodes, model, patience=patience)

    @property
    def outstanding(self) -> dict[str, int]:
        """Requests, or pieces of them, that are under way, by node."""
        return self._nodes.seats.taken

    @property
    def health(self) -> dict[str, NodeHealth]:
        """What is known of each node."""
        return self._nodes.health

    def start(self) -> None:
        """Begin to ask the nodes what they serve, and return at once."""
        self._nodes.start()

    def close(self) -> None:
        """End all connections; whoever waits is told. Harmless if it runs no more."""
        self._nodes.close()


@contextlib.asynccontextmanager
async def patient(until: float, limit: float) -> AsyncGenerator[None, None]:
    """Wait until a moment of the loop's clock, and say how long that was."""
    try:
        async with asyncio.timeout_at(until):
            yield
    except TimeoutError as err:
        raise TimeoutError(f"nothing came for {limit:g} s") from err


async def bounded(response: httpx.Response, limit: int) -> bytes:
    """A short body, or the first ``limit`` bytes of a long one."""
    read = bytearray()
    async for chunk in response.aiter_bytes():
        read += chunk
        if len(read) > limit:
            break
    return bytes(read[:limit])


def _told(err: Exception) -> str:
    return str(err) or type(err).__name__
