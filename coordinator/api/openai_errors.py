"""What every route that OpenAI's clients use has in common: bounded bodies, and errors that they read.

H1  what cannot be done is refused by the field's name, never ignored
H2  errors have the shape that OpenAI's clients read, and say when to come again
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, ClassVar, Final

import structlog
from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict

from coordinator.api.problems import status_of
from shared.errors import LlmOsError

MAX_BODY_BYTES: Final = 4_000_000
RETRY_AFTER_S: Final = 1

_NOT_DONE: Final = frozenset({"extra_forbidden", "literal_error"})

log = structlog.get_logger()


class Body(BaseModel):
    """What a request's body is made of: nothing unknown, nothing converted, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    known: ClassVar[set[str]] = set()
    """Names of all fields of all bodies: pydantic's locations hold other words besides."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Remember the names of the fields."""
        Body.known.update(cls.model_fields)


class Refused(HTTPException):
    """A request that is refused, with what OpenAI's error body has besides."""

    def __init__(self, status: HTTPStatus, message: str, *, param: str | None, code: str) -> None:
        super().__init__(status, message)
        self.param, self.code = param, code


def bad(param: str, message: str) -> Refused:
    """A 400 that names the field."""
    return Refused(HTTPStatus.BAD_REQUEST, f"{param}: {message}", param=param, code="invalid_value")


class _BoundedRequest(Request):
    """A request whose body is read no further than it may be long."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            read = bytearray()
            async for chunk in self.stream():
                read += chunk
                if len(read) > MAX_BODY_BYTES:
                    raise Refused(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                        f"a request has at most {MAX_BODY_BYTES} bytes",
                        param=None,
                        code="too_large",
                    )
            self._body = bytes(read)
        return self._body


class OpenAiRoute(APIRoute):
    """A route whose errors have OpenAI's shape (H2)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the framework's handler."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(_BoundedRequest(request.scope, request.receive))
            except RequestValidationError as err:
                return _malformed(err)
            except Refused as err:
                status = HTTPStatus(err.status_code)
                return error(status, str(err.detail), param=err.param, code=err.code)
            except LlmOsError as err:
                status = status_of(type(err))
                log.info("request.refused", code=err.code, path=self.path, status=int(status))
                hidden = status is HTTPStatus.INTERNAL_SERVER_ERROR
                return error(
                    status,
                    status.phrase if hidden else str(err),
                    code=err.code,
                    retry=err.retryable,
                )

        return handler


def error(
    status: HTTPStatus, message: str, *, code: str, param: str | None = None, retry: bool = False
) -> Response:
    """An error as OpenAI's clients read it."""
    headers = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else {}
    if retry:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    # A lone surrogate, which a request's JSON can spell, has no place in ours.
    text = message.encode(errors="backslashreplace").decode()
    body = {"error": {"message": text, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)


def _malformed(err: RequestValidationError) -> Response:
    """Name every field that is wrong; ``param`` is the first."""
    problems: dict[str, str] = {}
    for detail in err.errors():
        if detail["type"] == "json_invalid":
            problems["body"] = f"not JSON: {detail['ctx']['error']}"
            continue
        location = [str(part) for part in detail["loc"][1:]]
        # Of a union pydantic also names the member it tried, as if that were a place.
        last = [] if detail["type"] != "extra_forbidden" else [location.pop()]
        known = [part for part in location if part.isdecimal() or part in Body.known]
        field = ".".join([*known, *last])
        message = detail["msg"]
        if detail["type"] == "extra_forbidden":
            message = "this server does not support it"
        elif detail["type"] == "literal_error":
            message = f"this server supports {detail['ctx']['expected'].lower()} only"
        problems.setdefault(field or "body", message)
    unsupported = any(detail["type"] in _NOT_DONE for detail in err.errors())
    return error(
        HTTPStatus.BAD_REQUEST,
        "; ".join(f"{field}: {message}" for field, message in problems.items()),
        param=next(iter(problems)),
        code="unsupported_value" if unsupported else "invalid_value",
    )
