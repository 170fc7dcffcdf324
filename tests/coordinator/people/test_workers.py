"""Two logins at a time, some that wait, and the rest is told to come again."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from coordinator.audit.sink import acting
from coordinator.people.workers import Workers
from shared.errors import TooManyTries


def test_so_many_at_once_and_so_many_waiting_and_not_one_more() -> None:
    go, lock, running, most = threading.Event(), threading.Lock(), 0, 0

    def task() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        go.wait(60)
        with lock:
            running -= 1

    workers = Workers(at_once=2, waiting=3)
    futures: list[Future[None]] = [workers.submit(task) for _ in range(5)]
    with pytest.raises(TooManyTries) as caught:
        workers.submit(task)
    assert caught.value.retry_after_s
    go.set()
    for future in futures:
        future.result(60)
    assert most == 2
    workers.submit(task).result(60)
    workers.close()


def test_what_failed_or_was_cancelled_makes_room() -> None:
    workers = Workers(at_once=1, waiting=1)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            workers.submit(lambda: 1 / 0).result(60)
    go = threading.Event()
    first = workers.submit(lambda: go.wait(60))
    second = workers.submit(lambda: True)
    assert second.cancel()
    third = workers.submit(lambda: True)
    go.set()
    assert first.result(60)
    assert third.result(60)
    workers.close()


def test_it_is_done_on_behalf_of_whoever_asked() -> None:
    workers = Workers(at_once=1)
    for name in ("person:anna", "person:bert"):
        token = acting.set(name)
        future = workers.submit(acting.get)
        acting.reset(token)
        assert future.result(60) == name
    workers.close()
