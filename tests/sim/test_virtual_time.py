"""Virtual time: callbacks in order of their moment, whatever real threads do meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextvars import ContextVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.transport.memory import MemoryNetwork
from sim.virtual_time import VirtualTime, drive


@pytest.fixture
def time() -> Iterator[VirtualTime]:
    time = VirtualTime(workers=2)
    yield time
    time.close()


def never() -> bool:
    return False


@given(delays=st.lists(st.floats(0, 100), max_size=20))
def test_callbacks_run_in_order_of_their_moment_and_then_of_scheduling(delays: list[float]) -> None:
    time, ran = VirtualTime(workers=1), []
    for number, delay in enumerate(delays):
        time.schedule(delay, lambda n=number: ran.append((time.now(), n)))  # type: ignore[misc]
    assert not time.run(until=never, limit_s=1000)
    assert ran == sorted((delay, number) for number, delay in enumerate(delays))
    time.close()


def test_what_a_callback_schedules_for_now_runs_behind_what_is_due_now(time: VirtualTime) -> None:
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        time.schedule(0, lambda: ran.append("third"))

    time.schedule(1, first)
    time.schedule(1, lambda: ran.append("second"))
    time.run(until=never, limit_s=10)
    assert ran == ["first", "second", "third"]


def test_it_stops_at_the_event_that_makes_the_condition_true(time: VirtualTime) -> None:
    ran: list[int] = []
    for moment in (1, 2, 3):
        time.schedule(moment, lambda m=moment: ran.append(m))  # type: ignore[misc]
    assert time.run(until=lambda: 2 in ran, limit_s=10)
    assert (ran, time.now()) == ([1, 2], 2)


def test_an_event_at_the_limit_runs_and_one_after_it_waits_for_a_later_run(
    time: VirtualTime,
) -> None:
    ran: list[float] = []
    for moment in (5.0, 5.5):
        time.schedule(moment, lambda m=moment: ran.append(m))  # type: ignore[misc]
    assert not time.run(until=never, limit_s=5.0)
    assert (ran, time.now()) == ([5.0], 5.0)
    assert time.run(until=lambda: len(ran) == 2, limit_s=6.0)
    assert time.now() == 5.5


def test_a_condition_that_holds_already_lets_nothing_happen(time: VirtualTime) -> None:
    ran: list[int] = []
    time.schedule(0, lambda: ran.append(1))
    assert time.run(until=lambda: True, limit_s=10)
    assert ran == []


def test_slow_work_takes_its_virtual_time_however_long_it_really_takes(time: VirtualTime) -> None:
    """The quick task ends first in reality, and its result still comes second."""
    arrived: list[tuple[float, str]] = []
    quick_is_done = threading.Event()

    def slow() -> str:
        assert quick_is_done.wait(60)
        return "slow"

    def quick() -> str:
        quick_is_done.set()
        return "quick"

    def done(result: Future[str]) -> None:
        arrived.append((time.now(), result.result()))

    time.bench(1.0).work(slow, done)
    time.bench(2.0).work(quick, done)
    time.run(until=lambda: len(arrived) == 2, limit_s=10)
    assert arrived == [(1.0, "slow"), (2.0, "quick")]


def test_slow_work_and_what_follows_it_are_about_what_their_caller_was_about(
    time: VirtualTime,
) -> None:
    about: ContextVar[str] = ContextVar("about", default="nothing")
    seen: list[str] = []
    token = about.set("a run")
    time.bench(1.0).work(
        lambda: seen.append(about.get()), lambda _: seen.append(f"{about.get()} goes on")
    )
    about.reset(token)
    time.run(until=never, limit_s=10.0)
    assert seen == ["a run", "a run goes on"]


def test_an_error_in_slow_work_is_told_and_not_lost(time: VirtualTime) -> None:
    told: list[BaseException | None] = []

    def fails() -> None:
        raise ValueError("no")

    time.bench(1.0).work(fails, lambda result: told.append(result.exception()))
    time.run(until=lambda: bool(told), limit_s=10)
    assert isinstance(told[0], ValueError)


class Metronome:
    """An actor that notes when it is called."""

    topics: Sequence[str] = ("beat",)

    def __init__(self, time: VirtualTime) -> None:
        self._time = time
        self.ticks: list[float] = []
        self.heard: list[float] = []

    def receive(self, _topic: str, _payload: bytes) -> None:
        self.heard.append(self._time.now())

    def tick(self) -> float:
        self.ticks.append(self._time.now())
        return 10.0

    def close(self) -> None:
        pass


def test_an_actor_ticks_when_it_asked_to_and_after_each_message(time: VirtualTime) -> None:
    """And a message moves the next tick: there is never a second chain of them."""
    network = MemoryNetwork(time.schedule, np.random.default_rng(1), now=time.now)
    actor, drummer = Metronome(time), network.attach("drummer")
    drive(actor, network.attach("actor"), time)
    drummer.open(lambda _topic, _payload: None, ())

    def beat() -> None:
        drummer.publish("beat", b"")

    time.schedule(4.0, beat)
    time.run(until=never, limit_s=25.0)
    assert actor.heard == [4.0]
    assert actor.ticks == [0.0, 4.0, 14.0, 24.0]
