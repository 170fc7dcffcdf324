"""The audit log over HTTP: a page at a time, oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fastapi import APIRouter
from pydantic import BaseModel, Field

from coordinator.api.pages import ITEMS, Cursor, Limit, Page, Places
from coordinator.audit.chain import Record


class ReadAudit(Protocol):
    """Gives a part of the log."""

    def __call__(self, *, after: int, limit: int) -> Sequence[Record]:
        """Up to ``limit`` records that follow number ``after``."""
        ...


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


def audit_routes(read: ReadAudit) -> APIRouter:
    """``/audit``."""
    router = APIRouter(tags=["audit"])
    places = Places("audit", int)

    @router.get("/audit", summary="Read the audit log")
    def list_records(limit: Limit = ITEMS, cursor: Cursor = "") -> Page[RecordView]:
        """Who did what, oldest first."""
        after: Any = places.read(cursor)
        found = read(after=after[0] if after else 0, limit=limit + 1)
        items, following = places.page(found, limit, lambda record: (record.number,))
        return Page(items=[record.to_json() for record in items], next=following)

    return router
