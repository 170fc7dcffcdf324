"""The coordinator's language model over HTTP, as OpenAI's clients speak.

H1  what the engine cannot do is refused by the field's name, never ignored
H2  errors have the shape that OpenAI's clients read
H3  an answer of a stand-in says that it is one
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import structlog
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from coordinator.api.embeddings import encoder_entries
from coordinator.api.problems import retry_headers, status_of
from coordinator.inference.engine import (
    ChatMessage,
    Engine,
    EngineState,
    Generation,
    GenerationRequest,
    ModelCard,
    ServedAdapter,
    collect,
)
from coordinator.inference.front_desk import Caller
from shared.errors import LlmOsError
from shared.types import RunId

if TYPE_CHECKING:
    from coordinator.api.app import Services

MAX_BODY_BYTES: Final = 1_000_000
MAX_MESSAGES: Final = 200
MAX_CHARACTERS: Final = 100_000
"""In one message; a model's context ends long before."""
MAX_TOKENS: Final = 4096
"""In one answer; others wait behind it."""
DEFAULT_MAX_TOKENS: Final = 512

_TOKEN_FIELDS: Final = ("max_tokens", "max_completion_tokens")

log = structlog.get_logger()

Text = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Body):
    """One part of a message; parts of another kind cannot be read."""

    type: Literal["text"]
    text: Text


class Message(_Body):
    """One turn. ``developer`` is what newer clients call ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=100)]

    def turn(self) -> ChatMessage:
        """The turn as an engine takes it."""
        content = self.content
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        return ChatMessage("system" if self.role == "developer" else self.role, text)


class ChatRequest(_Body):
    """What can be asked for. The second half can only be spelt as what happens anyway (H1)."""

    model: str = Field(max_length=300)
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    user: str | None = Field(default=None, max_length=300)
    """Taken and not looked at: nothing is kept or limited per end user."""

    stream: Literal[False] | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)

    def request(self, adapter: ServedAdapter | None) -> GenerationRequest:
        """The request as an engine takes it, OpenAI's defaults filled in."""
        limit = self.max_tokens or self.max_completion_tokens or DEFAULT_MAX_TOKENS
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return GenerationRequest(
            prompt=tuple(message.turn() for message in self.messages),
            max_tokens=limit,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=secrets.randbits(63) if self.seed is None else self.seed % 2**63,
            stop=tuple(stop),
            adapter=adapter,
        )


class _Refused(HTTPException):
    """A request that this API refuses, with what OpenAI's error body has besides."""

    def __init__(self, status: HTTPStatus, message: str, *, param: str | None, code: str) -> None:
        super().__init__(status, message)
        self.param, self.code = param, code


class _BoundedRequest(Request):
    """A request whose body is read no further than it may be long."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            read = bytearray()
            async for chunk in self.stream():
                read += chunk
                if len(read) > MAX_BODY_BYTES:
                    raise _Refused(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                        f"a request has at most {MAX_BODY_BYTES} bytes",
                        param=None,
                        code="too_large",
                    )
            self._body = bytes(read)
        return self._body


class _OpenAiRoute(APIRoute):
    """A route whose errors have OpenAI's shape (H2)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(_BoundedRequest(request.scope, request.receive))
            except RequestValidationError as err:
                return _malformed(err)
            except _Refused as err:
                status = HTTPStatus(err.status_code)
                return _error(status, str(err.detail), param=err.param, code=err.code)
            except LlmOsError as err:
                status = status_of(type(err))
                log.info("request.refused", code=err.code, path=self.path, status=int(status))
                hidden = status is HTTPStatus.INTERNAL_SERVER_ERROR
                message = status.phrase if hidden else str(err)
                return _error(status, message, code=err.code, headers=retry_headers(err))

        return handler


