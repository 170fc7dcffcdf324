"""A real Redis on a free loopback port, for tests marked ``redis``."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.brokers import eventually


def redis_or_skip() -> str:
    """The program; where it is absent the test is skipped, which LLMOS_REQUIRE_ALL=1 forbids."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed: sh deploy/install-redis.sh")
    return program


def free_port() -> int:
    """A port on loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as s:
        s.sendall(b"PING\r\n")
        return s.recv(7) == b"+PONG\r\n"
    return False


@contextmanager
def running_redis(folder: Path, port: int) -> Iterator[str]:
    """A Redis that keeps nothing; gives its URL."""
    program = redis_or_skip()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *options, "--dir", str(folder)], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        assert eventually(lambda: _answers(port), within_s=30), (folder / "redis.log").read_text()
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(30)
