"""Stands before every route, and lets through what the table of roles allows.

It stands before the framework, which reads and parses a body before it asks for
credentials: of a request that is refused, no body is read.

G1  what has no line in the table is refused, whoever asks
G2  who may not is refused before anything of the body is read; who may is read as far as the table says
G3  no, a wrong, an expired and a revoked credential are answered alike
G4  of line, headers and body there is so much, and a body comes so fast, or the request is refused
G5  what a browser sends by itself changes nothing for a page of another origin: with a cookie, a
    request that is no GET has to say that it comes from a page of ours; where no credential is
    looked at, it must not say that it comes from another
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
from coordinator.api.roles import WEB_SOCKET, Allowance, Role, allowance, route_of
from coordinator.audit.sink import acting
from coordinator.people.people import KIND
from coordinator.watch.sightings import NoSightings, Sightings
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


class Gate:
    """Lets a request through with its :class:`Principal` in ``request.state.principal``."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        identify: Callable[[Headers], Principal | None],
        watch: Sightings | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Let through what is allowed.

        Args:
            app: What it stands before.
            identify: Says who asks with such headers.
            watch: Told who is refused and which keys are used from where; ``None`` tells nobody.
            monotonic: Seconds, by which a body is slow.
        """
        self._app = app
        self._identify = identify
        self._watch = watch or NoSightings()
        self._monotonic = monotonic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._open(scope, receive, send)
            return
        allowed = allowance(scope["method"], scope["path"])
        headers = Headers(scope=scope)
        principal = None
        refused = _oversized(scope)
        if refused is None and Role.STRANGER in allowed.roles:
            refused = _foreign(scope, headers) if "origin" in headers else None
        elif refused is None:
            principal = self._identify(headers)
            refused = _refusal(scope, allowed, principal)
            if refused is None and "authorization" not in headers:
                refused = _foreign(scope, headers)
        if refused is not None:
            showed = "authorization" in headers
            self._tell_refused(scope, refused.status_code, principal, showed=showed)
            await refused(scope, receive, send)
            return
        if principal is not None:
            acting.set(principal.caller.name)  # a request has a context of its own
            self._tell_used(scope, principal)
        elif scope["method"] != "GET":
            # A password, a link or a join token in a body is looked at behind this.
            send = _heard(send, lambda status: self._tell_refused(scope, status, showed=True))
        state = {**scope.get("state", {}), "principal": principal}
        body = _bounded(receive, allowed.body_bytes, self._monotonic)
        await self._app({**scope, "state": state}, body, send)

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a web socket be opened, or refuse it before it is (G1 to G3, G5)."""
        headers = Headers(scope=scope)
        allowed = allowance(WEB_SOCKET, scope["path"])
        principal = self._identify(headers) if _oversized(scope) is None else None
        # Browsers send an origin with every socket; programs, which show a header, need none.
        own = headers.get("origin") == own_origin(scope, headers)
        bare = "origin" not in headers and "authorization" in headers
        if principal is None:
            showed = "authorization" in headers
            self._tell_refused(scope, HTTPStatus.UNAUTHORIZED, showed=showed)
        elif principal.role not in allowed.roles:
            self._tell_refused(scope, HTTPStatus.FORBIDDEN, principal, showed=True)
        if principal is None or principal.role not in allowed.roles or not (own or bare):
            # Who is refused before it was accepted gets 403 from the server.
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        acting.set(principal.caller.name)
        self._tell_used(scope, principal)
        state = {**scope.get("state", {}), "principal": principal}
        await self._app({**scope, "state": state}, receive, send)

    def _tell_refused(
        self, scope: Scope, status: int, principal: Principal | None = None, *, showed: bool
    ) -> None:
        """Somebody was refused; ``showed``: a credential, and no cookie, which only grows old."""
        if status == HTTPStatus.UNAUTHORIZED and showed:
            self._watch.credential_refused(_address(scope))
        elif status == HTTPStatus.FORBIDDEN and principal is not None:
            self._watch.request_refused(principal.caller.name)

    def _tell_used(self, scope: Scope, principal: Principal) -> None:
        if principal.kind != KIND:
            self._watch.key_used(principal.caller.name, _address(scope))


def _address(scope: Scope) -> str:
    """Where a request comes from, as the server knows it: behind a proxy on this machine, what that says."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _heard(send: Send, told: Callable[[int], None]) -> Send:
    """Send on, and tell with which status the answer begins."""

    async def heard(message: Message) -> None:
        if message["type"] == "http.response.start":
            told(message["status"])
        await send(message)

    return heard


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


def own_origin(scope: Scope, headers: Headers) -> str:
    """The origin of a page that came from where this request goes."""
    scheme = _SCHEMES.get(scope.get("scheme", "http"), "https")
    return f"{scheme}://{headers.get('host', '')}"


_SCHEMES: Final = {"http": "http", "ws": "http"}


def _foreign(scope: Scope, headers: Headers) -> Response | None:
    """What is answered to a request that changes something for a page of another origin (G5)."""
    if scope["method"] in {"GET", "HEAD"} or headers.get("origin") == own_origin(scope, headers):
        return None
    detail = "a page of another origin may not do this: log in at this address"
    return _answer(scope["path"], HTTPStatus.FORBIDDEN, NotPermitted.code, detail)


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
        advice = "log in, or show an API key or the admin token as 'Authorization: Bearer …'"
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
