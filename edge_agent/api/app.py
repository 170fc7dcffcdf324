"""The device's own API, shaped like OpenAI's where that has a shape for it.

L1  only this machine is answered, and only under a name of it: a web page whose name was
    made to point here (DNS rebinding) is refused
L2  only who can read ``api.token`` in the device's home, which is its owner's alone, may ask:
    other users of this machine may not
L3  whatever arrives, the answer is JSON in the stated shape, and the process lives
L4  ``/healthz`` answers at once, whatever else is going on

Classification and embedding never leave the device. A chat's last user message is answered
as :mod:`edge_agent.inference.answering` says; the object ``llmos`` in the response tells by
whom and why.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any, Final

import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edge_agent.api.token import TOKEN
from edge_agent.inference.answering import Answer, Answerer, LocalModel
from shared.errors import (
    CoordinatorUnavailable,
    DataError,
    DependencyMissing,
    LlmOsError,
    ModelError,
)

BODY_BYTES_LIMIT: Final = 64 * 1024
TEXT_CHARACTERS_LIMIT: Final = 16_000
INPUTS_LIMIT: Final = 64
TOP: Final = 5

_HOST: Final = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_STATUS: Final[dict[type[LlmOsError], HTTPStatus]] = {
    DataError: HTTPStatus.BAD_REQUEST,
    ModelError: HTTPStatus.SERVICE_UNAVAILABLE,
    DependencyMissing: HTTPStatus.SERVICE_UNAVAILABLE,
    CoordinatorUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
_REFUSED: Final = {"tools", "functions", "audio", "logprobs", "modalities"}
"""Fields of a chat that would change what is answered, and that nothing here honours."""

log = structlog.get_logger()


def create_app(answerer: Answerer, *, token: str) -> Starlette:
    """Return the application.

    Args:
        answerer: Answers chats; its equipment classifies and embeds.
        token: What callers must show as ``Authorization: Bearer``; :func:`~edge_agent.api.token.api_token`.
    """

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(_: Request) -> Response:
        return JSONResponse(await run_in_threadpool(_models, answerer))

    async def classify(request: Request) -> Response:
        body = await _body(request)
        text = _text(body.get("text"), "text")
        return JSONResponse(await run_in_threadpool(_classify, answerer, text))

    async def embeddings(request: Request) -> Response:
        body = await _body(request)
        return JSONResponse(await run_in_threadpool(_embeddings, answerer, body))

    async def chat(request: Request) -> Response:
        body = await _body(request)
        question, stream = _question(body), _stream(body)
        answer = await run_in_threadpool(answerer.answer, question)
        if stream:
            return StreamingResponse(_events(answer), media_type="text/event-stream")
        return JSONResponse(_completion(answer))

    def guarded(
        handler: Callable[[Request], Awaitable[Response]], *, open_to_all: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        async def checked(request: Request) -> Response:
            if not _HOST.fullmatch(request.headers.get("host", "")):
                raise _Refused(HTTPStatus.MISDIRECTED_REQUEST, "this is a loopback address", "host")
            shown = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if not open_to_all and not hmac.compare_digest(shown, token.encode()):
                sentence = f"show the token in {TOKEN} as 'Authorization: Bearer …'"
                raise _Refused(HTTPStatus.UNAUTHORIZED, sentence, "access_denied")
            return await handler(request)

        return checked

    return Starlette(
        routes=[
            Route("/healthz", guarded(healthz, open_to_all=True)),
            Route("/v1/models", guarded(models)),
            Route("/v1/tasks/classify", guarded(classify), methods=["POST"]),
            Route("/v1/embeddings", guarded(embeddings), methods=["POST"]),
            Route("/v1/chat/completions", guarded(chat), methods=["POST"]),
        ],
        exception_handlers={
            _Refused: _refused,
            LlmOsError: _ours,
            HTTPException: _framework,
            Exception: _unforeseen,
        },
    )


# What was asked


class _Refused(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, status: HTTPStatus, sentence: str, code: str, param: str | None = None
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.code = code
        self.param = param


def _bad(param: str, sentence: str) -> _Refused:
    return _Refused(HTTPStatus.BAD_REQUEST, f"{param}: {sentence}", "invalid_value", param)


async def _body(request: Request) -> dict[str, Any]:
    """Read a JSON object, and no more than the limit of it.

    Raises:
        _Refused: it is too long or something else.
    """
    data = bytearray()
    try:
        async for part in request.stream():
            data += part
            if len(data) > BODY_BYTES_LIMIT:
                sentence = f"a request has at most {BODY_BYTES_LIMIT} bytes"
                raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence, "too_large")
    except ClientDisconnect as err:
        raise _Refused(HTTPStatus.BAD_REQUEST, "the request ended early", "incomplete") from err
    try:
        value = json.loads(bytes(data))
    except (ValueError, RecursionError) as err:
        raise _Refused(HTTPStatus.BAD_REQUEST, "the body is not JSON", "invalid_json") from err
    if not isinstance(value, dict):
        raise _Refused(HTTPStatus.BAD_REQUEST, "the body is not a JSON object", "invalid_json")
    return value


def _text(value: object, param: str) -> str:
    if not isinstance(value, str):
        raise _bad(param, "expected a text")
    if not value.strip():
        raise _bad(param, "is empty")
    if len(value) > TEXT_CHARACTERS_LIMIT:
        raise _bad(param, f"has {len(value)} characters, at most {TEXT_CHARACTERS_LIMIT} are read")
    if re.search("[\ud800-\udfff]", value):
        raise _bad(param, "holds half a character (a lone surrogate)")
    return value


def _question(body: dict[str, Any]) -> str:
    """The last user message."""
    for field in sorted(_REFUSED & body.keys()):
        if body[field]:
            raise _bad(field, "is not supported on a device")
    if body.get("n") not in (None, 1) or isinstance(body.get("n"), bool):
        raise _bad("n", "a device gives one answer")
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        raise _bad("messages", "expected a list of messages")
    for position in range(len(messages) - 1, -1, -1):
        if messages[position].get("role") == "user":
            param = f"messages[{position}].content"
            return _text(_content(messages[position].get("content"), param), param)
    raise _bad("messages", "there is no message of the role 'user'")


def _content(value: object, param: str) -> object:
    if not isinstance(value, list):
        return value
    parts = []
    for part in value:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise _bad(param, "only parts of the type 'text' are understood")
        parts.append(text)
    return "\n".join(parts)


def _stream(body: dict[str, Any]) -> bool:
    value = body.get("stream") or False
    if not isinstance(value, bool):
        raise _bad("stream", "expected true or false")
    return value


# What is answered


def _model(answerer: Answerer) -> LocalModel:
    equipment = answerer.equipment
    if equipment.model is None:
        raise ModelError(f"this device cannot answer: {equipment.problem}")
    return equipment.model


def _models(answerer: Answerer) -> dict[str, Any]:
    model = answerer.equipment.model
    found = []
    if model is not None:
        about = {"adapter": model.adapter.digest, "labels": len(model.adapter.labels)}
        found = [{"id": model.name, "object": "model", "created": 0, "owned_by": "device"}]
        found[0]["llmos"] = about
    return {"object": "list", "data": found}


def _classify(answerer: Answerer, text: str) -> dict[str, Any]:
    model = _model(answerer)
    opinion = model.classify(text)
    ranked = sorted(
        zip(opinion.probabilities.tolist(), model.adapter.labels, strict=True),
        key=lambda pair: -pair[0],
    )
    return {
        "label": opinion.label,
        "confidence": opinion.confidence,
        "calibrated": model.calibration is not None,
        "probabilities": {label: probability for probability, label in ranked[:TOP]},
        "source": "device",
        "model": model.name,
        "adapter": model.adapter.digest,
    }


def _embeddings(answerer: Answerer, body: dict[str, Any]) -> dict[str, Any]:
    given = body.get("input")
    if isinstance(given, list):
        if not 0 < len(given) <= INPUTS_LIMIT:
            raise _bad("input", f"expected 1 to {INPUTS_LIMIT} texts")
        texts = [_text(value, f"input[{position}]") for position, value in enumerate(given)]
    else:
        texts = [_text(given, "input")]
    coding = body.get("encoding_format", "float")
    if coding not in ("float", "base64"):
        raise _bad("encoding_format", "expected 'float' or 'base64'")
    model = _model(answerer)
    rows: list[dict[str, Any]] = []
    for position, text in enumerate(texts):
        features = model.encoder.embed(text)
        coded = (
            base64.b64encode(features.astype("<f4").tobytes()).decode()
            if coding == "base64"
            else features.tolist()
        )
        rows.append({"object": "embedding", "index": position, "embedding": coded})
    if body.get("dimensions") not in (None, features.size):
        raise _bad("dimensions", f"this model has {features.size}")
    read = sum(model.encoder.tokens(text) for text in texts)
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"object": "list", "data": rows, "model": model.name, "usage": usage}


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    identifier = f"chatcmpl-{secrets.token_hex(12)}"
    return {"id": identifier, "object": kind, "created": int(time.time()), "model": answer.model}


def _completion(answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return _head(answer, "chat.completion") | {"choices": [choice], "llmos": answer.facts()}


def _events(answer: Answer) -> Iterator[str]:
    """The answer as a stream of two events: it is there as a whole before the first."""
    head = _head(answer, "chat.completion.chunk")
    said = {"role": "assistant", "content": answer.text}
    for delta, reason in ((said, None), ({}, "stop")):
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        event = head | {"choices": [choice]} | ({"llmos": answer.facts()} if reason else {})
        yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
    yield "data: [DONE]\n\n"


# What went wrong


def _error(status: int, sentence: str, code: str, param: str | None = None) -> Response:
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    headers = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else None
    content = {"error": {"message": sentence, "type": kind, "param": param, "code": code}}
    return JSONResponse(content, status_code=status, headers=headers)


async def _refused(_: Request, err: Exception) -> Response:
    assert isinstance(err, _Refused)
    return _error(err.status, err.sentence, err.code, err.param)


async def _ours(_: Request, err: Exception) -> Response:
    assert isinstance(err, LlmOsError)
    bases = (base for base in type(err).__mro__ if base in _STATUS)
    status = _STATUS.get(next(bases, LlmOsError), HTTPStatus.INTERNAL_SERVER_ERROR)
    if status is HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request.failed", code=err.code, error=str(err))
    return _error(status, str(err), err.code)


async def _framework(_: Request, err: Exception) -> Response:
    assert isinstance(err, HTTPException)
    return _error(err.status_code, str(err.detail), "request")


async def _unforeseen(_: Request, err: Exception) -> Response:
    log.error("request.crashed", error=repr(err))
    return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error", "internal")
