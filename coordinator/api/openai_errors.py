"""What all routes that OpenAI's clients use have in common: errors they read.

H1  what cannot be done is refused by the field's name, never ignored
H2  errors have the shape that OpenAI's clients read, and say when to come again
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any, ClassVar, Final

import structlog
from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException as AnyHTTPException

from coordinator.api.problems import retry_headers, status_of
from shared.errors import LlmOsError

_MAX_NAMED: Final = 10
"""Problems of one body that are named; a list of a million wrong things has as many."""

_NOT_DONE: Final = frozenset(
    {"extra_forbidden", "literal_error", "none_required", "union_tag_invalid"}
)

log = structlog.get_logger()


class Body(BaseModel):
    """What a request's body is made of: nothing unknown, nothing converted, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    known: ClassVar[set[str]] = set()
    """Names of all fields of all bodies: pydantic's locations hold other words besides."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Remember the names of the fields."""
        Body.known.update(field.alias or name for name, field in cls.model_fields.items())


class Refused(HTTPException):
    """A request that is refused, with what OpenAI's error body has besides."""

    def __init__(self, status: HTTPStatus, message: str, *, param: str | None, code: str) -> None:
        super().__init__(status, message)
        self.param, self.code = param, code


def bad(param: str, message: str, *, code: str = "invalid_value") -> Refused:
    """A 400 that names the field."""
    return Refused(HTTPStatus.BAD_REQUEST, f"{param}: {message}", param=param, code=code)


class OpenAiRoute(APIRoute):
    """A route whose errors have OpenAI's shape (H2)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the framework's handler."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as err:
                return _malformed(err)
            except Refused as err:
                status = HTTPStatus(err.status_code)
                return error(status, str(err.detail), param=err.param, code=err.code)
            except AnyHTTPException as err:
                # JSON nested too deep, bytes that are no text; from the gate, a body too long.
                status = HTTPStatus(err.status_code)
                long = status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                return error(status, str(err.detail), code="too_large" if long else "request")
            except LlmOsError as err:
                return refusal(err, path=self.path)

        return handler


def refusal(err: LlmOsError, *, path: str) -> Response:
    """An error of ours in place of an answer."""
    status = status_of(type(err))
    log.info("request.refused", code=err.code, path=path, status=int(status))
    headers = retry_headers(err)
    if status is HTTPStatus.SERVICE_UNAVAILABLE and not err.retryable:
        headers["X-Should-Retry"] = "false"  # otherwise OpenAI's clients try a 503 three times
    return error(status, _told(err), code=err.code, headers=headers)


def broken_off(err: LlmOsError) -> dict[str, Any]:
    """An error of ours after a part of the answer, as OpenAI's clients find it in a stream."""
    log.warning("answer.broken_off", code=err.code)
    return _body(status_of(type(err)), _told(err), code=err.code)


def error(
    status: HTTPStatus,
    message: str,
    *,
    code: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error as OpenAI's clients read it."""
    challenge = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else {}
    return JSONResponse(
        _body(status, message, code=code, param=param),
        status_code=status,
        headers={**challenge, **(headers or {})},
    )


def _told(err: LlmOsError) -> str:
    status = status_of(type(err))
    return status.phrase if status is HTTPStatus.INTERNAL_SERVER_ERROR else str(err)


def _body(
    status: HTTPStatus, message: str, *, code: str, param: str | None = None
) -> dict[str, Any]:
    if status is HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        kind = "server_error"
    else:
        kind = "invalid_request_error"
    # A lone surrogate, which a request's JSON can spell, has no place in ours.
    text, name = (
        each.encode(errors="backslashreplace").decode() if each is not None else None
        for each in (message, param)
    )
    return {"error": {"message": text, "type": kind, "param": name, "code": code}}


def _malformed(err: RequestValidationError) -> Response:
    """Name what is wrong; ``param`` is the first."""
    details = err.errors()
    problems: dict[str, Mapping[str, Any]] = {}
    for detail in details:
        if len(problems) == _MAX_NAMED:
            break
        # A member of a union that is of another type altogether says least about what is wrong.
        field = _field(detail)
        if field not in problems or problems[field]["type"].endswith("_type"):
            problems[field] = detail
    outer = {field for field in problems if any(each.startswith(f"{field}.") for each in problems)}
    told = {field: _message(detail) for field, detail in problems.items() if field not in outer}
    unsupported = any(detail["type"] in _NOT_DONE for detail in details)
    return error(
        HTTPStatus.BAD_REQUEST,
        "; ".join(f"{field}: {message}" for field, message in told.items()),
        param=next(iter(told)),
        code="unsupported_value" if unsupported else "invalid_value",
    )


def _field(detail: Mapping[str, Any]) -> str:
    """Where in the body. Of a union pydantic also names the member, as if that were a place."""
    if detail["type"] == "json_invalid":
        return "body"
    location = [str(part) for part in detail["loc"][1:]]
    last = [] if detail["type"] != "extra_forbidden" else [location.pop()[:100]]
    known = [part for part in location if part.isdecimal() or part in Body.known]
    places = [place for place, before in zip(known, ["", *known], strict=False) if place != before]
    return ".".join([*places, *last]) or "body"


def _message(detail: Mapping[str, Any]) -> str:
    match detail["type"]:
        case "json_invalid":
            return f"not JSON: {detail['ctx']['error']}"
        case "extra_forbidden" | "none_required":
            return "this server does not support it"
        case "literal_error":
            return f"this server supports {detail['ctx']['expected'].lower()} only"
        case "model_attributes_type":
            return "a JSON object is needed here, in a body of content type application/json"
        case "value_error":
            return str(detail["ctx"]["error"])
        case _:
            return str(detail["msg"])
