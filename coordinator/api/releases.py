"""What was released to devices, newest first."""

from __future__ import annotations

from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from coordinator.api.pages import ITEMS, Cursor, Limit, Page, Places
from coordinator.fleet.transport_fleet import AnswersWith
from coordinator.releases import RELEASED
from coordinator.store.store import Milestone
from shared.types import RunId

if TYPE_CHECKING:
    from coordinator.api.app import Services


class ReleaseView(BaseModel):
    """What a run's devices were given to answer with."""

    run: str = Field(examples=["tickets"])
    at: float = Field(description="Seconds since the epoch")
    manifest: str = Field(description="SHA-256 of the model's manifest")
    adapter: str = Field(description="SHA-256 of the adapter")
    accuracy: float | None = Field(
        description="On the probe set, in the graph that devices run", examples=[0.91]
    )
    devices: int = Field(description="That answer with it now", examples=[12])


def release_routes(services: Services) -> APIRouter:
    """``/releases``."""
    router = APIRouter(tags=["releases"])
    places = Places("releases", int)

    @router.get("/releases", summary="List releases")
    def list_releases(limit: Limit = ITEMS, cursor: Cursor = "") -> Page[ReleaseView]:
        """What was released, newest first."""
        after: Any = places.read(cursor)
        items, last = released(services, before=after[0] if after else None, limit=limit)
        return Page(items=items, next=None if last is None else places.write((last,)))

    @router.get("/releases/{run}", summary="Show a release")
    def show_release(run: str) -> ReleaseView:
        """What was made of one run."""
        name = services.store.run(RunId(run)).run
        milestones = services.store.milestones(name)
        if RELEASED not in milestones:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"the run {name} was not released")
        return _view(name, milestones[RELEASED], milestones.get("finished"), _in_use(services))

    return router


def released(
    services: Services, *, before: int | None = None, limit: int
) -> tuple[list[ReleaseView], int | None]:
    """Releases, newest first, and the id of the last row if there are more behind it."""
    rows = services.store.milestones_of_kind(RELEASED, before, limit=limit + 1)
    shown = rows[:limit]
    known = services.store.progress([row.run for row in shown])
    in_use = _in_use(services)
    views = [
        _view(
            row.run,
            known[row.run].milestones[RELEASED],
            known[row.run].milestones.get("finished"),
            in_use,
        )
        for row in shown
    ]
    return views, shown[-1].id if len(rows) > limit else None


def _in_use(services: Services) -> Counter[AnswersWith | None]:
    fleet = services.fleet
    return Counter(fleet.answering(name) for name in fleet.known())


def _view(
    run: str,
    milestone: Milestone,
    finished: Milestone | None,
    in_use: Counter[AnswersWith | None],
) -> ReleaseView:
    facts = milestone.facts
    adapter = str(finished.facts.get("adapter", "")) if finished else ""
    manifest = str(facts["manifest"])
    return ReleaseView(
        run=run,
        at=milestone.at,
        manifest=manifest,
        adapter=adapter,
        accuracy=facts.get("accuracy"),
        devices=in_use[AnswersWith(adapter, manifest)],
    )
