"""The audit log over HTTP, for the admin: a page at a time, oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Protocol

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from coordinator.audit.chain import MAX_NUMBER, Record

MAX_PAGE: Final = 1000


class ReadAudit(Protocol):
    """Gives a page of the log."""

    def __call__(self, *, after: int, limit: int) -> Sequence[Record]:
        """Up to ``limit`` records that follow number ``after``."""
        ...


def audit_routes(read: ReadAudit) -> APIRouter:
    """``/audit``."""
    router = APIRouter(tags=["audit"])

    @router.get("/audit", response_class=JSONResponse)
    def list_records(
        after: Annotated[int, Query(ge=0, le=MAX_NUMBER)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    ) -> JSONResponse:
        """Records that follow number ``after``, and the ``after`` of the page behind them.

        At the end of the log that page is empty until more was written.
        """
        records = read(after=after, limit=limit)
        page: dict[str, Any] = {
            "records": [record.to_json() for record in records],
            "next": records[-1].number if records else after,
        }
        return JSONResponse(page)  # it is plain already, and to look for more takes its time

    return router
