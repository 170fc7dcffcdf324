"""Stands before every route, and lets through what the table of roles allows.

It stands before the framework, which reads and parses a body before it asks for
credentials: of a request that is refused, no body is read.

G1  what has no line in the table is refused, whoever asks
G2  who may not is refused before anything of the body is read; who may is read as far as the table says
G3  no, a wrong, an expired and a revoked credential are answered alike
G4  of line, headers and body there is so much, and a body comes so fast, or the request is refused
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.api import openai_errors, problems
from coordinator.api.access import Principal
from coordinator.api.roles import Allowance, Role, allowance, route_of
from coordinator.audit.sink import acting
from shared.errors import AccessDenied, NotPermitted

log = structlog.get_logger()

TARGET_BYTES: Final = 8 * 1024
"""Of a path with its query."""
HEADERS_BYTES: Final = 16 * 1024
"""Of all headers, names and values."""
PATIENCE_S: Final = 30.0
"""In which a body has to come, and as much longer as ``BYTES_A_SECOND`` allow it."""
BYTES_A_SECOND: Final = 16 * 1024

_POLICY_VIOLATION: Final = 1008
"""Of web sockets; there are none here."""


class Gate:
    """Lets a request through with its :class:`Principal` in ``request.state.principal``."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        identify: Callable[[str], Principal | None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``identify`` says whose an Authorization header is, ``monotonic`` how slow a body is."""
        self._app = app
        self._identify = identify
        self._monotonic = monotonic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        allowed = allowance(scope["method"], scope["path"])
        principal = None
        if (refused := _oversized(scope)) is not None:
            await refused(scope, receive, send)
            return
        if Role.STRANGER not in allowed.roles:
            principal = self._identify(Headers(scope=scope).get("authorization", ""))
            refused = _refusal(scope, allowed, principal)
            if refused is not None:
                await refused(scope, receive, send)
                return
            assert principal is not None
            acting.set(principal.caller.name)  # a request has a context of its own
        state = {**scope.get("state", {}), "principal": principal}
        body = _bounded(receive, allowed.body_bytes, self._monotonic)
        await self._app({**scope, "state": state}, body, send)


def _bounded(receive: Receive, most: int, monotonic: Callable[[], float]) -> Receive:
    """Receive a body that is at most so long, and comes fast enough (G2, G4)."""
    read, whole = 0, False
    begun_at = monotonic()

    async def bounded() -> Message:
        nonlocal read, whole
        if whole:  # what follows is the client's leaving, for which there is no hurry
            return await receive()
        left_s = begun_at + PATIENCE_S + read / BYTES_A_SECOND - monotonic()
        try:
            if left_s <= 0:
                raise TimeoutError
            async with asyncio.timeout(left_s):
                message = await receive()
        except TimeoutError:
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, "the body came too slowly") from None
        read += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if read > most:
            raise HTTPException(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {most} bytes here"
            )
        return message

    return bounded


def _oversized(scope: Scope) -> Response | None:
    """What is answered to a request whose line or headers are too long."""
    path: str = scope["path"]
    target = len(scope.get("raw_path") or path.encode()) + len(scope.get("query_string", b""))
    if target > TARGET_BYTES:
        detail = f"a path with its query has at most {TARGET_BYTES} bytes"
        return _answer(path, HTTPStatus.REQUEST_URI_TOO_LONG, "request", detail)
    if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADERS_BYTES:
        detail = f"headers have at most {HEADERS_BYTES} bytes"
        return _answer(path, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "request", detail)
    return None


def _refusal(scope: Scope, allowed: Allowance, principal: Principal | None) -> Response | None:
    """What is answered instead (G1, G3); ``None`` lets it through."""
    path: str = scope["path"]
    if principal is None:
        advice = "show an API key or the admin token as 'Authorization: Bearer …'"
        return _answer(path, HTTPStatus.UNAUTHORIZED, AccessDenied.code, advice)
    if not allowed.roles:
        if not allowed.methods:
            return _answer(path, HTTPStatus.NOT_FOUND, "request", "there is nothing here")
        methods = ", ".join(allowed.methods)
        detail = f"this takes {methods}"
        return _answer(
            path, HTTPStatus.METHOD_NOT_ALLOWED, "request", detail, headers={"Allow": methods}
        )
    if principal.role not in allowed.roles:
        taken = [role for role in Role if role in allowed.roles and role is not Role.METRICS]
        detail = (
            f"the role {principal.role} may not do this: it takes the role {' or '.join(taken)}"
        )
        log.info(
            "request.refused",
            code=NotPermitted.code,
            path=route_of(scope["method"], path) or "unknown",
            caller=principal.caller.name,
        )
        return _answer(path, HTTPStatus.FORBIDDEN, NotPermitted.code, detail, roles=taken)
    return None


def _answer(
    path: str,
    status: HTTPStatus,
    code: str,
    detail: str,
    *,
    headers: dict[str, str] | None = None,
    **members: Any,
) -> Response:
    """A refusal in the words of the part of the API that was asked."""
    if path == "/v1" or path.startswith("/v1/"):
        return openai_errors.error(status, detail, code=code, headers=headers)
    return problems.problem(status, code, detail, headers=headers, members=members)
