"""The coordinator's language models over HTTP, as OpenAI's clients speak.

What is asked is read in ``openai_bodies``, what is answered is written in ``openai_answers``,
and ``answering`` brings the one to the other.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request, Response

from coordinator.api.answering import Answer, StreamedAnswer, answered_whole
from coordinator.api.embeddings import encoder_entries
from coordinator.api.openai_answers import ChatDialect, CompletionDialect, Dialect, model_entry
from coordinator.api.openai_bodies import ChatRequest, CompletionRequest
from coordinator.api.openai_errors import OpenAiRoute, Refused
from coordinator.api.texts import caller_of, check_scope, scopes_of
from coordinator.inference.engine import Engine, ServedAdapter
from coordinator.inference.front_desk import Caller
from shared.types import RunId

if TYPE_CHECKING:
    from coordinator.api.app import Services

EITHER: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"application/json": {}, "text/event-stream": {}}}
}
"""How what is answered is written: whole, or as server-sent events."""

PUBLIC: Final = "public"
"""The word under which callers share what was computed, if they say so."""


def chat_routes(services: Services) -> APIRouter:
    """``/models``, ``/chat/completions`` and ``/completions``."""
    router = APIRouter(tags=["language model"], route_class=OpenAiRoute)

    @router.get("/models")
    async def list_models(request: Request) -> dict[str, Any]:
        """The models that are served and that the caller may ask; ``state`` says whether one answers."""
        conversing = [model_entry(engine.card) for engine in services.desk.engines.values()]
        entries = [*conversing, *encoder_entries(services.texts)]
        scopes = scopes_of(request)
        shown = [entry for entry in entries if scopes.allow("models", entry["id"])]
        return {"object": "list", "data": shown}

    @router.get("/models/{model:path}")
    async def show_model(model: str, request: Request) -> dict[str, Any]:
        """One model, or one with the adapter of a run: ``name:run``."""
        check_scope(request, "models", model, param="model")
        for entry in encoder_entries(services.texts):
            if entry["id"] == model:
                return entry
        engine, _ = await _find(services, model)
        return model_entry(engine.card) | {"id": model}

    @router.post("/chat/completions", response_model=None, responses=EITHER)
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation, whole or as server-sent events."""
        return await answer(request, body, ChatDialect(logprobs=bool(body.logprobs)))

    @router.post("/completions", response_model=None, responses=EITHER)
    async def complete(request: Request, body: CompletionRequest) -> Response:
        """Continue texts, whole or as server-sent events."""
        return await answer(request, body, CompletionDialect(body.echoed, logprobs=body.logprobs))

    async def answer(
        request: Request, body: ChatRequest | CompletionRequest, dialect: Dialect
    ) -> Response:
        check_scope(request, "models", body.model, param="model")
        caller = caller_of(request)
        engine, adapter = await _find(services, body.model)
        name = engine.card.name
        asked = body.requests(engine.card, adapter, share=share_of(caller))
        coming = Answer(
            streams=[services.desk.stream(caller, name, each) for each in asked],
            per_prompt=body.n or 1,
            dialect=dialect,
            card=lambda: engine.card,
            model=body.model,
        )
        if body.stream:
            return StreamedAnswer(coming, with_usage=body.with_usage)
        return await answered_whole(request, coming)

    return router


def share_of(caller: Caller) -> str:
    """Under which word what is computed for a caller may be used again.

    A key may be called anything, also ``public``: so keys' words begin with ``key:``.
    """
    return PUBLIC if caller.public_cache else f"key:{caller.name}"


async def _find(services: Services, model: str) -> tuple[Engine, ServedAdapter | None]:
    """Read ``name`` or ``name:run``. The longest name counts: names may hold colons themselves."""
    engines = services.desk.engines
    if model in engines:
        return engines[model], None
    for name in sorted(engines, key=len, reverse=True):
        if model.startswith(f"{name}:"):
            run = RunId(model.removeprefix(f"{name}:"))
            # Rows and bytes are read from the disk.
            data = await asyncio.to_thread(services.adapter_of, run)
            return engines[name], ServedAdapter(run, data)
    served = f"this coordinator serves {', '.join(engines)}"
    advice = served if engines else "start it with 'llmos up --model …'"
    raise Refused(
        HTTPStatus.NOT_FOUND,
        f"there is no model {model!r}: {advice}",
        param="model",
        code="model_not_found",
    )
