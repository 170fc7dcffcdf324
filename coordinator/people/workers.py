"""Logins on threads of their own: few at once, so that the rest of the API has the processor."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from shared.errors import TooManyTries

ResultT = TypeVar("ResultT")

AT_ONCE: Final = 2
WAITING: Final = 32
"""At a quarter of a second each, whoever is last waits for four seconds."""
RETRY_S: Final = 5.0


class Workers:
    """Does at most ``AT_ONCE`` things at once, and lets ``WAITING`` wait."""

    def __init__(self, *, at_once: int = AT_ONCE, waiting: int = WAITING) -> None:
        """Begin without threads; they come with the work."""
        self._places = threading.BoundedSemaphore(at_once + waiting)
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="people")

    def submit(self, task: Callable[[], ResultT]) -> Future[ResultT]:
        """Have something done, on behalf of whom this thread acts for.

        Raises:
            TooManyTries: as much waits as may.
        """
        if not self._places.acquire(blocking=False):
            raise TooManyTries("too many log in at this moment", retry_after_s=RETRY_S)
        future = self._pool.submit(contextvars.copy_context().run, task)
        future.add_done_callback(lambda _: self._places.release())
        return future

    def close(self) -> None:
        """End when what is under way is done; what waits is not begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)
