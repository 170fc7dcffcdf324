"""The one place where our errors become HTTP (RFC 9457 problem documents)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from coordinator.api.roles import route_of
from shared import errors

log = structlog.get_logger()

STATUS: Final[dict[type[errors.LlmOsError], HTTPStatus]] = {
    errors.LlmOsError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ConfigError: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.DataError: HTTPStatus.CONFLICT,
    errors.ModelError: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.StorageError: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.ChildDied: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.ProviderUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.AccessDenied: HTTPStatus.UNAUTHORIZED,
    errors.NotPermitted: HTTPStatus.FORBIDDEN,
    errors.TooManyTries: HTTPStatus.TOO_MANY_REQUESTS,
    errors.ProtocolError: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.PrivacyError: HTTPStatus.FORBIDDEN,
    errors.CohortTooSmall: HTTPStatus.CONFLICT,
    errors.CollectionNotFound: HTTPStatus.NOT_FOUND,
    errors.EngineError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.QuotaExceeded: HTTPStatus.TOO_MANY_REQUESTS,
    errors.PromptRefused: HTTPStatus.BAD_REQUEST,
    errors.RoundError: HTTPStatus.CONFLICT,
    errors.RunNotFound: HTTPStatus.NOT_FOUND,
    errors.RoundNotFound: HTTPStatus.NOT_FOUND,
    errors.RoundClosed: HTTPStatus.GONE,
}
"""Nearest entry along the class's bases wins, so a new error inherits its parent's status."""


RETRY_AFTER_S: Final = 1.0
"""Where nobody knows better: a place in a queue is free again within a second or so."""

_LATER: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


def status_of(kind: type[errors.LlmOsError]) -> HTTPStatus:
    """HTTP status for an error class."""
    return next(STATUS[base] for base in kind.__mro__ if base in STATUS)


def retry_headers(err: errors.LlmOsError) -> dict[str, str]:
    """When the same request may be tried again, in whole seconds; nothing where it may not.

    An error that knows better says so in an attribute ``retry_after_s``.
    """
    wait_s: float | None = getattr(err, "retry_after_s", None)
    if wait_s is None:
        if not err.retryable or status_of(type(err)) not in _LATER:
            return {}
        wait_s = RETRY_AFTER_S
    return {"Retry-After": str(max(1, math.ceil(wait_s)))}


def install(app: FastAPI) -> None:
    """Answer every error, ours and the framework's, with a problem document."""

    @app.exception_handler(errors.LlmOsError)
    async def ours(request: Request, err: errors.LlmOsError) -> JSONResponse:
        status = status_of(type(err))
        # Its line in the table: in the path itself could stand a key that was taken for a name.
        path = route_of(request.method, request.url.path) or "unknown"
        log.info("request.refused", code=err.code, path=path, status=int(status))
        hidden = status is HTTPStatus.INTERNAL_SERVER_ERROR
        detail = status.phrase if hidden else str(err)
        return problem(
            status, err.code, detail, retryable=err.retryable, headers=retry_headers(err)
        )

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, err: RequestValidationError) -> JSONResponse:
        problems = [
            f"{'.'.join(str(part) for part in e['loc'][1:]) or 'body'}: {e['msg']}"
            for e in err.errors()
        ]
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "request", "; ".join(problems))

    @app.exception_handler(HTTPException)
    async def framework(_: Request, err: HTTPException) -> JSONResponse:
        return problem(HTTPStatus(err.status_code), "request", str(err.detail))


def problem(
    status: HTTPStatus,
    code: str,
    detail: str,
    *,
    retryable: bool = False,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """A problem document; ``members`` are what it has besides those of every one."""
    challenge = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else {}
    return JSONResponse(
        {
            "type": f"urn:llmos:{code}",
            "title": status.phrase,
            # A lone surrogate, which a request's JSON can spell, has no place in ours.
            "detail": detail.encode(errors="backslashreplace").decode(),
            "status": int(status),
            "retryable": retryable,
            **(members or {}),
        },
        status_code=status,
        headers={**challenge, **(headers or {})},
        media_type="application/problem+json",
    )
