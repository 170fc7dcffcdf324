"""Models of texts as imported graphs, in child processes.

C1  the event loop never waits: texts are answered in other processes, and threads wait for them
C2  a process that dies, or is stuck, costs the texts it was at; the next ones start another
C3  a bounded number of texts waits; who comes beyond that is told to come again
C4  long requests are given out piece by piece, so that a short one never waits behind all of one
C5  the model is imported when it is first needed, and whoever asks meanwhile waits for it

The operating system ties a child to the *thread* that started it, so every child has one
thread that lives as long as it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog

from coordinator.inference.encoder import Encoded, EncoderCard, Span
from coordinator.inference.engine import EngineState, ServedAdapter
from coordinator.inference.served_name import served_name
from shared.errors import ChildDied, EngineBusy, EngineError, LlmOsError, ModelError
from shared.files import digest_of
from shared.processes import Child
from shared.types import Digest

MAX_WAITING: Final = 4096
"""Texts; two requests as long as they may be. They are done in about 10 s on two cores."""

PIECE: Final = 8
"""Texts that are handed to a worker at a time: some 20 ms of work for a small model."""

STUCK_S: Final = 120.0
"""A piece that takes longer than this is given up, and its process killed."""

_WORKERS: Final = 2
_NICE: Final = 5
"""Rounds and devices go first."""
_MODULE: Final = "coordinator.inference.encoder_worker"

log = structlog.get_logger()

_Job = tuple[str, dict[str, Any], "Future[Any]"]


class GraphEncoder:
    """An :class:`~coordinator.inference.encoder.Encoder` over imported graphs."""

    def __init__(
        self,
        name_or_path: str,
        models: Path,
        *,
        reads: bool = False,
        workers: int = 0,
        max_waiting: int = MAX_WAITING,
        stuck_s: float = STUCK_S,
    ) -> None:
        """Describe the model; it is imported and opened at :meth:`start` or when first asked.

        Args:
            name_or_path: A folder or hub id.
            models: Where imported models live.
            reads: Whether it is a reader (a BERT with a head for spans) and not an encoder.
            workers: Processes with one arithmetic thread each; 0: two, or as many as there are
                cores if that is fewer.
            max_waiting: Texts or passages that may wait or be worked on (C3).
            stuck_s: How long one piece of work may take (C2).

        Raises:
            ModelError: it is neither a folder with a model nor written like a hub id.
        """
        name, _ = served_name(name_or_path)
        self._card = EncoderCard(name, EngineState.LOADING, reads_answers=reads)
        self._source, self._models, self._reads = name_or_path, models, reads
        self._max_waiting, self._stuck_s = max_waiting, stuck_s
        self._waiting = 0
        self._folder = ""
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._importer = Child(_MODULE, nice=_NICE)
        count = workers or min(_WORKERS, os.cpu_count() or 1)
        self._children = [Child(_MODULE, nice=_NICE) for _ in range(count)]
        self._ready, self._closed = threading.Event(), threading.Event()
        self._gate = threading.Lock()
        self._threads: list[threading.Thread] = []

    @property
    def card(self) -> EncoderCard:
        """What is served, and whether it answers."""
        return self._card

    @property
    def waiting(self) -> int:
        """Texts that were accepted and are not answered yet."""
        return self._waiting

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run."""
        return [child.pid for child in self._children if child.pid is not None]

    def start(self) -> None:
        """Begin to import and open the model, and return at once. A second time does nothing."""
        with self._gate:
            if self._threads or self._closed.is_set():
                return
            self._threads = [
                threading.Thread(
                    target=self._work, args=(child, number == 0), daemon=True, name="text-model"
                )
                for number, child in enumerate(self._children)
            ]
        log.info("encoder.loading", model=self._card.name)
        for thread in self._threads:
            thread.start()

    async def embed(self, texts: Sequence[str]) -> Encoded:
        """Features of texts; contract in :class:`~coordinator.inference.encoder.Encoder`.

        Raises:
            ModelError: it is a reader, which has none.
        """
        self._must(reads=False)
        return await self._encoded("embed", texts, {})

    async def classify(self, texts: Sequence[str], adapter: ServedAdapter) -> Encoded:
        """Logits of texts; contract in :class:`~coordinator.inference.encoder.Encoder`."""
        self._must(reads=False)
        digest = digest_of(adapter.data)
        return await self._encoded("classify", texts, {"adapter": digest}, data=adapter.data)

    async def read(
        self,
        question: str,
        passages: Sequence[str],
        *,
        answers: int,
        threshold: float | None = 0.0,
    ) -> list[Span]:
        """The best spans; contract in :class:`~coordinator.inference.encoder.Encoder`.

        Args:
            question: One question.
            passages: Where to look, of any length.
            answers: At most so many; no two overlap.
            threshold: A span must score higher than this; ``None``: the best are given even
                where "no answer" scores higher.
        """
        self._must(reads=True)
        asked = {"question": question, "answers": answers, "threshold": threshold}
        with self._admitted(len(passages)):
            found = await self._in_turn(
                [("read", asked | {"passages": [passage]}) for passage in passages]
            )
        spans = [
            Span(number, start, end, text, score)
            for number, of_one in enumerate(found)
            for _, start, end, text, score in of_one
        ]
        spans.sort(key=lambda span: (-span.score, span.passage, span.start))
        return spans[:answers]

    def close(self) -> None:
        """End the workers; whoever waits is told. Harmless if none runs."""
        self._closed.set()
        self._ready.set()
        with self._gate:
            threads = list(self._threads)
        for _ in threads:
            self._jobs.put(None)
        while any(thread.is_alive() for thread in threads):
            # Again and again: a thread may be about to start its process just now.
            for child in (self._importer, *self._children):
                if child.pid is not None:
                    child.close()
            for thread in threads:
                thread.join(timeout=0.05)
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                job[2].set_exception(EngineError("the coordinator is shutting down"))
        for child in (self._importer, *self._children):
            child.close()

    async def _encoded(
        self, operation: str, texts: Sequence[str], more: dict[str, Any], data: bytes | None = None
    ) -> Encoded:
        bounds = [*range(0, len(texts), PIECE), len(texts)]
        pieces = [list(texts[start:end]) for start, end in pairwise(bounds)]
        with self._admitted(len(texts)):
            found = await self._in_turn(
                [(operation, {"texts": piece} | more) for piece in pieces], data
            )
        rows = [np.frombuffer(one["values"], "<f4").reshape(one["shape"]) for one in found]
        return Encoded(np.concatenate(rows), sum(one["tokens"] for one in found))

    async def _in_turn(
        self, jobs: Sequence[tuple[str, dict[str, Any]]], data: bytes | None = None
    ) -> list[Any]:
        """Answers of jobs in their order; no more of them queue at a time than workers are (C4)."""
        self.start()
        room = asyncio.Semaphore(len(self._children))

        async def one(operation: str, arguments: dict[str, Any]) -> Any:
            async with room:
                if operation != "classify":
                    return await self._asked(operation, arguments)
                found = await self._asked(operation, arguments | {"data": None})
                if found is None:  # this worker has not seen the adapter yet, or not lately
                    found = await self._asked(operation, arguments | {"data": data})
                return found

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_told(one(*job))) for job in jobs]
        results = [task.result() for task in tasks]
        for result in results:
            if isinstance(result, LlmOsError):
                raise result
        return results

    async def _asked(self, operation: str, arguments: dict[str, Any]) -> Any:
        if self._closed.is_set():
            raise EngineError("the coordinator is shutting down")
        answer: Future[Any] = Future()
        self._jobs.put((operation, arguments, answer))
        return await asyncio.wrap_future(answer)

    @contextlib.contextmanager
    def _admitted(self, count: int) -> Iterator[None]:
        with self._gate:
            if self._card.state is EngineState.FAILED:
                raise EngineError(f"{self._card.name} could not be loaded: {self._card.reason}")
            if self._waiting and self._waiting + count > self._max_waiting:
                raise EngineBusy(
                    f"{self._waiting} texts wait for {self._card.name} already: ask again later"
                )
            self._waiting += count
        try:
            yield
        finally:
            with self._gate:
                self._waiting -= count

    def _must(self, *, reads: bool) -> None:
        if self._reads and not reads:
            raise ModelError(f"{self._card.name} finds answers in passages, it gives no embeddings")
        if reads and not self._reads:
            raise ModelError(f"{self._card.name} has no head for spans: serve one with --reader")

    def _work(self, child: Child, imports: bool) -> None:
        if imports:
            self._prepare()
        self._ready.wait()
        if self._folder and not self._closed.is_set():
            with contextlib.suppress(LlmOsError):  # said again to whoever asks
                child.call("open", folder=self._folder, reads=self._reads)
        while (job := self._jobs.get()) is not None:
            operation, arguments, answer = job
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(self._call(child, operation, arguments))
            except Exception as err:  # noqa: BLE001  it belongs to whoever asked
                answer.set_exception(err)

    def _prepare(self) -> None:
        """Import, in a process that ends then: the graph tools take hundreds of megabytes."""
        try:
            facts = self._importer.call(
                "prepare", source=self._source, models=str(self._models), reads=self._reads
            )
        except LlmOsError as err:
            self._card = replace(self._card, state=EngineState.FAILED, reason=str(err))
            if not self._closed.is_set():
                log.error("encoder.failed", model=self._card.name, reason=str(err))
        else:
            self._folder = facts["folder"]
            self._card = replace(
                self._card,
                state=EngineState.READY,
                base=Digest(facts["base"]),
                features=int(facts["features"]),
                max_tokens=int(facts["max_tokens"]),
            )
            log.info("encoder.ready", model=self._card.name)
        finally:
            self._importer.close()
            self._ready.set()

    def _call(self, child: Child, operation: str, arguments: dict[str, Any]) -> Any:
        if self._closed.is_set():
            raise EngineError("the coordinator is shutting down")
        if not self._folder:
            raise EngineError(f"{self._card.name} could not be loaded: {self._card.reason}")

        def give_up() -> None:
            if (pid := child.pid) is not None:
                log.error("encoder.stuck", model=self._card.name, after_s=self._stuck_s)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(self._stuck_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            return child.call(operation, folder=self._folder, **arguments)
        except ChildDied as err:
            log.error("encoder.died", model=self._card.name, error=str(err))
            raise
        finally:
            timer.cancel()


async def _told(answer: Any) -> Any:
    """An answer, or our error as a value: a task group would wrap it."""
    try:
        return await answer
    except LlmOsError as err:
        return err
