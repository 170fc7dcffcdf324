"""Embeddings over HTTP, as OpenAI's clients ask for them; and how encoders are listed."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from coordinator.api.openai_errors import Body, OpenAiRoute, bad
from coordinator.api.texts import NAME_CHARACTERS_LIMIT, Text, check_model
from coordinator.inference.encoder import Encoded, Encoder
from coordinator.inference.engine import EngineState
from coordinator.inference.text_services import TextServices

INPUTS_LIMIT: Final = 2048
"""Texts in one request: OpenAI's own limit."""


class EmbeddingRequest(Body):
    """What can be asked for. Lists of tokens are refused: every model has its own."""

    model: str = Field(max_length=NAME_CHARACTERS_LIMIT)
    input: (
        Text
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[list[int]], Field(min_length=1, max_length=INPUTS_LIMIT)]
        | Annotated[list[Text], Field(min_length=1, max_length=INPUTS_LIMIT)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = Field(default=None, max_length=NAME_CHARACTERS_LIMIT)
    """Taken and not looked at."""

    def texts(self) -> list[str]:
        """The input as a list of texts.

        Raises:
            Refused: it is tokens.
        """
        if isinstance(self.input, str):
            return [self.input]
        texts = [text for text in self.input if isinstance(text, str)]
        if len(texts) != len(self.input):
            raise bad(
                "input",
                "this server takes texts, not tokens, whose numbers mean another "
                "thing to every model (LangChain: check_embedding_ctx_length=False)",
            )
        return texts


def embedding_routes(services: TextServices) -> APIRouter:
    """``/embeddings``."""
    router = APIRouter(tags=["texts"], route_class=OpenAiRoute)

    @router.post("/embeddings")
    async def embed(body: EmbeddingRequest, request: Request) -> Response:
        """Embed texts; every embedding has length 1."""
        encoder = services.an_encoder()
        check_model(request, body.model, encoder)
        texts = body.texts()
        features = encoder.card.features
        if body.dimensions is not None and features is not None:
            _check_dimensions(body.dimensions, features)
        encoded = await encoder.embed(texts)
        if body.dimensions is not None:
            _check_dimensions(body.dimensions, encoded.values.shape[1])
        # Not on the event loop: 2048 embeddings are some ten megabytes of JSON.
        rendered = await asyncio.to_thread(
            _rendered, encoded, encoder.card.name, coded=body.encoding_format == "base64"
        )
        return Response(rendered, media_type="application/json")

    return router


def _rendered(encoded: Encoded, model: str, *, coded: bool) -> bytes:
    """The answer's JSON; ``coded``: numbers as base64 of little-endian float32."""
    rows = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()
            if coded
            else row.tolist(),
        }
        for index, row in enumerate(encoded.values)
    ]
    usage = {"prompt_tokens": encoded.tokens, "total_tokens": encoded.tokens}
    return json.dumps({"object": "list", "data": rows, "model": model, "usage": usage}).encode()


def _check_dimensions(asked: int, features: int) -> None:
    if asked != features:
        raise bad("dimensions", f"this model has {features}, and cutting them off would spoil them")


def encoder_entries(services: TextServices) -> list[dict[str, Any]]:
    """How ``/v1/models`` lists models of texts."""
    return [_entry(model) for model in services.served]


def _entry(model: Encoder) -> dict[str, Any]:
    card = model.card
    entry: dict[str, Any] = {
        "id": card.name,
        "object": "model",
        "created": 0,  # a folder has no date of birth, and clients want a number
        "owned_by": "llmos",
        "state": card.state,
        "task": "answer" if card.reads_answers else "embed",
    }
    if card.state is EngineState.READY:
        entry |= {"base": card.base, "features": card.features, "max_tokens": card.max_tokens}
    if card.state is EngineState.FAILED:
        entry["reason"] = card.reason
    return entry
