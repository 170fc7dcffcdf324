"""A language model in a process of its own, asked one request after the other.

T1  starting it returns at once: the model is loaded behind the coordinator's back
T2  a bounded number of requests waits; one more is told to come again
T3  a model process that dies costs the request it worked on; the next one starts another

The operating system ties a child to the *thread* that started it, so one thread that lives
as long as the engine does all the asking.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from concurrent.futures import Future
from dataclasses import asdict, replace
from typing import Any, Final

import structlog

from coordinator.inference.engine import (
    EngineLoad,
    EngineState,
    Finished,
    Generation,
    GenerationRequest,
    ModelCard,
    Piece,
    Stream,
)
from coordinator.inference.served_name import served_name
from shared.errors import ChildDied, EngineBusy, EngineError, LlmOsError
from shared.processes import Child
from shared.types import Digest

MAX_WAITING: Final = 8
"""Each holds one of the API's forty worker threads while it waits."""

_NICE: Final = 5
"""Rounds and devices go first; a conversation can wait for a moment."""

log = structlog.get_logger()

_Job = tuple[GenerationRequest, "Future[Generation]"]


class TransformersEngine:
    """An :class:`~coordinator.inference.engine.Engine` over transformers, on the processor."""

    def __init__(
        self, name_or_path: str, *, threads: int = 0, max_waiting: int = MAX_WAITING
    ) -> None:
        """Describe the engine; :meth:`start` loads the model.

        Args:
            name_or_path: A folder or hub id.
            threads: Arithmetic threads of the model; 0 takes every core.
            max_waiting: How many requests may wait behind the one that is worked on (T2).

        Raises:
            ModelError: it is neither a folder with a model nor written like a hub id.
        """
        name, stand_in = served_name(name_or_path)
        self._card = ModelCard(
            name, stand_in, EngineState.LOADING, lacks=frozenset({"logprobs", "schema"})
        )
        self._name_or_path = name_or_path
        self._threads = threads or os.cpu_count() or 1
        self._child = Child(
            "coordinator.inference.engine_worker", threads=self._threads, nice=_NICE
        )
        self._jobs: queue.Queue[_Job | None] = queue.Queue(max_waiting)
        self._closed = threading.Event()
        # Makes sure that nothing is put into the queue after it was emptied for good.
        self._gate = threading.Lock()
        self._thread = threading.Thread(target=self._work, daemon=True, name="language-model")

    @property
    def card(self) -> ModelCard:
        """What is served, and whether it answers."""
        return self._card

    @property
    def load(self) -> EngineLoad:
        """How many wait."""
        return EngineLoad(waiting=self._jobs.qsize())

    @property
    def pid(self) -> int | None:
        """Process id of the model while there is one."""
        return self._child.pid

    def start(self) -> None:
        """Begin to load the model and return at once (T1)."""
        log.info("model.loading", model=self._card.name)
        self._thread.start()

    async def stream(self, request: GenerationRequest) -> Stream:
        """Answer one request; contract in :class:`~coordinator.inference.engine.Engine`."""
        said = await asyncio.wrap_future(self._submitted(request))
        yield Piece(said.text)
        yield Finished(said.finish_reason, said.prompt_tokens, said.completion_tokens)

    def _submitted(self, request: GenerationRequest) -> Future[Generation]:
        card = self._card
        if card.state is EngineState.LOADING:
            raise EngineBusy(f"{card.name} is still being loaded: ask again in a moment")
        if card.state is EngineState.FAILED:
            raise EngineError(f"{card.name} could not be loaded: {card.reason}")
        answer: Future[Generation] = Future()
        with self._gate:
            if self._closed.is_set():
                raise EngineError("the coordinator is shutting down")
            try:
                self._jobs.put_nowait((request, answer))
            except queue.Full as err:
                raise EngineBusy(
                    f"{self._jobs.maxsize} requests wait for {card.name} already: ask again later"
                ) from err
        return answer

    def close(self) -> None:
        """End the model's process; whoever waits is told. Harmless if it runs no more."""
        with self._gate:
            self._closed.set()
        while self._thread.is_alive():
            # Again and again: the thread may be about to start the process just now.
            if self._child.pid is not None:
                self._child.close()
            with contextlib.suppress(queue.Full):
                self._jobs.put_nowait(None)
            self._thread.join(timeout=0.1)
        self._child.close()

    def _work(self) -> None:
        self._load()
        while (job := self._jobs.get()) is not None:
            request, answer = job
            try:
                answer.set_result(self._ask(request))
            except Exception as err:  # noqa: BLE001  it belongs to whoever asked
                answer.set_exception(err)

    def _load(self) -> None:
        try:
            loaded = self._call("load")
        except LlmOsError as err:
            self._card = replace(self._card, state=EngineState.FAILED, reason=str(err))
            if not self._closed.is_set():
                log.error("model.failed", model=self._card.name, reason=str(err))
            return
        self._card = replace(
            self._card,
            state=EngineState.READY,
            base=Digest(loaded["base"]),
            context_tokens=int(loaded["context_tokens"]),
        )
        log.info("model.ready", model=self._card.name, stand_in=self._card.stand_in)

    def _ask(self, request: GenerationRequest) -> Generation:
        if self._closed.is_set():
            raise EngineError("the coordinator is shutting down")
        table = asdict(request)
        for name in ("logprobs", "schema", "share"):
            del table[name]
        table["prompt"] = request.prompt if isinstance(request.prompt, str) else [*table["prompt"]]
        try:
            return Generation(**self._call("generate", base=self._card.base, **table))
        except ChildDied as err:
            log.error("model.died", model=self._card.name, error=str(err))
            raise

    def _call(self, operation: str, **arguments: object) -> Any:
        return self._child.call(
            operation, model=self._name_or_path, threads=self._threads, **arguments
        )
