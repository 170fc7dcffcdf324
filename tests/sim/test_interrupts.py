"""Ctrl-C and SIGTERM end what they are meant to end, wherever they come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sim.interrupts import AGAIN_S, ended_by_signals

PATIENCE_S = 60.0
ROOT = Path(__file__).parents[2]
SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _interrupts_as_python_starts_with() -> Iterator[None]:
    """Another test may have run a service in this process, which takes signals for good."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Dying:
    """Something whose end calls back."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback

    def __del__(self) -> None:
        self._callback()


def in_its_last_moment(callback: Callable[[], None]) -> None:
    dying = Dying(callback)
    del dying


def when_it_is_gone(callback: Callable[[], None]) -> None:
    gone = Dying(lambda: None)
    reference = weakref.ref(gone, lambda _: callback())
    del gone
    assert reference() is None


def is_ended(work: Callable[[], None]) -> bool:
    """Whether a signal in ``work`` ends what goes on for long after it."""
    try:
        with ended_by_signals():
            work()
            time.sleep(PATIENCE_S)
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("where", [in_its_last_moment, when_it_is_gone])
def test_a_signal_in_a_callback_that_cannot_fail_ends_what_waits(
    number: signal.Signals, where: Callable[[Callable[[], None]], None]
) -> None:
    assert is_ended(lambda: where(lambda: signal.raise_signal(number)))


def test_a_signal_that_gets_lost_again_and_again_comes_through() -> None:
    left = 3

    def lost_again() -> None:
        # For as long as the next one takes: it comes while this runs.
        nonlocal left
        while left > 0:
            left -= 1
            in_its_last_moment(lambda: time.sleep(PATIENCE_S))

    def lost() -> None:
        in_its_last_moment(lambda: signal.raise_signal(signal.SIGTERM))
        lost_again()

    assert is_ended(lost)
    assert left == 0


FORKS = f"""
import os, signal, subprocess, time
from sim.interrupts import ended_by_signals
asked = []
def after_fork():
    if not asked:
        asked.append(True)
        signal.raise_signal(signal.SIGTERM)
os.register_at_fork(after_in_parent=after_fork)
with ended_by_signals():
    # As the demonstration starts its processes.
    subprocess.Popen(["true"], preexec_fn=lambda: None).wait()
    time.sleep({PATIENCE_S})
"""


def test_a_signal_that_comes_as_a_process_is_forked_is_not_lost() -> None:
    """Here ``logging`` lets go of its lock: Python calls it, and drops what it raises."""
    ended = subprocess.run(
        [sys.executable, "-c", FORKS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == -signal.SIGINT
    assert "Exception ignored" not in ended.stderr


def test_another_failure_of_a_callback_is_reported_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: reported.append(what.exc_type))

    def fail() -> None:
        raise ValueError

    with ended_by_signals():
        in_its_last_moment(fail)
    in_its_last_moment(fail)
    assert reported == [ValueError, ValueError]


def test_what_comes_too_late_meets_nobody_else() -> None:
    met: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: met.append(number))
    try:
        with ended_by_signals():
            in_its_last_moment(lambda: signal.raise_signal(signal.SIGTERM))
        time.sleep(4 * AGAIN_S)
        assert met == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert met == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not any(isinstance(each, threading.Timer) for each in threading.enumerate())
