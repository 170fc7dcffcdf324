"""What there is, page by page: devices, runs and what happened in them."""

from __future__ import annotations

import functools
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from coordinator.api.pages import ITEMS, Cursor, Limit, Page, Places
from coordinator.fleet.transport_fleet import TransportFleet
from coordinator.store.store import Device
from coordinator.views import BEFORE_ALL, RunSummary, events_page, summarise_runs
from shared.crypto.identity import fingerprint, format_public
from shared.types import PublicKey, RunId

if TYPE_CHECKING:
    from coordinator.api.app import Services


class Order(StrEnum):
    """Of runs, by when they were submitted."""

    NEWEST = "newest"
    OLDEST = "oldest"


class DeviceSummary(BaseModel):
    """A device that joined."""

    name: str = Field(examples=["kitchen"])
    public_key: str = Field(description="As the device prints it")
    fingerprint: str = Field(examples=["SQ3A-7KXM-P2"])
    joined_at: float = Field(description="Seconds since the epoch")
    standing: str = Field(description="trusted, quarantined or revoked", examples=["trusted"])
    state: str = Field(
        description="idle or training, as it said; away: not heard lately", examples=["idle"]
    )
    version: str | None = Field(
        description="Of its agent; null: it has not said since the coordinator began",
        examples=["0.1.0"],
    )
    condition: str | None = Field(
        description="Why it would decline an invitation: budget-spent, no-examples, storage, or one "
        "that passes: battery, busy, hot, metered, window, disk, memory; empty: nothing it knows of; null as in version",
        examples=[""],
    )
    budget_left: float | None = Field(
        description="ε left of its owner's budget; null: the owner does not tell", examples=[3.25]
    )


class RunEvent(BaseModel, extra="allow"):
    """Something that happened in a run; for some with `device`, `reason`, `accuracy` and more."""

    at: float = Field(description="Seconds since the epoch")
    round: int = Field(description="0: the run as a whole", examples=[1])
    event: str = Field(examples=["invited"])


def listing_routes(services: Services) -> APIRouter:
    """``/devices``, ``/runs`` and ``/runs/{run}/events``."""
    router = APIRouter()
    store = services.store
    by_name = Places("devices", str)
    runs_by = {order: Places(f"runs-{order}", float, str) for order in Order}

    @router.get("/devices", tags=["devices"], summary="List devices")
    def list_devices(limit: Limit = ITEMS, cursor: Cursor = "") -> Page[DeviceSummary]:
        """Devices that joined, by name, and whether they are present."""
        after = by_name.read(cursor) or ("",)
        found = store.devices_after(str(after[0]), limit=limit + 1)
        items, following = by_name.page(found, limit, lambda device: (device.name,))
        return Page(items=[device_summary(services.fleet, each) for each in items], next=following)

    @router.get("/runs", tags=["runs"], summary="List runs")
    def list_runs(
        limit: Limit = ITEMS,
        cursor: Cursor = "",
        order: Annotated[Order, Query(description="By when they were submitted")] = Order.NEWEST,
    ) -> Page[RunSummary]:
        """Runs without their rounds."""
        places = runs_by[order]
        after: Any = places.read(cursor)
        found = store.runs_after(after, limit=limit + 1, newest=order is Order.NEWEST)
        items, following = places.page(found, limit, lambda row: (row.submitted_at, row.run))
        return Page(items=summarise_runs(store, items), next=following)

    @router.get("/runs/{run}/events", tags=["runs"], summary="What happened in a run")
    def list_events(run: str, limit: Limit = ITEMS, cursor: Cursor = "") -> Page[RunEvent]:
        """Everything that happened in a run, oldest first; what is added comes behind it."""
        row = store.run(RunId(run))
        places = Places(f"events {run}", int, int, int)
        after: Any = places.read(cursor) or BEFORE_ALL
        found = events_page(store, row, after, limit=limit + 1)
        items, following = places.page(found, limit, lambda event: event[0])
        return Page(items=[RunEvent(**event) for _, event in items], next=following)

    return router


def device_summary(fleet: TransportFleet, device: Device) -> DeviceSummary:
    """A device as lists show it."""
    public_key, of_it = _spelt(device.public_key)
    about = fleet.about(device.name)
    return DeviceSummary(
        name=device.name,
        public_key=public_key,
        fingerprint=of_it,
        joined_at=device.joined_at,
        standing=device.standing,
        state=fleet.state(device.name),
        version=about.version if about else None,
        condition=about.condition if about else None,
        budget_left=about.budget_left if about else None,
    )


@functools.lru_cache(maxsize=4096)
def _spelt(key: PublicKey) -> tuple[str, str]:
    """A key and its fingerprint; of a thousand devices they take half the time of a look."""
    return format_public(key), fingerprint(key)
