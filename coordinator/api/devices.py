"""One device: what it said and what anybody on the broker could see of it, and nothing of its records."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from coordinator.api.listings import DeviceSummary, device_summary
from coordinator.fleet.standings import judge
from coordinator.store.store import QUARANTINED, REVOKED, TRUSTED
from coordinator.views import Participation, participation
from shared.types import DeviceId

if TYPE_CHECKING:
    from coordinator.api.app import Services

RUNS: Final = 5
"""The last runs that are looked at."""


class Answers(BaseModel):
    """What a device answers with; empty where it answers with nothing."""

    adapter: str = Field(description="SHA-256")
    manifest: str = Field(description="SHA-256 of the model's manifest")


class Quarantine(BaseModel):
    """Why a device or key is kept out for now."""

    model_config = ConfigDict(extra="forbid")

    # Without control characters: it is shown in tables, and not every database takes every text.
    reason: str = Field(default="by an operator", max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")


class DeviceView(DeviceSummary):
    """A device, closely."""

    heard_at: float | None = Field(
        description="Seconds since the epoch; null: not since the coordinator began"
    )
    answers_with: Answers | None = Field(
        description="null: it has not said since the coordinator began"
    )
    runs: list[Participation] = Field(description=f"The last {RUNS} runs, newest first")


def device_routes(services: Services) -> APIRouter:
    """``/devices/{name}``."""
    router = APIRouter(tags=["devices"])

    @router.get("/devices/{name}", summary="Show a device")
    def show_device(name: str) -> DeviceView:
        """A device, what it answers with, and how it took part in the last runs."""
        device = services.store.device(name)
        if device is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"no device {name[:64]!r} has joined")
        heard_at, _ = services.fleet.heard(device.name)
        answers = services.fleet.answering(device.name)
        recent = services.store.runs_after(limit=RUNS, newest=True)
        return DeviceView(
            **device_summary(services.fleet, device).model_dump(),
            heard_at=heard_at if heard_at > float("-inf") else None,
            answers_with=(
                Answers(adapter=answers.adapter, manifest=answers.manifest) if answers else None
            ),
            runs=[participation(services.store, row, device.name) for row in recent],
        )

    def set_standing(name: str, standing: str, reason: str) -> dict[str, str]:
        store, fleet, now = services.store, services.fleet, services.now()
        if not judge(store, fleet, DeviceId(name), standing, reason, now=now):
            problem = f"no device {name[:64]!r} has joined, or it was revoked"
            raise HTTPException(HTTPStatus.NOT_FOUND, problem)
        return {"name": name, "standing": standing}

    @router.post("/devices/{name}/quarantine", summary="Quarantine a device")
    def quarantine_device(name: str, body: Quarantine) -> dict[str, str]:
        """From now on it is not invited, and what it says is dropped, until it is let out."""
        return set_standing(name, QUARANTINED, body.reason)

    @router.delete("/devices/{name}/quarantine", summary="Let a device out of quarantine")
    def release_device(name: str) -> dict[str, str]:
        """From now on it is heard and invited as before."""
        return set_standing(name, TRUSTED, "")

    @router.delete("/devices/{name}", summary="Revoke a device")
    def revoke_device(name: str) -> dict[str, str]:
        """For good: its name and its key are never taken again."""
        return set_standing(name, REVOKED, "")

    return router
