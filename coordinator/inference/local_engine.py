"""A language model in a process of its own that answers many requests at once.

T1  starting it returns at once: the model is loaded behind the coordinator's back
T2  closing a stream frees its slot; nobody else notices
T3  a model process that dies, or says nothing for too long while it has work, is replaced; the
    requests it had are told so, and later ones are answered by the next

The operating system ties a child to the *thread* that started it, so one thread that lives as long
as the engine starts every process and receives from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any, Final

import structlog

from coordinator.inference.engine import (
    Alternative,
    EngineLoad,
    EngineState,
    Finished,
    GenerationRequest,
    ModelCard,
    Piece,
    Stream,
    TokenLogprob,
)
from coordinator.inference.served_name import served_name
from shared.errors import ChildDied, EngineBusy, EngineError, LlmOsError
from shared.files import digest_of
from shared.processes import TalkingChild, rebuilt
from shared.types import Digest

STUCK_S: Final = 120.0
"""A step takes a fraction of a second, with a large model on a slow machine some seconds."""

MAX_ASKED: Final = 1024
"""Requests in one process, most of them waiting; the front desk lets far fewer through."""

LOAD_ATTEMPTS: Final = 3
"""A process that dies while it loads is tried again so often."""

_NICE: Final = 5
"""Rounds and devices go first; a conversation can wait for a moment."""

_WORKER: Final = "coordinator.inference.engine_worker"

log = structlog.get_logger()

_Event = Piece | Finished | LlmOsError
_Sink = Callable[[_Event], None]


@dataclass(slots=True)
class _Asked:
    """A request that a process has."""

    message: dict[str, Any]
    adapter: bytes | None
    sink: _Sink


class LocalEngine:
    """An :class:`~coordinator.inference.engine.Engine` in a child process."""

    def __init__(
        self,
        name_or_path: str,
        settings: Mapping[str, Any],
        *,
        threads: int,
        stuck_s: float = STUCK_S,
        worker: str = _WORKER,
        arguments: Sequence[str] = (),
    ) -> None:
        """Describe the engine; :meth:`start` loads the model.

        Args:
            name_or_path: A folder or hub id.
            settings: What the worker's table of runtimes takes: ``runtime`` names the entry.
            threads: Arithmetic threads of the process.
            stuck_s: Silence, while there is work, after which the process is replaced (T3).
            worker: The module that runs in the process.
            arguments: On its command line.

        Raises:
            ModelError: it is neither a folder with a model nor written like a hub id.
        """
        name, stand_in = served_name(name_or_path)
        self._card = ModelCard(name, stand_in, EngineState.LOADING)
        self._settings = {**settings, "model": name_or_path, "threads": threads}
        self._threads = threads
        self._stuck_s = stuck_s
        self._worker = worker
        self._arguments = tuple(arguments)
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._child: TalkingChild | None = None
        self._asked: dict[int, _Asked] = {}
        self._sent_adapters: set[str] = set()
        self._heard_at = 0.0
        # What processes that are over have counted, and what this one last told.
        self._loads = (EngineLoad(), EngineLoad())
        self._restarts = 0
        self._failures = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True, name="language-model")
        self._watch = threading.Thread(target=self._watching, daemon=True, name="model-watch")

    @property
    def card(self) -> ModelCard:
        """What is served, and whether it answers."""
        return self._card

    @property
    def load(self) -> EngineLoad:
        """How busy it is, as the process last told."""
        earlier, load = self._loads
        return replace(
            load,
            prompt_tokens=earlier.prompt_tokens + load.prompt_tokens,
            cached_tokens=earlier.cached_tokens + load.cached_tokens,
            completion_tokens=earlier.completion_tokens + load.completion_tokens,
            restarts=self._restarts,
        )

    @property
    def pid(self) -> int | None:
        """Process id of the model while there is one."""
        child = self._child
        return child.pid if child is not None else None

    def start(self) -> None:
        """Begin to load the model and return at once (T1)."""
        log.info("model.loading", model=self._card.name)
        self._thread.start()
        self._watch.start()

    def close(self) -> None:
        """End the model's process; whoever waits is told. Harmless if it runs no more."""
        self._closed.set()
        for thread in (self._thread, self._watch):
            while thread.is_alive():
                # Again and again: the thread may be about to start a process just now.
                if (child := self._child) is not None:
                    child.kill()
                thread.join(timeout=0.1)

    async def stream(self, request: GenerationRequest) -> Stream:
        """Answer one request; contract in :class:`~coordinator.inference.engine.Engine`."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[_Event] = asyncio.Queue()

        def sink(event: _Event) -> None:
            # A loop that was closed meanwhile has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, event)

        number = self._ask(request, sink)
        try:
            while True:
                event = await events.get()
                if isinstance(event, LlmOsError):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self._forget(number)

    def _ask(self, request: GenerationRequest, sink: _Sink) -> int:
        """Hand a request to the process; its events go to ``sink``, on the receiving thread."""
        adapter = request.adapter.data if request.adapter is not None else None
        digest = digest_of(adapter) if adapter is not None else None
        options = asdict(request)
        prompt, _ = options.pop("prompt"), options.pop("adapter")
        prompt = prompt if isinstance(prompt, str) else list(prompt)
        with self._lock:
            card = self._card
            if card.state is EngineState.LOADING:
                raise EngineBusy(f"{card.name} is still being loaded: ask again in a moment")
            if card.state is EngineState.FAILED:
                raise EngineError(f"{card.name} could not be loaded: {card.reason}")
            if self._closed.is_set():
                raise EngineError("the coordinator is shutting down")
            if len(self._asked) >= MAX_ASKED:
                raise EngineBusy(
                    f"{MAX_ASKED} requests wait for {card.name} already: ask again later"
                )
            child, number = self._child, next(self._numbers)
            message = {"number": number, "prompt": prompt, "options": options, "adapter": digest}
            known = digest is None or digest in self._sent_adapters
            if not self._asked:
                self._heard_at = time.monotonic()  # silence counts from the first that is asked
            self._asked[number] = _Asked(message, adapter, sink)
            if digest is not None:
                self._sent_adapters.add(digest)
        assert child is not None
        try:
            child.send(message if known else message | {"data": adapter})
        except ChildDied:
            # Whoever receives from it has noticed as well, and tells all at once.
            log.info("model.gone", model=card.name)
        return number

    def _forget(self, number: int) -> None:
        with self._lock:
            under_way = self._asked.pop(number, None) is not None
            child = self._child
        if under_way and child is not None:
            with contextlib.suppress(ChildDied):
                child.send({"number": number, "cancel": True})

    def _live(self) -> None:
        """Start processes and receive from them, one after the other, until closed."""
        while not self._closed.is_set():
            child = TalkingChild(
                self._worker, threads=self._threads, nice=_NICE, arguments=self._arguments
            )
            with self._lock:
                self._child, self._sent_adapters = child, set()
            try:
                child.send(self._settings)
                self._receive(child)
            except ChildDied:
                self._failures += self._card.state is not EngineState.READY
            finally:
                status = self._over(child)
            if self._card.state is EngineState.FAILED:
                return
            if self._failures >= LOAD_ATTEMPTS:
                self._fail(
                    f"its process died {LOAD_ATTEMPTS} times while loading (status {status})"
                )
                return
            if not self._closed.is_set():
                self._restarts += 1
                log.error("model.died", model=self._card.name, status=status)

    def _receive(self, child: TalkingChild) -> None:
        """Take what a process tells until it ends, or cannot load the model."""
        while True:
            said = child.receive()
            self._heard_at = time.monotonic()
            if "load" in said:
                self._loads = (self._loads[0], EngineLoad(**said["load"]))
            if (reason := said.get("failed")) is not None:
                self._fail(reason)
                return
            if (ready := said.get("ready")) is not None:
                self._failures = 0
                with self._lock:
                    self._card = replace(
                        self._card,
                        state=EngineState.READY,
                        base=Digest(ready["base"]),
                        context_tokens=int(ready["context_tokens"]),
                        lacks=frozenset(ready["lacks"]),
                    )
                log.info("model.ready", model=self._card.name, stand_in=self._card.stand_in)
            for number, kind, *rest in said.get("events", ()):
                self._deliver(child, number, kind, rest)

    def _deliver(self, child: TalkingChild, number: int, kind: str, rest: list[Any]) -> None:
        with self._lock:
            asked = self._asked.get(number)
            if asked is not None and kind in {"end", "error"}:
                del self._asked[number]
        if asked is None:
            return  # it was cancelled while this was under way
        match kind, rest:
            case "piece", [text, logprobs]:
                asked.sink(Piece(text, tuple(_logprob(each) for each in logprobs)))
            case "end", [facts]:
                asked.sink(Finished(**facts))
            case "error", [name, message]:
                error = rebuilt(name, message)
                asked.sink(error if isinstance(error, LlmOsError) else EngineError(message))
            case "missing", _:
                with contextlib.suppress(ChildDied):
                    child.send(asked.message | {"data": asked.adapter})

    def _over(self, child: TalkingChild) -> int:
        """Clear up after a process and tell whoever it was answering."""
        status = child.close()
        with self._lock:
            self._child = None
            if self._card.state is EngineState.READY:
                self._card = replace(self._card, state=EngineState.LOADING)
            left, self._asked = self._asked, {}
            # Processes count from 0, this engine from its start.
            self._loads = (self.load, EngineLoad(slots=self._loads[1].slots))
        error = (
            EngineError("the coordinator is shutting down")
            if self._closed.is_set()
            else ChildDied(f"the process of {self._card.name} ended before it had answered")
        )
        for asked in left.values():
            asked.sink(error)
        return status

    def _fail(self, reason: str) -> None:
        with self._lock:
            self._card = replace(self._card, state=EngineState.FAILED, reason=reason)
        if not self._closed.is_set():
            log.error("model.failed", model=self._card.name, reason=reason)

    def _watching(self) -> None:
        """End a process that says nothing while it has work (T3)."""
        while not self._closed.wait(min(1.0, self._stuck_s / 4)):
            if not self._thread.is_alive():
                return
            with self._lock:
                child = self._child
                working = bool(self._asked) and self._card.state is EngineState.READY
                silent_s = time.monotonic() - self._heard_at
            if child is not None and working and silent_s > self._stuck_s:
                log.error("model.stuck", model=self._card.name, silent_s=round(silent_s))
                child.kill()


def _logprob(table: Mapping[str, Any]) -> TokenLogprob:
    return TokenLogprob(
        Alternative(**table["chosen"]),
        tuple(Alternative(**each) for each in table["likeliest"]),
    )
