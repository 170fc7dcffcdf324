"""Serve an application on loopback, beside whatever else the process does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from starlette.applications import Starlette

from shared.errors import ConfigError

LOOPBACK: Final = "127.0.0.1"
_CONNECTIONS: Final = 128


@contextmanager
def served(app: Starlette, port: int) -> Iterator[int]:
    """Serve ``app`` on a thread of its own; gives the port, a free one for 0.

    Raises:
        ConfigError: the port is taken.
    """
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
        listener.listen()  # from here on a caller waits, and is not refused, until it is served
    except OSError as err:
        listener.close()
        raise ConfigError([f"--port: {port} is taken: {err.strerror}"], source="options") from err
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(timeout=5)
