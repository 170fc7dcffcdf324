"""What the management API needs besides what serves devices and callers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter

from coordinator.api.access import Access
from coordinator.api.alarms import alarm_routes
from coordinator.api.devices import device_routes
from coordinator.api.docs import docs_routes
from coordinator.api.events import event_routes
from coordinator.api.live import live_routes
from coordinator.api.models import model_routes
from coordinator.api.overview import overview_routes
from coordinator.api.releases import release_routes
from coordinator.api.usage import usage_routes
from coordinator.feed import Feed
from coordinator.live import LiveHub
from coordinator.usage import UsageBook

if TYPE_CHECKING:
    from coordinator.api.app import Services


@dataclass(frozen=True, slots=True)
class Management:
    """What its routes may call.

    Attributes:
        feed: Tells what happens.
        usage: What was served.
        models: Folder of the imported models.
        live: What is watched.
    """

    feed: Feed
    usage: UsageBook
    models: Path
    live: LiveHub


def management_routes(services: Services, management: Management, access: Access) -> APIRouter:
    """What consoles show."""
    router = APIRouter()
    router.include_router(overview_routes(services))
    router.include_router(event_routes(management.feed, access))
    router.include_router(live_routes(management.live, access))
    router.include_router(docs_routes())
    router.include_router(device_routes(services))
    router.include_router(alarm_routes(services))
    router.include_router(model_routes(services, management.models))
    router.include_router(release_routes(services))
    router.include_router(usage_routes(management.usage, services.now))
    return router
