"""What a first page shows, in one cheap answer."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fastapi import APIRouter
from pydantic import BaseModel, Field

from coordinator.api.releases import ReleaseView, released
from coordinator.fleet.transport_fleet import AWAY, TransportFleet
from coordinator.inference.engine import EngineState
from coordinator.store.store import Store
from coordinator.views import RunSummary, count_round, summarise_runs
from shared.types import RoundNumber, RunId

if TYPE_CHECKING:
    from coordinator.api.app import Services

MOST_RUNS = 20
RELEASES = 5


class RoundNow(BaseModel):
    """The round that a run is in."""

    round: int = Field(examples=[3])
    state: str = Field(examples=["gathering"])
    cohort: int = Field(description="Devices that were invited", examples=[16])
    committed: int = Field(examples=[14])
    declined: int = Field(examples=[1])
    updates: int = Field(description="Devices whose update is in", examples=[9])
    bytes: int = Field(description="Of updates that are kept for the round", examples=[1_048_576])
    changed_at: float


class RunNow(BaseModel):
    """A run that is not over."""

    summary: RunSummary
    now: RoundNow | None = Field(description="null before the first round")


class EngineNow(BaseModel):
    """A language model and what waits before it."""

    model: str = Field(examples=["qwen"])
    state: EngineState
    reason: str = Field(description="Why it failed")
    slots: int = Field(examples=[16])
    active: int = Field(description="Requests that are worked on", examples=[3])
    queue: int = Field(description="Requests that wait", examples=[0])


class Overview(BaseModel):
    """The coordinator at one moment."""

    at: float = Field(description="Seconds since the epoch")
    devices: dict[str, int] = Field(
        description="How many, by what they do", examples=[{"idle": 14, "away": 2}]
    )
    runs: list[RunNow] = Field(description=f"The first {MOST_RUNS} that are not over, oldest first")
    engines: list[EngineNow]
    releases: list[ReleaseView] = Field(description=f"The last {RELEASES}, newest first")


def overview_routes(services: Services) -> APIRouter:
    """``/overview``."""
    router = APIRouter(tags=["overview"])

    @router.get("/overview", summary="What a first page shows")
    def show_overview() -> Overview:
        """Devices, runs under way, language models and releases, at one moment."""
        store = services.store
        summaries = summarise_runs(store, store.open_runs(limit=MOST_RUNS))
        return Overview(
            at=services.now(),
            devices=count_devices(services.store, services.fleet),
            runs=[RunNow(summary=each, now=_round(services, each)) for each in summaries],
            engines=_engines(services),
            releases=released(services, limit=RELEASES)[0],
        )

    return router


def count_devices(store: Store, fleet: TransportFleet) -> dict[str, int]:
    """How many devices there are, by what they do."""
    known = fleet.known()
    counted = Counter(fleet.state(name) for name in known)
    # Who joined and was never heard is not in the fleet yet.
    counted[AWAY] += max(0, store.count_devices() - len(known))
    return {state: count for state, count in sorted(counted.items()) if count}


def _round(services: Services, run: RunSummary) -> RoundNow | None:
    if not run.round:
        return None
    counts = count_round(services.store, RunId(run.run), run.round)
    return RoundNow(
        round=counts.round,
        state=counts.state,
        cohort=counts.invited,
        committed=counts.committed,
        declined=counts.declined,
        updates=counts.reported,
        bytes=services.store.spooled_bytes(RunId(run.run), RoundNumber(counts.round)),
        changed_at=counts.changed_at,
    )


def _engines(services: Services) -> list[EngineNow]:
    found = []
    for name, engine in services.desk.engines.items():
        card, load = engine.card, engine.load
        found.append(
            EngineNow(
                model=name,
                state=card.state,
                reason=card.reason,
                slots=load.slots,
                active=load.active,
                queue=services.desk.waiting(name) + load.waiting,
            )
        )
    return found
