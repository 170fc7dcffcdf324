"""The local API on loopback, within bounds that a device can bear."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from starlette.applications import Starlette

from shared import loopback

_CONNECTIONS: Final = 128


def served(app: Starlette, port: int) -> AbstractContextManager[int]:
    """Serve ``app``; gives the port. Arguments and errors as :func:`shared.loopback.served`."""
    return loopback.served(
        app,
        port,
        extra="edge",
        lifespan="off",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
