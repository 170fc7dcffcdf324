"""The line before one engine, where coroutines of any event loop and thread wait for a slot.

The order is :class:`~coordinator.inference.fair_queue.FairQueue`'s; here are its lock, its bounds
and the waking up.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from coordinator.inference.engine import Engine, EngineState
from coordinator.inference.fair_queue import FairQueue, Turn
from shared.errors import EngineBusy

LOOK_S: Final = 1.0
"""How often who waits looks whether the engine has got more slots."""

PACE_S: Final = 60.0
"""The recent pace is taken over so long, and over so many answers at most:"""
PACE_ANSWERS: Final = 64

UNKNOWN_S: Final = 5.0
"""When to ask again while a model is being loaded, or as long as there is no pace yet."""

LONGEST_S: Final = 60.0
"""Nobody is sent away for longer: by then the pace may be another."""


@dataclass(frozen=True, slots=True)
class DeskLimits:
    """How much may wait before each engine.

    Attributes:
        waiting: Requests of all callers.
        waiting_of_one: Requests of one caller, so that none can fill the line.
        waiting_bytes: Of all prompts that wait.
        timeout_s: Who has waited so long is told to come again.
    """

    waiting: int = 256
    waiting_of_one: int = 64
    waiting_bytes: int = 64 * 2**20
    timeout_s: float = 60.0


@dataclass(slots=True, eq=False)
class Place:
    """A request's place in the line, and then its slot."""

    caller: str
    size: int
    """Bytes of its prompt."""
    asked_at: float
    loop: asyncio.AbstractEventLoop
    woken: asyncio.Future[None]
    state: Literal["waiting", "serving", "over"] = "waiting"
    let_in_at: float | None = None
    turn: Turn[Place] | None = field(default=None, repr=False)


class WaitingLine:
    """Lets in as many requests as the engine has slots."""

    def __init__(
        self, model: str, engine: Engine, limits: DeskLimits, now: Callable[[], float]
    ) -> None:
        self._model = model
        self._engine = engine
        self._limits = limits
        self._now = now
        self._lock = threading.Lock()
        self._queue: FairQueue[Place] = FairQueue()
        self._bytes = 0
        self._ended: deque[float] = deque(maxlen=PACE_ANSWERS)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return self._queue.waiting

    @property
    def serving(self) -> int:
        """Requests that were let in and are not over."""
        return self._queue.serving

    def enter(self, caller: str, *, priority: int, cost: float, size: int) -> Place:
        """Take a place. Call on the event loop that will wait.

        Args:
            caller: Whose line it joins.
            priority: Higher goes first.
            cost: Estimated, in tokens.
            size: Bytes of the prompt, which are kept while it waits.

        Raises:
            EngineBusy: no more may wait, of this caller or of all.
        """
        loop = asyncio.get_running_loop()
        now = self._now()
        place = Place(caller, size, now, loop, loop.create_future())
        with self._lock:
            own = self._queue.waiting_of(caller)
            if own >= self._limits.waiting_of_one:
                raise EngineBusy(
                    f"{own} of your requests wait for {self._model} already: ask again later",
                    retry_after_s=self._pause_s(caller),
                )
            if (
                self._queue.waiting >= self._limits.waiting
                or self._bytes + size > self._limits.waiting_bytes
            ):
                raise EngineBusy(
                    f"{self._queue.waiting} requests wait for {self._model} already: ask again later",
                    retry_after_s=self._pause_s(caller),
                )
            self._bytes += size
            place.turn = self._queue.push(place, caller, priority=priority, cost=cost, now=now)
        return place

    async def let_in(self, place: Place) -> None:
        """Wait for a slot.

        Raises:
            EngineBusy: it took too long.
        """
        self._next()
        while place.state == "waiting":
            left_s = place.asked_at + self._limits.timeout_s - self._now()
            if left_s <= 0:
                raise EngineBusy(
                    f"{self._model} had no time for this within {self._limits.timeout_s:g} s: "
                    "ask again later",
                    retry_after_s=self.pause_s(place.caller),
                )
            await asyncio.wait({place.woken}, timeout=min(left_s, LOOK_S))
            if place.state == "waiting":
                self._next()

    def leave(self, place: Place, *, cost: float) -> None:
        """Give up a place or a slot, whichever it is; a second time nothing happens.

        ``cost`` in tokens is what was really used; where it never came to a slot, nothing was.
        """
        assert place.turn is not None
        now = self._now()
        with self._lock:
            was, place.state = place.state, "over"
            if was == "waiting":
                self._queue.remove(place.turn)
                self._bytes -= place.size
            elif was == "serving":
                self._queue.settle(place.turn, cost=cost, now=now)
                self._ended.append(now)
        self._next()

    def pause_s(self, caller: str) -> float:
        """After how many seconds it is worth while for a caller to ask again: a guess."""
        with self._lock:
            return self._pause_s(caller)

    def _pause_s(self, caller: str) -> float:
        now = self._now()
        while self._ended and now - self._ended[0] > PACE_S:
            self._ended.popleft()
        if self._engine.card.state is not EngineState.READY or len(self._ended) < 2:
            return UNKNOWN_S
        per_s = len(self._ended) / max(now - self._ended[0], 1e-3)
        # What its own line holds, at its share; all that waits is the most it can be.
        callers = max(1, self._queue.callers_waiting)
        before = min(self._queue.waiting, self._queue.waiting_of(caller) * callers)
        return min(LONGEST_S, max(1.0, (before or self._queue.waiting) / per_s))

    def _next(self) -> None:
        """Let in whom there are slots for."""
        slots = max(1, self._engine.load.slots)
        now = self._now()
        let_in: list[Place] = []
        with self._lock:
            while (turn := self._queue.pop(slots=slots, now=now)) is not None:
                place = turn.item
                place.state, place.let_in_at = "serving", now
                self._bytes -= place.size
                let_in.append(place)
        for place in let_in:
            try:
                place.loop.call_soon_threadsafe(_wake, place.woken)
            except RuntimeError:  # its loop was closed without ending what ran there
                self.leave(place, cost=0.0)


def _wake(woken: asyncio.Future[None]) -> None:
    with contextlib.suppress(asyncio.InvalidStateError):
        woken.set_result(None)
