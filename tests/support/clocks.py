"""A clock that moves only when told to, so that hours of simulated time cost nothing."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from threading import Lock


class VirtualClock:
    """Callbacks in order of their due time, and of scheduling where that is equal."""

    def __init__(self, *, start_s: float = 0.0) -> None:
        self._now_s = start_s
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._lock = Lock()

    def now(self) -> float:
        """Seconds on this clock."""
        return self._now_s

    def schedule(self, delay_s: float, callback: Callable[[], None]) -> None:
        """Run ``callback`` in ``delay_s`` seconds; safe on any thread."""
        assert delay_s >= 0
        with self._lock:
            heapq.heappush(self._due, (self._now_s + delay_s, next(self._numbers), callback))

    def step(self) -> bool:
        """Go to the next callback and run it; False if there is none."""
        with self._lock:
            if not self._due:
                return False
            self._now_s, _, callback = heapq.heappop(self._due)
        callback()
        return True

    def run(self, *, until_s: float = float("inf")) -> None:
        """Run everything that is due up to ``until_s``, and be there afterwards."""
        while self._due and self._due[0][0] <= until_s:
            self.step()
        if until_s != float("inf"):
            self._now_s = until_s
