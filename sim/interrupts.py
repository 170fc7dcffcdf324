"""An end that is asked for comes, whatever the program was doing just then."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

AGAIN_S: Final = 0.05
"""Time for Python to leave the callback in which an interrupt was lost."""


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end this like Ctrl-C, and let neither get lost. Call on the main thread.

    Python runs a signal's handler between any two steps of the main thread. Where these belong
    to a callback of its own (after a fork, of a weak reference, a ``__del__``) nobody could catch
    what the handler raises: Python reports and drops it. So it is raised once more, a moment later.
    """
    main = threading.get_ident()
    lost: list[threading.Timer] = []
    report = sys.unraisablehook

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def again(unraisable: UnraisableHookArgs, /) -> None:
        if threading.get_ident() != main or not issubclass(unraisable.exc_type, KeyboardInterrupt):
            report(unraisable)
            return
        # SIGTERM, because SIGINT may be ignored; to this thread, because it may be waiting.
        timer = threading.Timer(AGAIN_S, signal.pthread_kill, (main, signal.SIGTERM))
        timer.daemon = True
        lost.append(timer)
        timer.start()

    before = signal.signal(signal.SIGTERM, interrupt)
    sys.unraisablehook = again
    try:
        yield
    finally:
        # One that is lost while all ends comes too late, and must not meet the next handler.
        for timer in lost:
            timer.cancel()
            timer.join()
        sys.unraisablehook = report
        signal.signal(signal.SIGTERM, before)
