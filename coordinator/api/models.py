"""Models: those that are served, and those that were imported for devices."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from coordinator.api.pages import ITEMS, Cursor, Limit, Page, Places
from coordinator.inference.engine import EngineState
from coordinator.registry.model_import import imported_models
from shared.errors import ModelError
from shared.models.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from coordinator.api.app import Services

Kind = Literal["language model", "encoder", "reader"]


class ServedModel(BaseModel):
    """A model that answers."""

    kind: Kind
    state: EngineState
    reason: str = Field(description="Why it failed")
    base: str | None = Field(description="SHA-256 of its weights; null until it is loaded")
    stand_in: bool = Field(description="Made for demonstrations")


class ImportedModel(BaseModel):
    """A model that devices can be given."""

    source: str = Field(description="What it was made of", examples=["all-MiniLM-L6-v2"])
    digest: str = Field(description="SHA-256 of its manifest")
    base: str = Field(description="SHA-256 of the weights it was made of")
    architecture: str = Field(examples=["bert"])
    layers: int = Field(examples=[6])
    features: int = Field(examples=[384])
    quantise: str = Field(examples=["int8"])
    bytes: int = Field(description="Of all its files", examples=[23_000_000])


class ModelSummary(BaseModel):
    """What goes by one name."""

    name: str = Field(examples=["qwen"])
    served: list[ServedModel]
    imported: ImportedModel | None
    damaged: str | None = Field(default=None, description="Why what was imported cannot be read")


class PassView(BaseModel):
    """What one step of an import did."""

    name: str = Field(examples=["int8"])
    nodes: int
    bytes: int
    p50_ms_32: float = Field(description="Median milliseconds for a text of 32 tokens")
    p50_ms_128: float = Field(description="The same for 128 tokens")
    agreement: float = Field(description="Share of sample texts that mean the same as before")


class ModelView(ModelSummary):
    """A model, closely."""

    passes: list[PassView] = Field(description="In the order in which they were made")


def model_routes(services: Services, folder: Path) -> APIRouter:
    """``/models``; imported ones are in ``folder``."""
    router = APIRouter(tags=["models"])
    places = Places("models", str)

    @router.get("/models", summary="List models")
    def list_models(limit: Limit = ITEMS, cursor: Cursor = "") -> Page[ModelSummary]:
        """Everything that is served or was imported, by name."""
        after = places.read(cursor) or ("",)
        served = _served(services)
        imported = {path.name for path in imported_models(folder)}
        found = sorted(name for name in served.keys() | imported if name > str(after[0]))
        names, following = places.page(found, limit, lambda name: (name,))
        items = [_view(name, served, folder, is_there=name in imported) for name in names]
        return Page(
            items=[ModelSummary(**item.model_dump(exclude={"passes"})) for item in items],
            next=following,
        )

    @router.get("/models/{name:path}", summary="Show a model")
    def show_model(name: str) -> ModelView:
        """One model, and what each step of its import did."""
        served = _served(services)
        is_there = name in {path.name for path in imported_models(folder)}
        if name not in served and not is_there:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"there is no model {name[:300]!r}")
        return _view(name, served, folder, is_there=is_there)

    return router


def _served(services: Services) -> dict[str, list[ServedModel]]:
    found: dict[str, list[ServedModel]] = {}
    for name, model in _each_served(services):
        found.setdefault(name, []).append(model)
    return found


def _each_served(services: Services) -> Iterator[tuple[str, ServedModel]]:
    for name, engine in services.desk.engines.items():
        card = engine.card
        yield (
            name,
            ServedModel(
                kind="language model",
                state=card.state,
                reason=card.reason,
                base=card.base,
                stand_in=card.stand_in,
            ),
        )
    texts = services.texts
    kinds: list[tuple[Kind, object]] = [("encoder", texts.encoder), ("reader", texts.reader)]
    for kind, model in kinds:
        for each in texts.served:
            if each is model:
                text_card = each.card
                yield (
                    text_card.name,
                    ServedModel(
                        kind=kind,
                        state=text_card.state,
                        reason=text_card.reason,
                        base=text_card.base,
                        stand_in=False,
                    ),
                )


def _view(
    name: str, served: dict[str, list[ServedModel]], folder: Path, *, is_there: bool
) -> ModelView:
    view = ModelView(name=name, served=served.get(name, []), imported=None, passes=[])
    if is_there:
        try:
            manifest, digest = read_manifest(folder / name)
        except ModelError as err:
            view.damaged = str(err)
        else:
            view.imported = _imported(manifest, digest)
            view.passes = [PassView(**each.model_dump()) for each in manifest.passes]
    return view


def _imported(manifest: Manifest, digest: str) -> ImportedModel:
    return ImportedModel(
        source=manifest.name,
        digest=digest,
        base=manifest.base,
        architecture=manifest.architecture,
        layers=manifest.layers,
        features=manifest.features,
        quantise=manifest.quantise,
        bytes=sum(file.bytes for file in manifest.files.values()),
    )
