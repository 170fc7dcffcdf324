"""Serve an application beside whatever else the process does: on loopback, or elsewhere over TLS."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from shared.errors import ConfigError
from shared.extras import require

LOOPBACK: Final = "127.0.0.1"


@contextmanager
def served(
    app: Any,
    port: int,
    *,
    extra: str,
    host: str = LOOPBACK,
    tls: ssl.SSLContext | None = None,
    **options: Any,
) -> Iterator[int]:
    """Serve ``app`` on a thread of its own; gives the port, a free one for 0.

    Args:
        app: An ASGI application.
        port: Where it listens.
        extra: Which extra of ours brings the server.
        host: An address of this machine.
        tls: Shows the server's certificate; ``None`` speaks in clear.
        options: Of ``uvicorn.Config``.

    Raises:
        ConfigError: the port is taken, or the address is not this machine's.
        DependencyMissing: the server is not installed.
    """
    uvicorn = require("uvicorn", extra=extra)
    from shared.http_connections import BACKLOG, HEAD_BYTES, KEEP_ALIVE_S, BoundedConnection

    # Named as TCP: asyncio turns Nagle's algorithm off on such sockets alone, and with it every
    # answer on a connection that stays open waits 40 ms for the client's delayed ACK (measured:
    # 48 ms instead of 3 for /healthz).
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # from here on a caller waits, and is not refused, until it is served
    except OSError as err:
        listener.close()
        raise ConfigError(
            [f"--port: cannot listen on {host}:{port}: {err.strerror}"], source="options"
        ) from err
    # Who speaks over web sockets says by what library; looking for one costs an import and, with
    # some, a warning.
    quiet = {"log_config": None, "access_log": False, "ws": "none"}
    bounds = {
        "http": BoundedConnection,
        "backlog": BACKLOG,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "h11_max_incomplete_event_size": HEAD_BYTES,
    }
    config = uvicorn.Config(app, **quiet | bounds | options)
    config.load()
    # Not made of files by the server: ours takes no TLS before 1.3, and changes with the files.
    config.ssl = tls
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(timeout=5)
