"""A process holds its folder alone, tells when it is ready, and ends in order on a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import StorageError
from shared.service import announced_ready, home_lock
from tests.support.brokers import eventually

HOLDER = """
import sys
from pathlib import Path
from shared.service import home_lock
with home_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""

ACTOR = """
import sys, time
from pathlib import Path
import numpy as np
from shared.actors import ActorLoop
from shared.service import announced_ready, serve
from shared.transport.memory import MemoryNetwork

home = Path(sys.argv[1])

class Actor:
    topics = ()
    def receive(self, topic, payload): ...
    def tick(self):
        (home / "at-work").touch()
        return 5.0
    def close(self): (home / "closed").write_text("in order")

network = MemoryNetwork(lambda _, action: action(), np.random.default_rng(0), now=time.monotonic)
with announced_ready(home, {"url": "here"}):
    serve(Actor(), network.attach("actor"), ActorLoop())
"""


def start(program: str, home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_a_home_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    other = start(HOLDER, tmp_path / "home")
    assert other.stdout is not None
    assert other.stdout.readline() == b"locked\n"
    with pytest.raises(StorageError, match="another process"), home_lock(tmp_path / "home"):
        raise AssertionError("two at once")
    end(other)  # killed, it cannot leave a lock behind
    with home_lock(tmp_path / "home"):
        pass
    with home_lock(tmp_path / "home"):
        pass


def test_a_new_home_is_its_owners(tmp_path: Path) -> None:
    with home_lock(tmp_path / "home"):
        assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


def test_another_home_is_another_lock(tmp_path: Path) -> None:
    with home_lock(tmp_path / "a"), home_lock(tmp_path / "b"):
        pass


def test_being_ready_is_told_while_it_is_true(tmp_path: Path) -> None:
    with announced_ready(tmp_path, {"url": "http://127.0.0.1:1"}):
        facts = json.loads((tmp_path / "ready.json").read_text())
        assert facts == {"pid": os.getpid(), "url": "http://127.0.0.1:1"}
    assert not (tmp_path / "ready.json").exists()


def test_a_crash_takes_the_announcement_along(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), announced_ready(tmp_path, {}):
        raise ZeroDivisionError
    assert not (tmp_path / "ready.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_in_order(tmp_path: Path, number: signal.Signals) -> None:
    process = start(ACTOR, tmp_path)
    assert eventually((tmp_path / "at-work").exists)
    assert (tmp_path / "ready.json").exists()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert (tmp_path / "closed").read_text() == "in order"
    assert not (tmp_path / "ready.json").exists()
    assert process.returncode == 0
