"""Every process is an actor: one thread, messages in, messages out, a clock.

Coordinator, key holder and edge agent are state machines that are driven by
one thread at a time and never block. Where they run is decided outside: an
:class:`ActorLoop` drives one over a real transport and the real clock, the
simulation drives all of them over a virtual clock.
"""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import structlog

from shared.errors import LlmOsError
from shared.transport.transport import Transport

ResultT = TypeVar("ResultT")

log = structlog.get_logger()


class Workbench(Protocol):
    """Where an actor has slow work done while it goes on answering."""

    def now(self) -> float:
        """Seconds on the clock that the actor lives by."""
        ...

    def work(self, task: Callable[[], ResultT], done: Callable[[Future[ResultT]], None]) -> None:
        """Run ``task`` elsewhere; ``done(future)`` is called on the actor's own thread."""
        ...


class Actor(Protocol):
    """A process as a state machine."""

    @property
    def topics(self) -> Sequence[str]:
        """Topic filters to subscribe to."""
        ...

    def receive(self, topic: str, payload: bytes) -> None:
        """Take one message. Never raises for what a peer sent."""
        ...

    def tick(self) -> float:
        """Do what is due; returns seconds until it wants to be called again."""
        ...

    def close(self) -> None:
        """Release what was started."""
        ...


class ActorLoop:
    """Drives one actor over a real transport, on the thread that calls :meth:`run`."""

    def __init__(self, *, workers: int = 2) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="work")
        self._stopping = threading.Event()
        self._in_trouble = False

    def now(self) -> float:
        """Seconds since the epoch; deadlines that are written down survive a restart."""
        return time.time()

    def work(self, task: Callable[[], ResultT], done: Callable[[Future[ResultT]], None]) -> None:
        """Run ``task`` on a worker thread and ``done`` back on the actor's thread.

        Both see the context variables of whoever called this, so that their log lines name the
        same run or request.
        """
        of_task, of_done = contextvars.copy_context(), contextvars.copy_context()
        future = self._pool.submit(of_task.run, task)
        future.add_done_callback(lambda result: self.post(lambda: of_done.run(done, result)))

    def post(self, action: Callable[[], None]) -> None:
        """Run ``action`` on the actor's thread; callable from any thread."""
        self._inbox.put(action)

    def stop(self) -> None:
        """Make :meth:`run` return soon; callable from any thread and from signal handlers."""
        self._stopping.set()
        self._inbox.put(None)

    def run(self, actor: Actor, transport: Transport) -> None:
        """Drive ``actor`` until :meth:`stop`.

        Raises:
            BrokerUnavailable: no broker answered when the transport was opened.
        """
        transport.open(
            lambda topic, payload: self.post(lambda: actor.receive(topic, payload)), actor.topics
        )
        try:
            due = 0.0
            while not self._stopping.is_set():
                try:
                    action = self._inbox.get(timeout=max(0.0, due - time.monotonic()))
                except queue.Empty:
                    action = None
                if action is not None:
                    self._carefully(action)
                    if not self._inbox.empty() and time.monotonic() < due:
                        continue
                wanted = self._carefully(actor.tick)
                due = time.monotonic() + min(1.0 if wanted is None else wanted, 1.0)
        finally:
            log.info("actor.stopping")
            actor.close()
            transport.close()
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _carefully(self, step: Callable[[], ResultT]) -> ResultT | None:
        """Take a step; a failure of ours (a full disk, say) is an event and not the end.

        Whatever was not done is repeated: nobody was told that it was. One line is
        logged when trouble starts and one when it ends.
        """
        try:
            result = step()
        except LlmOsError as err:
            if not self._in_trouble:
                log.error("actor.failing", code=err.code, error=str(err))
            self._in_trouble = True
            return None
        if self._in_trouble:
            self._in_trouble = False
            log.info("actor.recovered")
        return result
