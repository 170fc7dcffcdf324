"""The audit log over HTTP: a page at a time."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from coordinator.api.pages import ITEMS, Cursor, Limit, Page, Places
from coordinator.audit.chain import Record


class ReadAudit(Protocol):
    """Gives a part of the log."""

    def __len__(self) -> int:
        """How many records there are; the last one's number."""
        ...

    def page(self, *, after: int, limit: int) -> Sequence[Record]:
        """Up to ``limit`` records that follow number ``after``."""
        ...


class Order(StrEnum):
    """Of records, by their numbers."""

    OLDEST = "oldest"
    NEWEST = "newest"


class RecordView(BaseModel):
    """A record as it stands in the log, with what it is chained by."""

    number: int = Field(description="1, 2, 3, … without gaps", examples=[17])
    at: int = Field(description="Seconds since the epoch")
    actor: str = Field(examples=["admin"])
    action: str = Field(examples=["key-made"])
    subject: str = Field(description="A run, run/round, device or key", examples=["notes"])
    facts: dict[str, str | int | bool] = Field(examples=[{"begins": "llmos_abcdef"}])
    previous: str = Field(description="Hash of the record before")
    hash: str = Field(description="SHA-256 over all of this")


def audit_routes(log: ReadAudit) -> APIRouter:
    """``/audit``."""
    router = APIRouter(tags=["audit"])
    places_by = {order: Places(f"audit-{order}", int) for order in Order}

    @router.get("/audit", summary="Read the audit log")
    def list_records(
        limit: Limit = ITEMS,
        cursor: Cursor = "",
        order: Annotated[Order, Query(description="By when it was written")] = Order.OLDEST,
    ) -> Page[RecordView]:
        """Who did what."""
        places = places_by[order]
        place: Any = places.read(cursor)
        if order is Order.OLDEST:
            found = log.page(after=place[0] if place else 0, limit=limit + 1)
        else:
            # Those before the last that was shown, which nothing that is written since moves.
            last = min(place[0] - 1, len(log)) if place else len(log)
            first = max(0, last - limit - 1)
            found = log.page(after=first, limit=last - first)[::-1]
        items, following = places.page(found, limit, lambda record: (record.number,))
        return Page(items=[record.to_json() for record in items], next=following)

    return router
