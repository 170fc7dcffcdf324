"""What the coordinator does with texts besides conversations: classify, answer, recommend."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Request
from pydantic import AfterValidator, Field, StringConstraints

from coordinator.api.collections import DEFAULT_TOP, NAME_PATTERN, TOP_LIMIT, found
from coordinator.api.openai_errors import Body, OpenAiRoute, bad
from coordinator.api.texts import (
    NAME_CHARACTERS_LIMIT,
    Text,
    caller_of,
    check_model,
    check_scope,
    sensible,
)
from coordinator.inference.recommend import profile, rank, recency_weights
from coordinator.inference.run_heads import Head
from coordinator.inference.text_services import TextServices
from shared.errors import ModelError
from shared.models.adapter import Adapter
from shared.models.calibration import confidence

INPUTS_LIMIT: Final = 256
PASSAGES_LIMIT: Final = 64
PASSAGE_CHARACTERS_LIMIT: Final = 100_000
PASSAGES_CHARACTERS_LIMIT: Final = 400_000
"""Of all passages of a request together: some hundred windows, half a minute."""
QUESTION_CHARACTERS_LIMIT: Final = 2000
HISTORY_LIMIT: Final = 200
ITEMS_LIMIT: Final = 1000
TOP_LABELS: Final = 5

Question = Annotated[
    str,
    StringConstraints(min_length=1, max_length=QUESTION_CHARACTERS_LIMIT),
    AfterValidator(sensible),
]
LongText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=PASSAGE_CHARACTERS_LIMIT),
    AfterValidator(sensible),
]
ModelName = Annotated[str, StringConstraints(max_length=NAME_CHARACTERS_LIMIT)]
Collection = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]


class ClassifyRequest(Body):
    """Texts, and whose labels they get; without ``run`` and ``adapter`` those of the last run."""

    model: ModelName | None = None
    run: str | None = Field(default=None, min_length=1, max_length=64)
    adapter: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=INPUTS_LIMIT)]


class AnswerRequest(Body):
    """A question, and where its answer is looked for."""

    model: ModelName | None = None
    question: Question
    passages: list[LongText] | None = Field(default=None, min_length=1, max_length=PASSAGES_LIMIT)
    collection: Collection | None = None
    top: int = Field(default=DEFAULT_TOP, ge=1, le=PASSAGES_LIMIT)
    """Of the collection's passages, so many are read."""
    answers: int = Field(default=1, ge=1, le=20)
    threshold: float | None = Field(default=0.0, ge=-1000, le=1000)
    """Least score; ``null`` answers even where "no answer" scores higher."""


class RecommendRequest(Body):
    """What somebody looked at, oldest first, and what there is to recommend."""

    model: ModelName | None = None
    history: list[Text] = Field(min_length=1, max_length=HISTORY_LIMIT)
    weights: list[Annotated[float, Field(ge=0, le=1e6)]] | None = Field(
        default=None, max_length=HISTORY_LIMIT
    )
    half_life: float | None = Field(default=None, gt=0, le=1e6)
    items: list[Text] | None = Field(default=None, min_length=1, max_length=ITEMS_LIMIT)
    collection: Collection | None = None
    top: int = Field(default=10, ge=1, le=TOP_LIMIT)
    diversity: float = Field(default=0.0, ge=0, le=1)
    exclude_history: bool = True

    def all_weights(self) -> Any:
        """One weight per entry of the history.

        Raises:
            Refused: there is another number of them, or nothing counts.
        """
        recency = recency_weights(len(self.history), self.half_life)
        if self.weights is None:
            return recency
        if len(self.weights) != len(self.history):
            raise bad("weights", f"expected one for each of the {len(self.history)} in history")
        if not any(self.weights):
            raise bad("weights", "one of them must be greater than 0")
        return recency * np.array(self.weights)


def task_routes(services: TextServices) -> APIRouter:
    """``/tasks/classify``, ``/tasks/answer`` and ``/tasks/recommend``."""
    router = APIRouter(prefix="/tasks", tags=["texts"], route_class=OpenAiRoute)

    @router.post("/classify")
    async def classify(body: ClassifyRequest, request: Request) -> dict[str, Any]:
        """Sort texts into the labels that a finished run has learnt."""
        return await _classify(services, body, request)

    @router.post("/answer")
    async def answer(body: AnswerRequest, request: Request) -> dict[str, Any]:
        """Find where passages answer a question; no answer is an empty list."""
        return await _answer(services, body, request)

    @router.post("/recommend")
    async def recommend(body: RecommendRequest, request: Request) -> dict[str, Any]:
        """Rank items for somebody's history; the same request gives the same ranking."""
        return await _recommend(services, body, request)

    return router


