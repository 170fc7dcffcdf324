"""An asyncio event loop on virtual time: what waits an hour there takes no time here."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


class _NoWaiting(selectors.DefaultSelector):
    """Instead of waiting, moves the loop's clock."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is not None and timeout > 0:
            self.loop.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Everything must happen on this loop alone: other threads know no virtual time."""

    def __init__(self) -> None:
        selector = _NoWaiting()
        selector.loop = self
        self.now_s = 0.0
        super().__init__(selector)

    def time(self) -> float:
        """Virtual seconds."""
        return self.now_s


def run_virtually(make: Coroutine[Any, Any, ResultT], loop: VirtualLoop) -> ResultT:
    """As ``asyncio.run``, on virtual time."""
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(make)
