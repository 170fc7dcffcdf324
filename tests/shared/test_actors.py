"""An actor is driven by one thread: messages, results and ticks come one at a time, and it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest

from shared.actors import ActorLoop
from shared.errors import BrokerUnavailable, StorageError
from shared.transport.memory import MemoryNetwork, MemoryTransport
from shared.transport.transport import Handler


def network() -> MemoryNetwork:
    """Delivers at once, on the publisher's thread."""
    return MemoryNetwork(lambda _, action: action(), np.random.default_rng(0), now=time.monotonic)


class Recorder:
    """Writes down what happens to it, on which thread, and ends the loop when told to."""

    topics = ("in/#",)

    def __init__(self, *, wants: float = 5.0) -> None:
        self.happened: list[tuple[str, int]] = []
        self.on_tick: Callable[[], None] = lambda: None
        self.on_receive: Callable[[bytes], None] = lambda _: None
        self.wants = wants

    def receive(self, topic: str, payload: bytes) -> None:
        """Write it down."""
        self._note(f"{topic} {payload.decode()}")
        self.on_receive(payload)

    def tick(self) -> float:
        """Write it down."""
        self._note("tick")
        self.on_tick()
        return self.wants

    def close(self) -> None:
        """Write it down."""
        self._note("close")

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.happened]

    def _note(self, kind: str) -> None:
        self.happened.append((kind, threading.get_ident()))


def ends(net: MemoryNetwork) -> tuple[MemoryTransport, MemoryTransport]:
    other = net.attach("other")
    other.open(lambda *_: None, ())
    return net.attach("actor"), other


def test_messages_arrive_in_order_on_the_loops_own_thread() -> None:
    loop, actor = ActorLoop(), Recorder()
    mine, other = ends(network())
    numbers = [str(number).encode() for number in range(100)]

    def publish() -> None:
        for number in numbers:
            other.publish("in/x", number)

    def stop_at_the_last(payload: bytes) -> None:
        if payload == numbers[-1]:
            loop.stop()

    publisher = threading.Thread(target=publish)
    actor.on_tick = lambda: publisher.start() if publisher.ident is None else None
    actor.on_receive = stop_at_the_last
    loop.run(actor, mine)
    received = [kind for kind in actor.kinds() if kind.startswith("in/")]
    assert received == [f"in/x {number}" for number in range(100)]
    assert {thread for _, thread in actor.happened} == {threading.get_ident()}
    assert actor.kinds()[-1] == "close"
    assert not mine.connected


def test_slow_work_runs_elsewhere_and_its_result_comes_home() -> None:
    loop, actor = ActorLoop(), Recorder()
    mine, _ = ends(network())
    threads: dict[str, int] = {}
    results: list[Any] = []

    may_end = threading.Event()

    def work() -> int:
        may_end.wait()
        threads["work"] = threading.get_ident()
        return 7

    def done(result: Future[int]) -> None:
        threads["done"] = threading.get_ident()
        results.append(result.result())
        loop.stop()

    started = threading.Event()

    def begin() -> None:
        if not started.is_set():
            started.set()
            loop.work(work, done)
            may_end.set()

    actor.on_tick = begin
    loop.run(actor, mine)
    assert results == [7]
    assert threads["done"] == threading.get_ident() != threads["work"]


def test_slow_work_and_what_follows_it_are_about_what_their_caller_was_about() -> None:
    """Context variables go along, so that log lines name the same run."""
    about: ContextVar[str] = ContextVar("about", default="nothing")
    loop, actor, seen = ActorLoop(), Recorder(), list[str]()
    mine, _ = ends(network())

    def done(_: Future[None]) -> None:
        seen.append(about.get())
        if len(seen) == 4:
            loop.stop()

    def begin() -> None:
        actor.on_tick = lambda: None
        for name in ("a run", "another"):
            token = about.set(name)
            loop.work(lambda: seen.append(about.get()), done)
            about.reset(token)

    actor.on_tick = begin
    loop.run(actor, mine)
    assert sorted(seen) == ["a run", "a run", "another", "another"]
    assert about.get() == "nothing"


def test_an_error_in_slow_work_is_the_results() -> None:
    loop, actor = ActorLoop(), Recorder()
    mine, _ = ends(network())
    errors: list[BaseException | None] = []
    started = threading.Event()

    def work() -> None:
        raise StorageError("full")

    def done(result: Future[None]) -> None:
        errors.append(result.exception())
        loop.stop()

    def begin() -> None:
        if not started.is_set():
            started.set()
            loop.work(work, done)

    actor.on_tick = begin
    loop.run(actor, mine)
    assert [type(error) for error in errors] == [StorageError]


def test_ticks_come_while_messages_pour_in() -> None:
    """A flood delays what is due; it does not stop it."""
    loop, actor = ActorLoop(), Recorder(wants=0.0)
    mine, other = ends(network())
    ticks = 0

    def flood(_: bytes) -> None:
        other.publish("in/x", b"again")

    def count() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 1:
            flood(b"")
        if ticks == 20:
            loop.stop()

    actor.on_receive, actor.on_tick = flood, count
    loop.run(actor, mine)
    assert ticks == 20


def test_an_actor_that_wants_to_sleep_long_is_still_woken() -> None:
    loop, actor = ActorLoop(), Recorder(wants=1e9)
    mine, _ = ends(network())
    ticks = 0

    def count() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 2:
            loop.stop()

    actor.on_tick = count
    loop.run(actor, mine)
    assert ticks == 2


def test_a_stop_before_the_start_is_a_stop() -> None:
    loop, actor = ActorLoop(), Recorder()
    mine, _ = ends(network())
    loop.stop()
    loop.run(actor, mine)
    assert actor.kinds() == ["close"]


def test_a_bug_in_an_actor_ends_the_loop_with_that_error_and_in_order() -> None:
    loop, actor = ActorLoop(), Recorder()
    mine, _ = ends(network())

    def bug() -> None:
        raise ZeroDivisionError

    actor.on_tick = bug
    with pytest.raises(ZeroDivisionError):
        loop.run(actor, mine)
    assert actor.kinds() == ["tick", "close"]
    assert not mine.connected


def test_without_a_broker_the_actor_is_not_started() -> None:
    class NoBroker(MemoryTransport):
        def open(self, on_message: Handler, topics: object) -> None:
            raise BrokerUnavailable("nobody answers")

    loop, actor = ActorLoop(), Recorder()
    net = network()
    closed = NoBroker(net, "nobody", net.attach("x").link)
    with pytest.raises(BrokerUnavailable):
        loop.run(actor, closed)
    assert actor.kinds() == []


def test_the_clock_is_one_that_survives_restarts() -> None:
    before = time.time()
    assert before <= ActorLoop().now() <= time.time()