async def _classify(
    services: TextServices, body: ClassifyRequest, request: Request
) -> dict[str, Any]:
    check_scope(request, "tasks", "classify", param="task")
    encoder = services.an_encoder()
    check_model(request, body.model, encoder)
    if body.run is not None and body.adapter is not None:
        raise bad("adapter", "run and adapter both say whose labels: send one")
    if services.find_head is None:
        raise ModelError("this coordinator knows no runs")
    find = services.find_head
    head = await asyncio.to_thread(lambda: find(run=body.run, adapter=body.adapter))
    labels = (await asyncio.to_thread(Adapter.from_bytes, head.adapter.data)).labels
    texts = [body.input] if isinstance(body.input, str) else body.input
    encoded = await encoder.classify(texts, head.adapter)
    return {
        "object": "list",
        "data": _opinions(encoded.values, labels, head),
        "calibrated": head.calibrated,
        "source": "coordinator",
        "model": encoder.card.name,
        "run": head.run,
        "adapter": head.digest,
        "usage": {"prompt_tokens": encoded.tokens, "total_tokens": encoded.tokens},
    }


async def _answer(services: TextServices, body: AnswerRequest, request: Request) -> dict[str, Any]:
    check_scope(request, "tasks", "answer", param="task")
    reader = services.a_reader()
    check_model(request, body.model, reader)
    if (body.passages is None) == (body.collection is None):
        raise bad("passages", "send either passages or the name of a collection")
    if body.passages is not None:
        texts, about = body.passages, None
    else:
        assert body.collection is not None
        check_scope(request, "collections", body.collection, param="collection")
        check_model(request, None, services.an_encoder())
        hits = await services.a_library().search(
            caller_of(request).name, body.collection, body.question, top=body.top
        )
        texts, about = [hit.passage.text for hit in hits], hits
    if sum(map(len, texts)) > PASSAGES_CHARACTERS_LIMIT:
        field = "passages" if about is None else "top"
        raise bad(field, f"the passages have over {PASSAGES_CHARACTERS_LIMIT} characters together")
    spans = (
        await reader.read(body.question, texts, answers=body.answers, threshold=body.threshold)
        if texts
        else []
    )
    rows = []
    for span in spans:
        row: dict[str, Any] = {
            "text": span.text,
            "score": round(span.score, 4),
            "passage": span.passage,
            "start": span.start,
            "end": span.end,
        }
        if about is not None:
            row["document"] = about[span.passage].passage.id
        rows.append(row)
    answered: dict[str, Any] = {
        "object": "list",
        "answer": rows[0]["text"] if rows else None,
        "data": rows,
        "model": reader.card.name,
    }
    return answered if about is None else answered | {"retrieved": [found(hit) for hit in about]}


async def _recommend(
    services: TextServices, body: RecommendRequest, request: Request
) -> dict[str, Any]:
    check_scope(request, "tasks", "recommend", param="task")
    encoder = services.an_encoder()
    check_model(request, body.model, encoder)
    if (body.items is None) == (body.collection is None):
        raise bad("items", "send either items or the name of a collection")
    weights = body.all_weights()
    if body.collection is not None:
        check_scope(request, "collections", body.collection, param="collection")
        owner = caller_of(request).name
        return await _recommend_from_collection(services, body, weights, owner)
    assert body.items is not None
    seen = set(body.history) if body.exclude_history else set()
    offered = [(at, text) for at, text in enumerate(body.items) if text not in seen]
    encoded = await encoder.embed([*body.history, *(text for _, text in offered)])
    history, items = np.split(encoded.values, [len(body.history)])
    ranked = rank(profile(history, weights), items, top=body.top, diversity=body.diversity)
    rows = [
        {"index": offered[at][0], "text": offered[at][1], "score": round(score, 6)}
        for at, score in ranked
    ]
    return {"object": "list", "data": rows, "model": encoder.card.name} | _usage(encoded.tokens)


async def _recommend_from_collection(
    services: TextServices, body: RecommendRequest, weights: Any, owner: str
) -> dict[str, Any]:
    encoder, library = services.an_encoder(), services.a_library()
    assert body.collection is not None
    encoded = await encoder.embed(body.history)
    wanted = profile(encoded.values, weights)
    seen = set(body.history) if body.exclude_history else set()
    # Where places are to be diverse, they are given out among the best hundred.
    hits = await library.nearest(owner, body.collection, wanted, top=TOP_LIMIT + len(seen))
    hits = [hit for hit in hits if hit.passage.text not in seen]
    tokens = encoded.tokens
    if body.diversity and hits:
        again = await encoder.embed([hit.passage.text for hit in hits])
        tokens += again.tokens
        ranked = rank(wanted, again.values, top=body.top, diversity=body.diversity)
        hits = [hits[at] for at, _ in ranked]
    rows = [found(hit) for hit in hits[: body.top]]
    return {"object": "list", "data": rows, "model": encoder.card.name} | _usage(tokens)


def _opinions(logits: Any, labels: tuple[str, ...], head: Head) -> list[dict[str, Any]]:
    """What devices answer for one text, for each."""
    rows = []
    for index, chances in enumerate(confidence(logits, head.temperature)):
        order = np.argsort(-chances, kind="stable")[:TOP_LABELS]
        rows.append(
            {
                "index": index,
                "label": labels[order[0]],
                "confidence": float(chances[order[0]]),
                "probabilities": {labels[at]: float(chances[at]) for at in order},
            }
        )
    return rows


def _usage(tokens: int) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
