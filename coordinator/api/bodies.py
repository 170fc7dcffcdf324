"""How much of a request is read, before anybody knows whether it is allowed.

The framework reads and parses a body before it asks for credentials. So the bound
lies in front of it, and whoever shows no token has room for a join and no more. Who
shows an API key has room for a conversation.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STRANGERS_BYTES: Final = 16 * 1024
"""A join has 500 bytes."""

CALLERS_BYTES: Final = 1_000_000
"""A conversation."""

ADMINS_BYTES: Final = 100_000_000
"""A job with as many probe examples as there may be, of 1000 bytes each."""


class BoundedBodies:
    """Reads no body further than whoever sent it may go; beyond that is 413."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        is_admin: Callable[[str], bool],
        is_caller: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """``is_admin`` and ``is_caller``, of an API key, are asked about the Authorization header."""
        self._app = app
        self._is_admin = is_admin
        self._is_caller = is_caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        shown = Headers(scope=scope).get("authorization", "")
        most = STRANGERS_BYTES
        if self._is_admin(shown):
            most = ADMINS_BYTES
        elif scope["path"].startswith("/v1/") and self._is_caller(shown):
            most = CALLERS_BYTES
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {most} bytes here"
                )
            return message

        await self._app(scope, bounded, send)
