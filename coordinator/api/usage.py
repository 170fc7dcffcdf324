"""What was served to whom."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field

from coordinator.api.access import Principal
from coordinator.api.pages import ITEMS, Cursor, Limit, Page, Places
from coordinator.api.roles import Role
from coordinator.usage import Account, UsageBook, Use

DAYS = 30
"""How far back is looked if nobody says."""


class By(StrEnum):
    """What uses are added up by."""

    KEY = "key"
    MODEL = "model"
    DAY = "day"


class UseView(BaseModel):
    """How much was served under one name."""

    name: str = Field(
        description="Of a key (`device`: all devices together), a model, or a day",
        examples=["notes"],
    )
    requests: int = Field(description="That are over, however they ended", examples=[120])
    prompt_tokens: int = Field(description="Of whole answers", examples=[5400])
    cached_tokens: int = Field(description="Of the prompts', not computed", examples=[2100])
    completion_tokens: int = Field(description="Of whole answers", examples=[900])


def usage_routes(book: UsageBook, now: Any) -> APIRouter:
    """``/usage``."""
    router = APIRouter(tags=["usage"])

    @router.get("/usage", summary="What was served")
    def show_usage(
        request: Request,
        *,
        since: Annotated[
            date | None, Query(description=f"First day, of UTC; else {DAYS} days ago")
        ] = None,
        until: Annotated[date | None, Query(description="Last day; else today")] = None,
        by: Annotated[By, Query(description="What is added up by")] = By.DAY,
        limit: Limit = ITEMS,
        cursor: Cursor = "",
    ) -> Page[UseView]:
        """Requests and tokens of language models by key, model or day. A caller sees its own."""
        today = datetime.fromtimestamp(now(), UTC).date()
        last = until or today
        first = since or max(date.min + timedelta(DAYS), last) - timedelta(DAYS)
        if first > last:
            raise RequestValidationError(
                [{"type": "value_error", "loc": ("query", "since"), "msg": "is behind until"}]
            )
        places = Places(f"usage-{by}", str)
        after = places.read(cursor) or ("",)
        principal: Principal = request.state.principal
        own = principal.caller.name if principal.role is Role.CALLER else None
        added = _added(book.used(first, last), by, own)
        found = sorted(name for name in added if name > str(after[0]))
        names, following = places.page(found, limit, lambda name: (name,))
        items = [
            UseView(
                name=name,
                requests=added[name].requests,
                prompt_tokens=added[name].prompt_tokens,
                cached_tokens=added[name].cached_tokens,
                completion_tokens=added[name].completion_tokens,
            )
            for name in names
        ]
        return Page(items=items, next=following)

    return router


def _added(used: dict[Account, Use], by: By, own: str | None) -> dict[str, Use]:
    added: dict[str, Use] = {}
    for account, use in used.items():
        if own is not None and account.key != own:
            continue
        name = {By.KEY: account.key, By.MODEL: account.model, By.DAY: str(account.day)}[by]
        added[name] = added.get(name, Use()) + use
    return added
