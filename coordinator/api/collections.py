"""Collections of passages over HTTP. They belong to the API key that made them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Request
from fastapi import Path as InPath
from pydantic import AfterValidator, Field

from coordinator.api.openai_errors import Body, OpenAiRoute
from coordinator.api.texts import Text, caller_of, check_model, check_scope, scopes_of
from coordinator.inference.text_services import TextServices
from coordinator.retrieval.vectors import CollectionCard, Hit, Passage

if TYPE_CHECKING:
    from coordinator.retrieval.library import Library

DOCUMENTS_LIMIT: Final = 1000
"""In one request; a collection takes many."""
METADATA_BYTES_LIMIT: Final = 16_000
TOP_LIMIT: Final = 100
DEFAULT_TOP: Final = 5

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, InPath(pattern=NAME_PATTERN)]
DocumentId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]


def _small(metadata: dict[str, Any]) -> dict[str, Any]:
    try:
        text = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (ValueError, RecursionError) as err:
        raise ValueError("is no JSON that can be kept") from err
    if size > METADATA_BYTES_LIMIT or "\\u0000" in text:
        raise ValueError(f"has at most {METADATA_BYTES_LIMIT} bytes as JSON, and no zero character")
    return metadata


def _no_zero(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a zero character")
    return text


class Document(Body):
    """A passage as it comes in."""

    id: DocumentId
    text: Annotated[Text, AfterValidator(_no_zero)]
    metadata: Annotated[dict[str, Any], AfterValidator(_small)] = Field(default_factory=dict)


class NewDocuments(Body):
    """Passages to add, or to put in the place of those with the same ids."""

    documents: list[Document] = Field(min_length=1, max_length=DOCUMENTS_LIMIT)


class GoneDocuments(Body):
    """Passages to remove."""

    ids: list[DocumentId] = Field(min_length=1, max_length=DOCUMENTS_LIMIT)


class SearchRequest(Body):
    """What to look for."""

    query: Text
    top: int = Field(default=DEFAULT_TOP, ge=1, le=TOP_LIMIT)


def collection_routes(services: TextServices) -> APIRouter:
    """``/collections`` and below."""
    router = APIRouter(prefix="/collections", tags=["collections"], route_class=OpenAiRoute)

    def library_for(name: str, request: Request) -> tuple[Library, str]:
        """Where the caller's collections are, and under which owner."""
        check_scope(request, "collections", name, param="collection")
        return services.a_library(), caller_of(request).name

    @router.get("")
    def list_collections(request: Request) -> dict[str, Any]:
        """The caller's collections."""
        library, owner = services.a_library(), caller_of(request).name
        return {
            "object": "list",
            "data": [
                _collection(card, count)
                for card, count in library.shown(owner)
                if scopes_of(request).allow("collections", card.name)
            ],
        }

    @router.get("/{name}")
    def show_collection(name: Name, request: Request) -> dict[str, Any]:
        """One collection."""
        library, owner = library_for(name, request)
        return _collection(library.card(owner, name), library.count(owner, name))

    @router.delete("/{name}")
    def drop_collection(name: Name, request: Request) -> dict[str, Any]:
        """Remove a collection with all in it."""
        library, owner = library_for(name, request)
        library.drop(owner, name)
        return {"object": "collection", "name": name, "deleted": True}

    @router.post("/{name}/documents")
    async def add_documents(name: Name, body: NewDocuments, request: Request) -> dict[str, Any]:
        """Embed passages and keep them; the first ones make the collection."""
        library, owner = library_for(name, request)
        check_model(request, None, services.an_encoder())
        passages = [Passage(each.id, each.text, each.metadata) for each in body.documents]
        tokens = await library.add(owner, name, passages)
        count = await asyncio.to_thread(library.count, owner, name)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "collection", "name": name, "documents": count, "usage": usage}

    @router.delete("/{name}/documents")
    def delete_documents(name: Name, body: GoneDocuments, request: Request) -> dict[str, Any]:
        """Remove passages; ids that there are none of are no error."""
        library, owner = library_for(name, request)
        gone = library.delete(owner, name, body.ids)
        return {"object": "collection", "name": name, "deleted": gone}

    @router.post("/{name}/search")
    async def search(name: Name, body: SearchRequest, request: Request) -> dict[str, Any]:
        """The passages nearest to a query, nearest first."""
        library, owner = library_for(name, request)
        check_model(request, None, services.an_encoder())
        hits = await library.search(owner, name, body.query, top=body.top)
        return {"object": "list", "data": [found(hit) for hit in hits]}

    return router


def found(hit: Hit) -> dict[str, Any]:
    """A passage that was found, as JSON."""
    passage = hit.passage
    return {
        "id": passage.id,
        "score": round(hit.score, 6),
        "text": passage.text,
        "metadata": passage.metadata,
    }


def _collection(card: CollectionCard, count: int) -> dict[str, Any]:
    return {
        "object": "collection",
        "name": card.name,
        "encoder": card.encoder,
        "features": card.features,
        "documents": count,
    }
