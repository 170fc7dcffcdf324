"""What is served on loopback answers without waiting for the network's bookkeeping."""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from shared.loopback import LOOPBACK, served

FOLDER = Path("/proc/self/fd")


async def hello(_scope: Any, _receive: Any, send: Any) -> None:
    """The smallest application."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def servers_end(address: tuple[str, int]) -> socket.socket:
    """Our process' own socket whose other end is ``address``."""
    for path in FOLDER.iterdir():
        try:
            candidate = socket.socket(fileno=os.dup(int(path.name)))
        except OSError:
            continue
        try:
            if candidate.getpeername() == address:
                return candidate
        except OSError:
            pass
        candidate.close()
    raise AssertionError(f"nobody is connected with {address}")


@pytest.mark.skipif(not FOLDER.is_dir(), reason="sockets are found in /proc")
def test_an_answer_does_not_wait_for_the_clients_delayed_acknowledgement() -> None:
    with served(hello, 0, extra="coordinator", lifespan="off") as port:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=60)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.read(5) == b"hello"
        with servers_end(connection.sock.getsockname()) as theirs:
            assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()