def chat_routes(
    services: Services, caller_of: Callable[..., Caller | Awaitable[Caller]]
) -> APIRouter:
    """``/models`` and ``/chat/completions``; ``caller_of`` lets nobody in who may not."""
    on_behalf = Depends(caller_of)
    router = APIRouter(tags=["language model"], route_class=_OpenAiRoute, dependencies=[on_behalf])

    @router.get("/models")
    def list_models() -> dict[str, Any]:
        """The model that is served, if there is one; ``state`` says whether it answers."""
        engines = services.desk.engines.values()
        conversing = [_entry(engine.card) for engine in engines]
        return {"object": "list", "data": [*conversing, *encoder_entries(services.texts)]}

    @router.get("/models/{model:path}")
    def show_model(model: str) -> dict[str, Any]:
        """One model, or one with the adapter of a run: ``name:run``."""
        for entry in encoder_entries(services.texts):
            if entry["id"] == model:
                return entry
        engine, adapter = _find(services, model)
        return _entry(engine.card) | {"id": _full_name(engine.card, adapter)}

    @router.post("/chat/completions")
    async def complete(body: ChatRequest, caller: Caller = on_behalf) -> dict[str, Any]:
        """Answer a conversation."""
        if None not in {getattr(body, field) for field in _TOKEN_FIELDS}:
            raise _Refused(
                HTTPStatus.BAD_REQUEST,
                "max_tokens and max_completion_tokens mean the same: send one",
                param="max_completion_tokens",
                code="invalid_value",
            )
        engine, adapter = await run_in_threadpool(_find, services, body.model)
        card = engine.card
        generation = await collect(services.desk.stream(caller, card.name, body.request(adapter)))
        card = engine.card
        return _completion(generation, card, _full_name(card, adapter)) | _label(card)

    return router


def _find(services: Services, model: str) -> tuple[Engine, ServedAdapter | None]:
    """Read ``name`` or ``name:run``."""
    engines = services.desk.engines
    for name, engine in engines.items():
        if model == name:
            return engine, None
        if model.startswith(f"{name}:"):
            run = RunId(model.removeprefix(f"{name}:"))
            return engine, ServedAdapter(run, services.adapter_of(run))
    names = ", ".join(engines)
    served = f"this coordinator serves {names}" if names else "start it with 'llmos up --model …'"
    raise _Refused(
        HTTPStatus.NOT_FOUND,
        f"there is no model {model!r}: {served}",
        param="model",
        code="model_not_found",
    )


def _full_name(card: ModelCard, adapter: ServedAdapter | None) -> str:
    return card.name if adapter is None else f"{card.name}:{adapter.name}"


def _label(card: ModelCard) -> dict[str, bool]:
    return {"stand_in": True} if card.stand_in else {}


def _entry(card: ModelCard) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": card.name,
        "object": "model",
        "created": 0,  # a folder has no date of birth, and clients want a number
        "owned_by": "llmos",
        "state": card.state,
    }
    if card.state is EngineState.READY:
        entry |= {"base": card.base, "context_tokens": card.context_tokens}
    if card.state is EngineState.FAILED:
        entry["reason"] = card.reason
    return entry | _label(card)


def _completion(generation: Generation, card: ModelCard, model: str) -> dict[str, Any]:
    prompt, completion = generation.prompt_tokens, generation.completion_tokens
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": (card.base or "")[:16],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": generation.text},
                "logprobs": None,
                "finish_reason": generation.finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


_FIELDS: Final = {name for kind in (ChatRequest, Message, TextPart) for name in kind.model_fields}
_NOT_DONE: Final = frozenset({"extra_forbidden", "literal_error"})


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
        known = [part for part in location if part.isdecimal() or part in _FIELDS]
        field = ".".join([*known, *last])
        message = detail["msg"]
        if detail["type"] == "extra_forbidden":
            message = "this server does not support it"
        elif detail["type"] == "literal_error":
            message = f"this server supports {detail['ctx']['expected'].lower()} only"
        problems.setdefault(field or "body", message)
    unsupported = any(detail["type"] in _NOT_DONE for detail in err.errors())
    return _error(
        HTTPStatus.BAD_REQUEST,
        "; ".join(f"{field}: {message}" for field, message in problems.items()),
        param=next(iter(problems)),
        code="unsupported_value" if unsupported else "invalid_value",
    )


def _error(
    status: HTTPStatus,
    message: str,
    *,
    code: str,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    if status is HTTPStatus.UNAUTHORIZED:
        headers = {"WWW-Authenticate": "Bearer"}
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    # A lone surrogate, which a request's JSON can spell, has no place in ours.
    text = message.encode(errors="backslashreplace").decode()
    body = {"error": {"message": text, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)
