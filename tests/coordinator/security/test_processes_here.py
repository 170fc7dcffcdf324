"""What the kernel shows is read as it is, from a made-up /proc and from the real one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.security.facts import Exposure, Listener
from coordinator.security.processes_here import (
    Running,
    exposures,
    family,
    key_holder_beside,
    listeners,
    running,
)

HEAD = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode"
)


def row(address: str, state: str, inode: int) -> str:
    return f"   0: {address} 00000000:0000 {state} 00000000:00000000 00:0 0 1000 0 {inode} 1 0 100"


def process(pid: int, parent: int = 1, *words: str, owner: int = 1000) -> Running:
    arguments = tuple(word.encode() for word in words)
    return Running(pid, parent, f"p{pid}", owner, arguments, b"")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Process 7 has three sockets: one that listens everywhere, one on loopback, one connected."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(
        "\n".join([HEAD, row("0100007F:20FB", "0A", 11), row("0100007F:20FC", "01", 12)])
    )
    (tmp_path / "net" / "tcp6").write_text(
        "\n".join([HEAD, row("00000000000000000000000000000000:075B", "0A", 13)])
    )
    descriptors = tmp_path / "7" / "fd"
    descriptors.mkdir(parents=True)
    for number, inode in enumerate((11, 12, 13)):
        (descriptors / str(number)).symlink_to(f"socket:[{inode}]")
    (tmp_path / "7" / "stat").write_text("7 (a (nasty) 9 name) S 1 7 7 0 -1")
    (tmp_path / "7" / "cmdline").write_bytes(b"llmos\0up\0")
    (tmp_path / "8").mkdir()  # it ended while it was looked at
    return tmp_path


def test_sockets_that_listen_are_found_with_their_addresses(proc: Path) -> None:
    found = running(proc)
    assert [(one.pid, one.parent, one.name) for one in found] == [(7, 1, "a (nasty) 9 name")]
    assert listeners(found, proc) == [
        Listener("a (nasty) 9 name", "127.0.0.1", 8443),
        Listener("a (nasty) 9 name", "::", 1883),
    ]


def test_a_system_without_proc_shows_nothing(tmp_path: Path) -> None:
    assert running(tmp_path) == []
    assert listeners([process(7)], tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_our_own_socket_is_found_in_the_real_proc() -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        me = [one for one in running() if one.pid == os.getpid()]
        port = ours.getsockname()[1]
        assert ("127.0.0.1", port) in {(one.host, one.port) for one in listeners(me)}


def test_a_family_is_a_process_and_all_below_it() -> None:
    everyone = [process(1, 0), process(2, 1), process(3, 2), process(4, 3), process(5, 1)]
    assert [one.pid for one in family(2, everyone)] == [2, 3, 4]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("where", ["environment", "command line"])
def test_a_token_is_found_where_a_process_shows_it_and_is_not_repeated(where: str) -> None:
    token = "a-token-that-nothing-else-has-" + os.urandom(8).hex()
    environment = os.environ | ({"LLMOS_TOKEN": token} if where == "environment" else {})
    words = [token] if where == "command line" else []
    child = subprocess.Popen(
        [sys.executable, "-c", "input()", *words],
        stdin=subprocess.PIPE,
        env=environment,
    )
    try:
        everyone = [one for one in running() if one.pid == child.pid]
        found = exposures(token.encode(), everyone)
        assert [one.where for one in found] == [where]
        assert token not in repr(found)
    finally:
        child.communicate(b"\n")
    assert exposures(b"another-token", everyone) == []
    assert found == [Exposure(everyone[0].name, where)]


def test_a_key_holder_is_found_and_whose_it_is() -> None:
    holder = process(2, 1, "python", "llmos", "keyholder", "run", "--broker", "x", owner=7)
    assert key_holder_beside([holder], 7) == "same-user"
    assert key_holder_beside([holder], 8) == "same-machine"
    assert key_holder_beside([process(2, 1, "llmos", "keyholder", "log", owner=7)], 7) == ""
