"""A clock that jumps: a simulated hour passes as fast as its events can be worked off.

Everything that happens is a callback at a moment; callbacks at the same moment
run in the order in which they were scheduled. So a simulation is a function of
its seed, although slow work runs on several real processes: its *result* enters
at a moment that does not depend on how long it really took.
"""

from __future__ import annotations

import contextvars
import heapq
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from shared.actors import Actor
from shared.transport.transport import Transport

ResultT = TypeVar("ResultT")


class VirtualTime:
    """The one clock of a simulation, and everything that waits on it."""

    def __init__(self, *, workers: int) -> None:
        """Start at time zero, with real threads for slow work."""
        self._now = 0.0
        self._order = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="work")

    def now(self) -> float:
        """Virtual seconds since the simulation began."""
        return self._now

    def schedule(self, delay: float, action: Callable[[], None]) -> None:
        """Run ``action`` after ``delay`` virtual seconds."""
        self._order += 1
        heapq.heappush(self._queue, (self._now + delay, self._order, action))

    def bench(self, work_s: float) -> VirtualBench:
        """A place for slow work that takes ``work_s`` virtual seconds, however long it really takes."""
        return VirtualBench(self, self._pool, work_s)

    def run(self, *, until: Callable[[], bool], limit_s: float) -> bool:
        """Work events off until ``until()`` holds; False if ``limit_s`` or the events ran out.

        Events after ``limit_s`` stay where they are: running on later loses nothing.
        """
        while self._queue and not until():
            if self._queue[0][0] > limit_s:
                self._now = max(self._now, limit_s)
                return False
            self._now, _, action = heapq.heappop(self._queue)
            action()
        return until()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class VirtualBench:
    """One actor's clock and place for slow work."""

    def __init__(self, time: VirtualTime, pool: ThreadPoolExecutor, work_s: float) -> None:
        self._time = time
        self._pool = pool
        self._work_s = work_s

    def now(self) -> float:
        """Virtual seconds since the simulation began."""
        return self._time.now()

    def work(self, task: Callable[[], ResultT], done: Callable[[Future[ResultT]], None]) -> None:
        """Start ``task`` at once; its result is there ``work_s`` virtual seconds later."""
        of_task, of_done = contextvars.copy_context(), contextvars.copy_context()
        future = self._pool.submit(of_task.run, task)

        def arrived() -> None:
            wait([future])
            of_done.run(done, future)

        self._time.schedule(self._work_s, arrived)


def drive(actor: Actor, transport: Transport, time: VirtualTime) -> None:
    """Let an actor live on virtual time, as ``ActorLoop`` does on the real one."""
    generation = 0

    def tick() -> None:
        nonlocal generation
        generation += 1
        mine = generation
        time.schedule(actor.tick(), lambda: tick() if mine == generation else None)

    def receive(topic: str, payload: bytes) -> None:
        actor.receive(topic, payload)
        tick()

    transport.open(receive, actor.topics)
    time.schedule(0.0, tick)
