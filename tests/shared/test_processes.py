"""A worker may do anything to itself; its parent gets an answer or an error of ours, in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ChildDied, CohortTooSmall, ConfigError, DigestMismatch
from shared.processes import Child
from tests.support.brokers import eventually

MODULE = "tests.support.worker_for_tests"


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child(MODULE)
    yield child
    child.close()


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_nothing_is_started_before_it_is_needed(child: Child) -> None:
    pids = [child.pid]
    child.start()
    pids.append(child.pid)
    assert pids == [None, child.call("facts")["pid"]]


@pytest.mark.parametrize(
    "value", [None, True, -5, 2.5, "ä", b"\x00" * 100_000, [1, [2]], {"a": {"b": b"c"}}]
)
def test_values_cross_both_ways(child: Child, value: Any) -> None:
    assert child.call("echo", value=value) == value


def test_the_process_stays_between_calls(child: Child) -> None:
    assert [child.call("count") for _ in range(3)] == [1, 2, 3]


def test_what_an_operation_prints_is_not_taken_for_an_answer(child: Child) -> None:
    assert child.call("shout") == "said"
    assert child.call("echo", value=1) == 1


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("digest", DigestMismatch, "not the one"),
        ("cohort", CohortTooSmall, "1 of the required 2 devices"),
        ("config", ConfigError, "a: unknown"),
    ],
)
def test_an_error_of_ours_arrives_as_itself_and_costs_no_process(
    child: Child, kind: str, error: type[Exception], message: str
) -> None:
    assert child.call("count") == 1
    with pytest.raises(error, match=message):
        child.call("fail", kind=kind)
    assert child.call("count") == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda child: child.call("fail", kind="foreign"),
        lambda child: child.call("no_such_operation"),
        lambda child: child.call("echo"),
        lambda child: child.call("echo", wrong=1),
    ],
)
def test_a_foreign_error_is_a_failed_worker_and_says_what_it_was(
    child: Child, call: Callable[[Child], Any]
) -> None:
    child.call("count")
    with pytest.raises(ChildDied, match=r"KeyError|TypeError"):
        call(child)
    assert child.call("count") == 2


@pytest.mark.parametrize("status", [0, 3])
def test_a_death_is_an_error_and_the_next_call_starts_afresh(child: Child, status: int) -> None:
    child.call("count")
    with pytest.raises(ChildDied, match="during 'die'"):
        child.call("die", status=status)
    assert child.pid is None
    assert child.call("count") == 1


def test_an_answer_that_cannot_be_sent_is_a_death(child: Child) -> None:
    with pytest.raises(ChildDied):
        child.call("unspeakable")
    assert child.call("echo", value=1) == 1


def test_a_question_that_cannot_be_sent_costs_nothing(child: Child) -> None:
    child.call("count")
    with pytest.raises(Exception, match="cannot encode"):
        child.call("echo", value=object())
    assert child.call("count") == 2


def test_a_death_between_two_calls_goes_unnoticed_and_leaks_nothing(child: Child) -> None:
    child.call("count")
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        pid = child.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda pid=pid: not alive(pid))  # type: ignore[misc]
        assert child.call("count") == 1
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_memory_is_bounded_and_running_out_is_survived() -> None:
    limited = Child(MODULE, memory_limit_bytes=200 << 20)
    assert limited.call("allocate", size=50 << 20) == 50 << 20
    with pytest.raises(ChildDied, match="MemoryError"):
        limited.call("allocate", size=300 << 20)
    assert limited.call("echo", value=1) == 1
    limited.close()


def test_control_without_a_limit_the_memory_is_given(child: Child) -> None:
    assert child.call("allocate", size=300 << 20) == 300 << 20


def test_threads_and_niceness_are_as_asked() -> None:
    child = Child(MODULE, threads=3, nice=2)
    assert child.call("environment", name="OMP_NUM_THREADS") == "3"
    assert child.call("facts")["nice"] == min(os.nice(0) + 2, 19)
    child.close()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_call_that_takes_too_long_ends_the_process_even_one_that_is_stopped(
    stopped: bool,
) -> None:
    child = Child("tests.support.worker_for_tests", deadline_s=30.0)
    try:
        assert child.call("echo", value=1) == 1  # it is not ended in the middle of its start
        child._deadline_s = 0.2
        pid = child.pid
        assert pid is not None
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ChildDied, match=r"took longer than 0\.2 s"):
            child.call("sleep", seconds=3600)
        assert not alive(pid)
        child._deadline_s = 30.0
        assert child.call("echo", value=2) == 2
    finally:
        child.close()


def test_closing_ends_a_call_that_would_take_for_ever(child: Child) -> None:
    child.start()
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            child.call("sleep", seconds=3600)
        except ChildDied as err:
            failures.append(err)

    thread = threading.Thread(target=wait)
    thread.start()
    pid = child.pid
    assert pid is not None
    while thread.is_alive():
        # More than once: the call may not have begun.
        child.close()
        thread.join(0.05)
    assert len(failures) == 1
    assert not alive(pid)
    child.close()  # harmless


def test_calls_of_several_threads_get_their_own_answers(child: Child) -> None:
    answers: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        answers[number] = [child.call("echo", value=number) for _ in range(50)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    child.start()  # on this thread: with the one that starts it, the process ends
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [number] * 50 for number in range(4)}


def test_a_process_that_cannot_be_started_is_an_error_of_ours(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/no/such/python")
        with pytest.raises(ChildDied):
            child.call("echo", value=1)
    assert child.call("echo", value=1) == 1


PARENT = f"""
import sys, time
from shared.processes import Child
child = Child({MODULE!r})
print(child.call("facts")["pid"], flush=True)
time.sleep(3600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux offers it")
def test_a_child_does_not_outlive_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: not alive(pid))
